// What a session's values occupy, by kind, and whether it may have more.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/flat_hash_map.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "account.h"
#include "budget.h"
#include "refused.h"
#include "shared.h"

namespace genie_local {

// What a storage is to its session.
enum class Kind : uint8_t {
  intermediate,  // made by a step, and nobody's value yet
  input,  // uploaded, and never written to
  state,  // made or written here: it is nowhere else
  weight,  // known by its content, and never written to
};
constexpr size_t kinds = 4;
const char* name_of(Kind kind);

// One value: a tensor, or why there is none.
struct Holder {
  at::Tensor tensor;
  FailurePtr failure;
  c10::StorageImpl* storage = nullptr;  // the storage Memory counts for this holder
  Use use;
};

// Where a session begins to count: so far from where others do that no two ever use one number, on whatever node.
int64_t first_stamp();

// Live bytes by storage: aliases count once. Written by one thread at a time, the one that has the session's lock.
class Memory {
 public:
  const AccountPtr& account() const {
    return account_;
  }
  // `label` is the session's, for the account.
  Memory(int64_t limit, BudgetPtr budget, Session& session, AccountPtr account = nullptr, std::string label = {});
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  // What a storage is called, as long as somebody holds it; a storage nobody holds has no name.
  struct Identity {
    int64_t id = 0;
    int64_t version = 0;  // another one after every write
  };
  Identity identity(c10::StorageImpl* storage) const;
  void identify(c10::StorageImpl* storage, Identity identity);
  // nullptr: there is none.
  c10::StorageImpl* find(int64_t id);

  void hold(Holder& holder, Kind kind);
  void release(Holder& holder);
  // After a step that wrote to it: the tensor may have been resized or given another storage.
  void refresh(Holder& holder);
  // Refused (memory) when `bytes` more would pass the limit.
  void admit(int64_t bytes, const char* what);
  void admit_shared(int64_t bytes, const SharedBytesPtr& shared, bool counted);
  // The same for a storage whose bytes are to come back.
  void admit_back(const c10::StorageImpl& storage);
  // Call before anything writes into the storage.
  void own(c10::StorageImpl& storage);
  // The storage's bytes are shared from now on.
  void shared(c10::StorageImpl& storage);
  // The storage's bytes are a content that sessions of the device share: the device counts them, once.
  void share(c10::StorageImpl& storage, const SharedBytesPtr& bytes);
  // The storage's bytes have left the device, or are there again.
  void went(c10::StorageImpl& storage);
  void came_back(c10::StorageImpl& storage);

  int64_t live() const {
    return live_;
  }
  int64_t peak() const {
    return peak_;
  }
  // From any thread.
  int64_t live(Kind kind) const {
    return by_kind_[static_cast<size_t>(kind)].load(std::memory_order_relaxed);
  }
  // Bytes of values that have left the device. From any thread.
  int64_t away() const {
    return away_.load(std::memory_order_relaxed);
  }
  bool limited() const {
    return limit_ > 0 || budget_ != nullptr || account_ != nullptr;
  }
  // Whether `bytes` more would pass the session's limit, or that of the sessions it shares one with.
  bool lacks(int64_t bytes) const {
    return lacks_itself(bytes) || (account_ && account_->lacks(bytes));
  }
  // The same after what is idle has left, if that helps.
  bool lacks_after_all(int64_t bytes);
  // "needs 400 bytes, 1000 of the session's 1200 are in use: …", of an allocation that lacks memory; `held` of those in
  // use are its own already.
  std::string shortage(int64_t need, int64_t held = 0) const;
  // The device's count is exact.
  void flush();
  const BudgetPtr& budget() const {
    return budget_;
  }

 private:
  struct Entry {
    size_t holders = 0;
    int64_t bytes = 0;
    Identity identity;
    Kind kind = Kind::intermediate;
    bool charged = true;  // to the device by this session; else by the bytes themselves
    bool away = false;
    std::weak_ptr<SharedBytes> shared;  // as which the account has it; none: it is the session's own
  };
  Gone make_room(int64_t bytes);
  bool lacks_own(int64_t bytes) const {
    return limit_ > 0 && bytes > limit_ - live_;
  }
  void change(const Entry& entry, int64_t bytes);
  void become(Entry& entry, Kind kind);
  bool lacks_itself(int64_t bytes) const {
    return lacks_own(bytes) ||
        (budget_ && bytes > budget_->limit - budget_->live.load(std::memory_order_relaxed) - pending_);
  }
  void charge(Entry& entry, const c10::StorageImpl& storage);
  void discharge(Entry& entry);
  void recharge(Entry& entry, const c10::StorageImpl& storage);

  ska::flat_hash_map<c10::StorageImpl*, Entry> entries_;
  ska::flat_hash_map<int64_t, c10::StorageImpl*> found_;  // by id, as it was when one was looked for last
  int64_t stamp_ = first_stamp();  // ids and versions are counted on from here
  const int64_t limit_;  // 0: none
  const BudgetPtr budget_;  // null: none
  Session& session_;
  const AccountPtr account_;  // null: none
  const StakePtr stake_;
  const int64_t quantum_;
  int64_t live_ = 0;
  int64_t peak_ = 0;
  int64_t pending_ = 0;  // what the device was not told yet
  std::array<std::atomic<int64_t>, kinds> by_kind_{};
  std::atomic<int64_t> away_{0};
};

// Host memory that is allocated on this thread meanwhile is zeroed: it may have been another session's.
class ClearedMemory {
 public:
  ClearedMemory();
  ~ClearedMemory();
  ClearedMemory(const ClearedMemory&) = delete;
  ClearedMemory& operator=(const ClearedMemory&) = delete;
};

// While it lives, CPU allocations of this thread that would pass the limit fail before they are made.
class AllocationLimit {
 public:
  explicit AllocationLimit(Memory& memory);
  ~AllocationLimit();
  AllocationLimit(const AllocationLimit&) = delete;
  AllocationLimit& operator=(const AllocationLimit&) = delete;

 private:
  Memory* previous_;
};

// "1.5 GB"
std::string bytes_text(int64_t bytes);

}  // namespace genie_local
