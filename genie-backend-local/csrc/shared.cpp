#include "shared.h"

#include <c10/core/Allocator.h>

#include <chrono>
#include <exception>

namespace genie_local {
namespace {

using Lock = std::lock_guard<std::mutex>;
using Clock = std::chrono::steady_clock;

void drop(void* context) {
  auto* bytes = static_cast<SharedBytesPtr*>(context);
  --(*bytes)->attached;
  delete bytes;
}

SharedBytesPtr* shared(const c10::StorageImpl& storage) {
  const auto& data = storage.data_ptr();
  return data.get_deleter() == &drop ? static_cast<SharedBytesPtr*>(data.get_context()) : nullptr;
}

// With the bytes' lock.
c10::DataPtr refer(const SharedBytesPtr& bytes) {
  ++bytes->attached;
  return {bytes->data.get(), new SharedBytesPtr(bytes), &drop, bytes->device};
}

}  // namespace

SharedBytes::~SharedBytes() {
  if (budget && data.get() != nullptr) {
    budget->change(-static_cast<int64_t>(size));
    budget->contents -= static_cast<int64_t>(size);
  }
}

SharedBytesPtr share(c10::StorageImpl& storage) {
  if (const auto* bytes = shared(storage)) {
    return *bytes;
  }
  auto bytes = std::make_shared<SharedBytes>();
  bytes->size = storage.nbytes();
  bytes->device = storage.device();
  bytes->data = storage.set_data_ptr(c10::DataPtr(nullptr, storage.device()));
  storage.set_data_ptr_noswap(refer(bytes));
  return bytes;
}

SharedBytesPtr shared_bytes(const c10::StorageImpl& storage) {
  const auto* bytes = shared(storage);
  return bytes == nullptr ? nullptr : *bytes;
}

c10::Storage adopt(const SharedBytesPtr& bytes, size_t size) {
  const Lock lock(bytes->lock);
  return c10::Storage(
      c10::Storage::use_byte_size_t(),
      size,
      refer(bytes),
      c10::GetAllocator(bytes->device.type()),
      /*resizable=*/true);
}

bool unshare(c10::StorageImpl& storage) {
  const auto* bytes = shared(storage);
  if (bytes == nullptr) {
    return false;
  }
  if (bytes->use_count() == 1) {
    Source other;  // is let go after the lock: that may need the interpreter
    const Lock lock((*bytes)->lock);
    std::swap(other, (*bytes)->source);
    return false;
  }
  auto* allocator = c10::GetAllocator(storage.device_type());
  auto copy = allocator->allocate(storage.nbytes());
  allocator->copy_data(copy.get(), storage.data_ptr().get(), storage.nbytes());
  storage.set_data_ptr_noswap(std::move(copy));
  return true;
}

void back(const SharedBytesPtr& bytes, Source source) {
  const Lock lock(bytes->lock);
  std::swap(bytes->source, source);
}

bool forsake(const SharedBytesPtr& bytes) {
  Source other;
  const Lock lock(bytes->lock);
  if (bytes->data.get() == nullptr && bytes->swapped == nullptr && bytes->attached > 0) {
    return false;
  }
  std::swap(bytes->source, other);
  return true;
}

std::shared_ptr<void> pin(const SharedBytesPtr& bytes) {
  ++bytes->readers;
  return {bytes->data.get(), [bytes](void*) { --bytes->readers; }};
}

bool put_out(
    const SharedBytesPtr& bytes,
    const std::vector<c10::StorageImpl*>& storages,
    Budget& budget,
    const AccountPtr& account) {
  const Lock lock(bytes->lock);
  if (bytes->data.get() == nullptr || bytes->readers > 0 ||
      bytes->attached != static_cast<int64_t>(storages.size())) {
    return false;
  }
  const auto start = Clock::now();
  const bool again = bytes->source.data != nullptr;
  if (!again) {
    auto swapped = budget.swap ? budget.swap->take(bytes->size, account) : nullptr;
    if (!swapped) {
      return false;
    }
    try {
      swapped->write(bytes->data.get(), bytes->device);
    } catch (const std::exception&) {  // a disk that fails takes nothing
      return false;
    }
    bytes->swapped = std::move(swapped);
  }
  bytes->data = c10::DataPtr(nullptr, bytes->device);
  for (auto* storage : storages) {
    storage->set_data_ptr_noswap(refer(bytes));
  }
  if (bytes->budget) {
    bytes->budget->change(-static_cast<int64_t>(bytes->size));
    bytes->budget->contents -= static_cast<int64_t>(bytes->size);
  }
  (again ? budget.evicted : budget.swapped_out).add(bytes->size, Clock::now() - start);
  return true;
}

void bring_back(c10::StorageImpl& storage, Budget* budget) {
  const auto bytes = shared_bytes(storage);
  const Lock lock(bytes->lock);
  if (bytes->data.get() == nullptr) {
    const auto start = Clock::now();
    auto data = c10::GetAllocator(bytes->device.type())->allocate(bytes->size);
    const bool swapped = bytes->swapped != nullptr;
    if (swapped) {
      bytes->swapped->read(data.get(), bytes->device);
      bytes->swapped.reset();
    } else {
      to_device(data.get(), bytes->source.data, bytes->size, bytes->device);
    }
    bytes->data = std::move(data);
    if (bytes->budget) {
      bytes->budget->change(static_cast<int64_t>(bytes->size));
      bytes->budget->contents += static_cast<int64_t>(bytes->size);
    }
    if (budget != nullptr) {
      (swapped ? budget->swapped_in : budget->restored).add(bytes->size, Clock::now() - start);
    }
  }
  storage.set_data_ptr_noswap(refer(bytes));
}

}  // namespace genie_local
