// What the sessions of one tenant hold together, on all devices of this process, and how much they may.
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace genie_local {

struct SharedBytes;
using SharedBytesPtr = std::shared_ptr<SharedBytes>;

// One session's stake, as it would be by itself.
struct Stake {
  std::string name;
  std::atomic<int64_t> bytes{0};
};
using StakePtr = std::shared_ptr<Stake>;

// Bytes that several sessions of the tenant share count once, whoever else has them, too. Between asking and holding
// another session may be quicker: the step that then holds too much fails. Thread-safe.
class Account {
 public:
  // A limit of 0 is none.
  Account(std::string tenant, int64_t limit) : tenant_(std::move(tenant)), limit_(limit) {}
  Account(const Account&) = delete;
  Account& operator=(const Account&) = delete;

  void set_limit(int64_t limit) {
    limit_ = limit;
  }
  int64_t live() const {
    return live_;
  }
  bool lacks(int64_t bytes) const {
    const int64_t limit = limit_;
    return limit > 0 && bytes > limit - live_;
  }
  // Of `bytes` more, what its limit has no room for.
  int64_t missing(int64_t bytes) const {
    return bytes - (limit_ - live_);
  }
  // `bytes` more of its sessions' values lie in the swap, of which it may have so many. False: they may not.
  bool swap(int64_t bytes, int64_t share);
  void swap_back(int64_t bytes) {
    swapped_ -= bytes;
  }
  int64_t swapped() const {
    return swapped_;
  }
  int64_t limit() const {
    return limit_;
  }
  // As Memory's; and who holds most of what is in use.
  std::string shortage(int64_t need, int64_t held) const;

  StakePtr enter(std::string name);
  void leave(const StakePtr& stake);
  void change(int64_t bytes) {
    live_ += bytes;
  }
  void use(const std::weak_ptr<SharedBytes>& shared, int64_t bytes);
  void disuse(const std::weak_ptr<SharedBytes>& shared);
  bool uses(const SharedBytesPtr& shared) const;

 private:
  struct Use {
    int64_t times = 0;
    int64_t bytes = 0;
  };

  const std::string tenant_;
  std::atomic<int64_t> limit_;
  std::atomic<int64_t> live_{0};
  std::atomic<int64_t> swapped_{0};
  mutable std::mutex lock_;
  std::map<std::weak_ptr<SharedBytes>, Use, std::owner_less<>> shared_;
  std::list<StakePtr> stakes_;
};
using AccountPtr = std::shared_ptr<Account>;

}  // namespace genie_local
