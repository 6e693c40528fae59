// What a session's values occupy, and sharing of their bytes without copies.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/flat_hash_map.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "refused.h"

namespace genie_local {

// One value: a tensor, or why there is none.
struct Holder {
  at::Tensor tensor;
  FailurePtr failure;
  c10::StorageImpl* storage = nullptr;  // the storage Memory counts for this holder
};

// What several sessions may use together: each asks before, and counts here what it holds. Between asking and holding
// another may be quicker; the step that then holds too much fails.
struct Budget {
  explicit Budget(int64_t bytes) : limit(bytes) {}
  const int64_t limit;
  std::atomic<int64_t> live{0};
};
using BudgetPtr = std::shared_ptr<Budget>;

// Where a session begins to count: so far from where others do that no two ever use one number, on whatever node.
int64_t first_stamp();

// Live bytes by storage: aliases count once. Not thread-safe.
class Memory {
 public:
  Memory(int64_t limit, BudgetPtr budget) : limit_(limit), budget_(std::move(budget)) {}
  ~Memory() {
    change(-live_);
  }
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

  void hold(Holder& holder);
  void release(Holder& holder);
  // After a step that wrote to it: the tensor may have been resized or given another storage.
  void refresh(Holder& holder);
  // Refused (memory) when `bytes` more would pass the limit.
  void admit(int64_t bytes, const char* what) const;

  int64_t live() const {
    return live_;
  }
  int64_t peak() const {
    return peak_;
  }
  bool limited() const {
    return limit_ > 0 || budget_ != nullptr;
  }
  // Whether `bytes` more would pass the session's limit, or that of the sessions it shares one with.
  bool lacks(int64_t bytes) const {
    return (limit_ > 0 && bytes > limit_ - live_) || (budget_ && bytes > budget_->limit - budget_->live);
  }
  // "needs 400 bytes, 1000 of the session's 1200 are in use", of an allocation that lacks memory; `held` of those in use
  // are its own already.
  std::string shortage(int64_t need, int64_t held = 0) const;

 private:
  struct Entry {
    size_t holders = 0;
    int64_t bytes = 0;
    Identity identity;
  };
  void change(int64_t bytes);

  ska::flat_hash_map<c10::StorageImpl*, Entry> entries_;
  ska::flat_hash_map<int64_t, c10::StorageImpl*> found_;  // by id, as it was when one was looked for last
  int64_t stamp_ = first_stamp();  // ids and versions are counted on from here
  const int64_t limit_;  // 0: none
  const BudgetPtr budget_;  // null: none
  int64_t live_ = 0;
  int64_t peak_ = 0;
};

// While it lives, CPU allocations of this thread that would pass the limit fail before they are made.
class AllocationLimit {
 public:
  explicit AllocationLimit(const Memory& memory);
  ~AllocationLimit();
  AllocationLimit(const AllocationLimit&) = delete;
  AllocationLimit& operator=(const AllocationLimit&) = delete;

 private:
  const Memory* previous_;
};

// Bytes that several owners read: a session's value, a memoryview somebody holds, another session's value.
// Whoever wants to write first makes its own copy (`unshare`).
struct SharedBytes {
  c10::DataPtr data;
};
using SharedBytesPtr = std::shared_ptr<SharedBytes>;

SharedBytesPtr share(c10::StorageImpl& storage);
// A new storage over shared bytes.
c10::Storage adopt(const SharedBytesPtr& bytes, size_t size);
// Call before anything writes into the storage.
void unshare(c10::StorageImpl& storage);

}  // namespace genie_local
