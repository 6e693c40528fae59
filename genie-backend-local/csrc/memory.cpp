#include "memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <mutex>
#include <random>

namespace genie_local {
namespace {

c10::StorageImpl* storage_of(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage()) {
    return nullptr;
  }
  return tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
}

thread_local const Memory* limiting = nullptr;

// Asks the limit of the session that runs on this thread, then the allocator that was there before.
class LimitedAllocator final : public c10::Allocator {
 public:
  explicit LimitedAllocator(c10::Allocator* inner) : inner_(inner) {}

  c10::DataPtr allocate(size_t size) override {
    if (limiting != nullptr) {
      const auto need = static_cast<int64_t>(size);
      TORCH_CHECK_WITH(
          OutOfMemoryError,
          need >= 0 && !limiting->lacks(need),
          limiting->shortage(need));
    }
    return inner_->allocate(size);
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

void drop(void* context) {
  delete static_cast<SharedBytesPtr*>(context);
}

SharedBytesPtr* shared(const c10::StorageImpl& storage) {
  const auto& data = storage.data_ptr();
  return data.get_deleter() == &drop ? static_cast<SharedBytesPtr*>(data.get_context()) : nullptr;
}

c10::DataPtr refer(const SharedBytesPtr& bytes) {
  return {bytes->data.get(), new SharedBytesPtr(bytes), &drop, bytes->data.device()};
}

}  // namespace

void Memory::change(int64_t bytes) {
  live_ += bytes;
  peak_ = std::max(peak_, live_);
  if (budget_) {
    budget_->live += bytes;
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
  entries_.find(storage)->second.identity = identity;
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

void Memory::hold(Holder& holder) {
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
    change(entry.bytes);
  }
}

void Memory::release(Holder& holder) {
  if (holder.storage != nullptr) {
    const auto found = entries_.find(holder.storage);
    if (--found->second.holders == 0) {
      change(-found->second.bytes);
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
    at::Tensor tensor = holder.tensor;
    release(holder);
    holder.tensor = std::move(tensor);
    hold(holder);
  } else if (storage != nullptr) {
    auto& entry = entries_.find(storage)->second;
    entry.identity.version = ++stamp_;
    const auto bytes = static_cast<int64_t>(storage->nbytes());
    if (bytes != entry.bytes) {
      change(bytes - entry.bytes);
      entry.bytes = bytes;
    }
  }
}

void Memory::admit(int64_t bytes, const char* what) const {
  if (lacks(bytes)) {
    throw Refused(Refusal::memory, std::string(what) + " " + shortage(bytes));
  }
}

std::string Memory::shortage(int64_t need, int64_t held) const {
  const bool own = !budget_ || (limit_ > 0 && need > limit_ - (live_ - held));
  const int64_t live = own ? live_ : budget_->live.load();
  return "needs " + std::to_string(need) + " bytes, " + std::to_string(live - held) + " of the " +
      (own ? "session's " : "device's ") + std::to_string(own ? limit_ : budget_->limit) + " are in use";
}

AllocationLimit::AllocationLimit(const Memory& memory) : previous_(limiting) {
  if (memory.limited()) {
    install_limited_allocator();
    limiting = &memory;
  } else {
    limiting = nullptr;
  }
}

AllocationLimit::~AllocationLimit() {
  limiting = previous_;
}

SharedBytesPtr share(c10::StorageImpl& storage) {
  if (const auto* bytes = shared(storage)) {
    return *bytes;
  }
  auto bytes = std::make_shared<SharedBytes>();
  bytes->data = storage.set_data_ptr(c10::DataPtr(nullptr, storage.device()));
  storage.set_data_ptr_noswap(refer(bytes));
  return bytes;
}

c10::Storage adopt(const SharedBytesPtr& bytes, size_t size) {
  return c10::Storage(
      c10::Storage::use_byte_size_t(),
      size,
      refer(bytes),
      c10::GetAllocator(bytes->data.device().type()),
      /*resizable=*/true);
}

void unshare(c10::StorageImpl& storage) {
  const auto* bytes = shared(storage);
  if (bytes == nullptr || bytes->use_count() == 1) {
    return;
  }
  auto* allocator = c10::GetAllocator(storage.device_type());
  auto copy = allocator->allocate(storage.nbytes());
  allocator->copy_data(copy.get(), (*bytes)->data.get(), storage.nbytes());
  storage.set_data_ptr_noswap(std::move(copy));
}

}  // namespace genie_local
