// Bytes that several owners read, without copies; and that may leave their device and come back.
#pragma once

#include <c10/core/Storage.h>
#include <c10/core/StorageImpl.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "budget.h"

namespace genie_local {

// A host buffer with the same bytes, kept by `keep`.
struct Source {
  const void* data = nullptr;
  std::shared_ptr<void> keep;
};

// A session's value, a memoryview somebody holds, another session's value. Whoever wants to write first makes its own
// copy (`unshare`).
struct SharedBytes {
  ~SharedBytes();

  // Of what follows, all but the atomics are `lock`'s.
  std::mutex lock;
  c10::DataPtr data;  // null: they are away
  size_t size = 0;
  c10::Device device{c10::kCPU};
  Source source;
  std::unique_ptr<Swapped> swapped;
  BudgetPtr budget;  // it counts them; null: the sessions do
  Use use;  // before the sessions that have them now
  std::atomic<int64_t> attached{0};  // storages
  std::atomic<int64_t> readers{0};  // who look at them by their address
};
using SharedBytesPtr = std::shared_ptr<SharedBytes>;

SharedBytesPtr share(c10::StorageImpl& storage);
// Those of the storage, if they are shared.
SharedBytesPtr shared_bytes(const c10::StorageImpl& storage);
// A new storage over shared bytes.
c10::Storage adopt(const SharedBytesPtr& bytes, size_t size);
// Call before anything writes into the storage. Whether it has bytes of its own now, and had others'.
bool unshare(c10::StorageImpl& storage);
// They can be had again from there while nobody writes to them.
void back(const SharedBytesPtr& bytes, Source source);
// The source is wanted elsewhere. False: they are away, and would be lost.
bool forsake(const SharedBytesPtr& bytes);
// Keeps the bytes where they are.
std::shared_ptr<void> pin(const SharedBytesPtr& bytes);

// They leave the device: dropped where there is a source, else to the swap. False: they stay, since somebody besides
// those storages reads them, or there is no place to go.
// The swap's part is the `account`'s.
bool put_out(
    const SharedBytesPtr& bytes,
    const std::vector<c10::StorageImpl*>& storages,
    Budget& budget,
    const AccountPtr& account);
// The storage's bytes are on the device again. Call `Memory::admit_back` before.
void bring_back(c10::StorageImpl& storage, Budget* budget);
// Whether the storage's bytes are elsewhere.
inline bool is_away(const c10::StorageImpl& storage) {
  return storage.nbytes() > 0 && storage.data_ptr().get() == nullptr && storage.data_ptr().get_context() != nullptr;
}

}  // namespace genie_local
