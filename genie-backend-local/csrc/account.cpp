#include "account.h"

#include <algorithm>
#include <vector>

namespace genie_local {
namespace {

constexpr size_t most_told = 4;

}  // namespace

bool Account::swap(int64_t bytes, int64_t share) {
  auto used = swapped_.load();
  do {
    if (bytes > share - used) {
      return false;
    }
  } while (!swapped_.compare_exchange_weak(used, used + bytes));
  return true;
}

StakePtr Account::enter(std::string name) {
  const std::lock_guard<std::mutex> lock(lock_);
  return stakes_.emplace_back(std::make_shared<Stake>(std::move(name)));
}

void Account::leave(const StakePtr& stake) {
  const std::lock_guard<std::mutex> lock(lock_);
  stakes_.remove(stake);
}

void Account::use(const std::weak_ptr<SharedBytes>& shared, int64_t bytes) {
  const std::lock_guard<std::mutex> lock(lock_);
  auto& use = shared_[shared];
  if (use.times++ == 0) {
    use.bytes = bytes;
    live_ += bytes;
  }
}

void Account::disuse(const std::weak_ptr<SharedBytes>& shared) {
  const std::lock_guard<std::mutex> lock(lock_);
  const auto found = shared_.find(shared);
  if (found != shared_.end() && --found->second.times == 0) {
    live_ -= found->second.bytes;
    shared_.erase(found);
  }
}

bool Account::uses(const SharedBytesPtr& shared) const {
  const std::lock_guard<std::mutex> lock(lock_);
  return shared_.find(shared) != shared_.end();
}

std::string Account::shortage(int64_t need, int64_t held) const {
  const int64_t limit = limit_;
  const auto whose = tenant_.empty() ? std::string("the tenant's") : "the tenant " + tenant_ + "'s";
  auto text = "needs " + std::to_string(need) + " bytes, " + std::to_string(live_ - held) + " of " + whose +
      " quota of " + std::to_string(limit) + " are in use";
  if (need > limit) {
    return text + ": it is more than the quota itself";
  }
  std::vector<std::pair<int64_t, std::string>> holders;
  {
    const std::lock_guard<std::mutex> lock(lock_);
    for (const auto& stake : stakes_) {
      if (const int64_t bytes = stake->bytes; bytes > 0) {
        holders.emplace_back(bytes, stake->name);
      }
    }
  }
  std::sort(holders.rbegin(), holders.rend());
  for (size_t i = 0; i < std::min(holders.size(), most_told); ++i) {
    text += (i == 0 ? ": session " : ", ") + holders[i].second + " holds " + std::to_string(holders[i].first);
  }
  if (holders.size() > most_told) {
    text += ", and " + std::to_string(holders.size() - most_told) + " more";
  }
  return text;
}

}  // namespace genie_local
