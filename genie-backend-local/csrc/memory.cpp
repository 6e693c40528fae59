#include "memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <random>
#include <thread>

namespace genie_local {
namespace {

c10::StorageImpl* storage_of(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage()) {
    return nullptr;
  }
  return tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
}

// How long who lacks memory waits for sessions at work, and between two looks at them.
constexpr auto patience = std::chrono::milliseconds(100);
constexpr auto pause = std::chrono::milliseconds(1);

thread_local Memory* limiting = nullptr;
thread_local bool clearing = false;

// Asks the limit of the session that runs on this thread, then the allocator that was there before.
class LimitedAllocator final : public c10::Allocator {
 public:
  explicit LimitedAllocator(c10::Allocator* inner) : inner_(inner) {}

  c10::DataPtr allocate(size_t size) override {
    if (limiting != nullptr) {
      const auto need = static_cast<int64_t>(size);
      TORCH_CHECK_WITH(
          OutOfMemoryError,
          need >= 0 && (!limiting->lacks(need) || !limiting->lacks_after_all(need)),
          limiting->shortage(need));
    }
    auto data = inner_->allocate(size);
    if (clearing && size > 0) {
      std::memset(data.get(), 0, size);
    }
    return data;
  }
  bool is_simple_data_ptr(const c10::DataPtr& data) const override {
    return inner_->is_simple_data_ptr(data);
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return inner_->raw_deleter();
  }
  void copy_data(void* to, const void* from, std::size_t size) const override {
    inner_->copy_data(to, from, size);
  }

 private:
  c10::Allocator* inner_;
};

void install_limited_allocator() {
  static std::once_flag once;
  std::call_once(once, [] {
    // Never freed: tensors may outlive every session.
    c10::SetCPUAllocator(new LimitedAllocator(c10::GetCPUAllocator()));
  });
}

void add(std::atomic<int64_t>& sum, int64_t bytes) {  // by its only writer
  sum.store(sum.load(std::memory_order_relaxed) + bytes, std::memory_order_relaxed);
}

bool same(const std::weak_ptr<SharedBytes>& one, const std::weak_ptr<SharedBytes>& other) {
  return !one.owner_before(other) && !other.owner_before(one);
}

std::weak_ptr<SharedBytes> shared_of(const c10::StorageImpl& storage) {
  return shared_bytes(storage);
}

}  // namespace

const char* name_of(Kind kind) {
  constexpr std::array<const char*, kinds> names{"intermediate", "input", "state", "weight"};
  return names[static_cast<size_t>(kind)];
}

std::string bytes_text(int64_t bytes) {
  constexpr std::array<const char*, 5> units{"bytes", "KB", "MB", "GB", "TB"};
  auto number = static_cast<double>(bytes);
  size_t unit = 0;
  while (number >= 1000 && unit + 1 < units.size()) {
    number /= 1000;
    ++unit;
  }
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), unit == 0 ? "%.0f %s" : "%.1f %s", number, units[unit]);
  return text.data();
}

// Of the device's limit a session may hold a thousandth before the device is told: counting costs nothing, and what the
// others are told is near enough.
Memory::Memory(int64_t limit, BudgetPtr budget, Session& session, AccountPtr account, std::string label)
    : limit_(limit),
      budget_(std::move(budget)),
      session_(session),
      account_(std::move(account)),
      stake_(account_ ? account_->enter(std::move(label)) : nullptr),
      quantum_(budget_ ? budget_->limit >> 10 : 0) {}

Memory::~Memory() {
  for (auto& [storage, entry] : entries_) {
    if (!entry.away) {
      if (entry.charged) {
        pending_ -= entry.bytes;
      }
      discharge(entry);
    }
  }
  flush();
  if (account_) {
    account_->leave(stake_);
  }
}

// The tenant has it: bytes of its own, or bytes that its sessions share, which count once.
void Memory::charge(Entry& entry, const c10::StorageImpl& storage) {
  if (account_) {
    entry.shared = shared_of(storage);
    if (same(entry.shared, {})) {
      account_->change(entry.bytes);
    } else {
      account_->use(entry.shared, entry.bytes);
    }
  }
}

void Memory::discharge(Entry& entry) {
  if (account_) {
    if (same(entry.shared, {})) {
      account_->change(-entry.bytes);
    } else {
      account_->disuse(entry.shared);
    }
  }
}

void Memory::recharge(Entry& entry, const c10::StorageImpl& storage) {
  if (account_ && !entry.away && !same(entry.shared, shared_of(storage))) {
    discharge(entry);
    charge(entry, storage);
  }
}

void Memory::flush() {
  if (pending_ != 0 && budget_) {
    budget_->change(pending_);
    pending_ = 0;
  }
}

int64_t first_stamp() {
  std::random_device random;
  const auto drawn = static_cast<uint64_t>(random()) << 32 | random();
  return static_cast<int64_t>(drawn >> 2);  // below 2**62: counting on does not overflow
}

