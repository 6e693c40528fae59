// What a session's values occupy, and sharing of their bytes without copies.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/flat_hash_map.h>

#include <cstdint>
#include <memory>

#include "refused.h"

namespace genie_local {

// One value: a tensor, or why there is none.
struct Holder {
  at::Tensor tensor;
  FailurePtr failure;
  c10::StorageImpl* storage = nullptr;  // the storage Memory counts for this holder
};

// Live bytes by storage: aliases count once. Not thread-safe.
class Memory {
 public:
  explicit Memory(int64_t limit) : limit_(limit) {}

  void hold(Holder& holder);
  void release(Holder& holder);
  // The tensor may have been resized or given another storage by the step that wrote to it.
  void refresh(Holder& holder);
  // Refused (memory) when `bytes` more would pass the limit.
  void admit(int64_t bytes, const char* what) const;

  int64_t live() const {
    return live_;
  }
  int64_t peak() const {
    return peak_;
  }
  int64_t limit() const {
    return limit_;  // 0: none
  }
  bool exceeded() const {
    return limit_ > 0 && live_ > limit_;
  }

 private:
  struct Entry {
    size_t holders = 0;
    int64_t bytes = 0;
  };
  void grow(int64_t bytes);

  ska::flat_hash_map<c10::StorageImpl*, Entry> entries_;
  const int64_t limit_;
  int64_t live_ = 0;
  int64_t peak_ = 0;
};

// "needs 400 bytes, 1000 of 1200 in use"
std::string shortage(int64_t need, int64_t have, int64_t limit);

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