Memory::Identity Memory::identity(c10::StorageImpl* storage) const {
  return entries_.find(storage)->second.identity;
}

void Memory::identify(c10::StorageImpl* storage, Identity identity) {
  auto& entry = entries_.find(storage)->second;
  entry.identity = identity;
  if (entry.kind == Kind::input) {  // as which it came
    become(entry, Kind::state);
  }
}

c10::StorageImpl* Memory::find(int64_t id) {
  const auto known = [&]() -> c10::StorageImpl* {
    const auto found = found_.find(id);
    if (found == found_.end()) {
      return nullptr;
    }
    const auto entry = entries_.find(found->second);
    return entry != entries_.end() && entry->second.identity.id == id ? found->second : nullptr;
  };
  if (auto* storage = known()) {
    return storage;
  }
  found_.clear();
  for (const auto& [storage, entry] : entries_) {
    found_[entry.identity.id] = storage;
  }
  return known();
}

void Memory::change(const Entry& entry, int64_t bytes) {
  live_ += bytes;
  peak_ = std::max(peak_, live_);
  if (stake_) {
    stake_->bytes = live_;
  }
  add(by_kind_[static_cast<size_t>(entry.kind)], bytes);
  if (budget_ && entry.charged) {
    pending_ += bytes;
    if (pending_ > quantum_ || pending_ < -quantum_) {
      flush();
    }
  }
}

void Memory::become(Entry& entry, Kind kind) {
  if (!entry.away) {
    add(by_kind_[static_cast<size_t>(entry.kind)], -entry.bytes);
    add(by_kind_[static_cast<size_t>(kind)], entry.bytes);
  }
  entry.kind = kind;
}

void Memory::hold(Holder& holder, Kind kind) {
  auto* storage = storage_of(holder.tensor);
  holder.storage = storage;
  if (storage == nullptr) {
    return;
  }
  auto& entry = entries_[storage];
  if (entry.holders++ == 0) {
    entry.bytes = static_cast<int64_t>(storage->nbytes());
    ++stamp_;
    entry.identity = {stamp_, stamp_};
    entry.kind = kind;
    if (kind == Kind::weight) {
      const auto bytes = shared_bytes(*storage);
      entry.charged = bytes == nullptr || bytes->budget == nullptr || bytes->budget != budget_;
      entry.away = is_away(*storage);
    }
    if (entry.away) {
      add(away_, entry.bytes);
    } else {
      change(entry, entry.bytes);
      charge(entry, *storage);
    }
  } else if (entry.kind == Kind::intermediate && kind != Kind::intermediate) {
    become(entry, kind);
  }
}

void Memory::release(Holder& holder) {
  if (holder.storage != nullptr) {
    const auto found = entries_.find(holder.storage);
    auto& entry = found->second;
    if (--entry.holders == 0) {
      if (const auto bytes = entry.charged ? nullptr : shared_bytes(*holder.storage)) {
        const std::lock_guard<std::mutex> lock(bytes->lock);
        bytes->use = holder.use;
      }
      if (entry.away) {
        add(away_, -entry.bytes);
      } else {
        change(entry, -entry.bytes);
        discharge(entry);
      }
      entries_.erase(found);
    }
    holder.storage = nullptr;
  }
  holder.tensor = at::Tensor();
  holder.failure.reset();
}

void Memory::refresh(Holder& holder) {
  auto* storage = storage_of(holder.tensor);
  if (storage != holder.storage) {
    if (holder.storage != nullptr) {
      entries_.find(holder.storage)->second.identity.version = ++stamp_;
    }
    const auto kind = holder.storage == nullptr ? Kind::state : entries_.find(holder.storage)->second.kind;
    at::Tensor tensor = holder.tensor;
    release(holder);
    holder.tensor = std::move(tensor);
    hold(holder, kind == Kind::intermediate ? kind : Kind::state);
  } else if (storage != nullptr) {
    auto& entry = entries_.find(storage)->second;
    entry.identity.version = ++stamp_;
    if (entry.kind == Kind::input || entry.kind == Kind::weight) {
      become(entry, Kind::state);
    }
    if (!entry.charged && !shared_bytes(*storage)) {  // resized: it has other bytes
      entry.charged = true;
      pending_ += entry.bytes;
    }
    const auto bytes = static_cast<int64_t>(storage->nbytes());
    if (bytes != entry.bytes) {
      discharge(entry);
      change(entry, bytes - entry.bytes);
      entry.bytes = bytes;
      charge(entry, *storage);
    } else {  // who writes into what it shared has a copy of its own then
      recharge(entry, *storage);
    }
  }
}

void Memory::own(c10::StorageImpl& storage) {
  if (!unshare(storage)) {
    return;
  }
  const auto found = entries_.find(&storage);
  if (found == entries_.end()) {
    return;
  }
  recharge(found->second, storage);
  if (!found->second.charged) {
    found->second.charged = true;
    pending_ += found->second.bytes;
    flush();
  }
}

void Memory::shared(c10::StorageImpl& storage) {
  recharge(entries_.find(&storage)->second, storage);
}

void Memory::share(c10::StorageImpl& storage, const SharedBytesPtr& bytes) {
  auto& entry = entries_.find(&storage)->second;
  become(entry, Kind::weight);
  if (!budget_ || !entry.charged) {
    return;
  }
  const std::lock_guard<std::mutex> lock(bytes->lock);
  if (bytes->budget == nullptr && bytes->attached == 1) {
    entry.charged = false;
    pending_ -= entry.bytes;
    flush();
    bytes->budget = budget_;
    budget_->change(static_cast<int64_t>(bytes->size));
    budget_->contents += static_cast<int64_t>(bytes->size);
  }
}

void Memory::went(c10::StorageImpl& storage) {
  auto& entry = entries_.find(&storage)->second;
  change(entry, -entry.bytes);
  discharge(entry);
  entry.away = true;
  add(away_, entry.bytes);
  flush();
}

void Memory::came_back(c10::StorageImpl& storage) {
  auto& entry = entries_.find(&storage)->second;
  entry.away = false;
  add(away_, -entry.bytes);
  change(entry, entry.bytes);
  charge(entry, storage);
  flush();
}

void Memory::admit(int64_t bytes, const char* what) {
  if (lacks(bytes) && lacks_after_all(bytes)) {
    throw Refused(Refusal::memory, std::string(what) + " " + shortage(bytes));
  }
}

void Memory::admit_back(const c10::StorageImpl& storage) {
  const auto bytes = shared_bytes(storage);
  bool there = false;
  {
    const std::lock_guard<std::mutex> lock(bytes->lock);
    there = bytes->data.get() != nullptr && bytes->budget != nullptr && bytes->budget == budget_;
  }
  const auto size = static_cast<int64_t>(storage.nbytes());
  if (!there || lacks_own(size)) {
    admit(size, "a value that comes back");
  }
}

// What the account has already costs it nothing more, and what the device has (`counted`) costs that nothing.
void Memory::admit_shared(int64_t bytes, const SharedBytesPtr& shared, bool counted) {
  const auto refused = [&] {
    return (!counted && lacks_itself(bytes)) || (account_ && account_->lacks(bytes) && !account_->uses(shared));
  };
  if (refused()) {
    lacks_after_all(bytes);
    if (refused()) {
      throw Refused(Refusal::memory, "a shared value " + shortage(bytes));
    }
  }
}

// Between leaving and being held again another session may take what has left. Then more is asked for, as long as
// something leaves; what was passed over because its session was at work may leave a moment later.
bool Memory::lacks_after_all(int64_t bytes) {
  if (!budget_) {
    return lacks(bytes);
  }
  flush();
  const auto until = std::chrono::steady_clock::now() + patience;
  while (lacks(bytes)) {
    const auto [gone, passed_over] = make_room(bytes);
    if (gone == 0) {
      if (!passed_over || std::chrono::steady_clock::now() >= until) {
        break;
      }
      std::this_thread::sleep_for(pause);
    }
  }
  return lacks(bytes);
}

Gone Memory::make_room(int64_t bytes) {
  Gone all;
  if (account_ && account_->lacks(bytes)) {
    all += budget_->reclaim(account_->missing(bytes), &session_, /*alone=*/true);
  }
  if (lacks_own(bytes)) {
    all += budget_->reclaim(bytes - (limit_ - live_), &session_, /*alone=*/true);
  }
  if (!lacks_own(bytes) && lacks(bytes)) {
    all += budget_->reclaim(bytes - (budget_->limit - budget_->live), &session_);
  }
  return all;
}

std::string Memory::shortage(int64_t need, int64_t held) const {
  if (account_ && account_->lacks(need - held) && !lacks_itself(need - held)) {
    return account_->shortage(need, held);
  }
  const bool own = !budget_ || (limit_ > 0 && need > limit_ - (live_ - held));
  const int64_t live = own ? live_ : budget_->live.load() + pending_;
  auto text = "needs " + std::to_string(need) + " bytes, " + std::to_string(live - held) + " of the " +
      (own ? "session's " : "device's ") + std::to_string(own ? limit_ : budget_->limit) + " are in use";
  if (budget_) {
    text += ": " + budget_->holders(&session_);
  }
  return text;
}

AllocationLimit::AllocationLimit(Memory& memory) : previous_(limiting) {
  if (memory.limited()) {
    install_limited_allocator();
    limiting = &memory;
  } else {
    limiting = nullptr;
  }
}

ClearedMemory::ClearedMemory() {
  install_limited_allocator();
  clearing = true;
}

ClearedMemory::~ClearedMemory() {
  clearing = false;
}

AllocationLimit::~AllocationLimit() {
  limiting = previous_;
}

}  // namespace genie_local
