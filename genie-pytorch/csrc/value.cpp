#include "value.h"

#include "adopt.h"
#include "stream.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/Allocator.h>

#include <sys/mman.h>

#include <mutex>
#include <unordered_set>

namespace genie {

namespace {

std::mutex marked_guard;
auto& marked = *new std::unordered_set<const Value*>(); // values outlive static objects

// Storages need addresses that are unique (programs tell shared weights apart by them) and can't be touched by
// mistake: numbers inside a region reserved without access.
constexpr uintptr_t kRegion = uintptr_t(1) << 42;

uintptr_t take_address(size_t nbytes) {
  static const uintptr_t base = [] {
    void* region = mmap(nullptr, kRegion, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TORCH_CHECK(region != MAP_FAILED, "genie: cannot reserve address space for remote storages");
    return reinterpret_cast<uintptr_t>(region);
  }();
  static std::atomic<uintptr_t> next{64};
  const uintptr_t size = (nbytes + 127) & ~uintptr_t(63);
  return base + next.fetch_add(size, std::memory_order_relaxed) % (kRegion - 64);
}

void delete_context(void* context) {
  delete static_cast<StorageContext*>(context);
}

struct RemoteAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t nbytes) override {
    const auto device = current_device();
    auto* context = new StorageContext();
    c10::DataPtr data(
        reinterpret_cast<void*>(take_address(nbytes)),
        context,
        &delete_context,
        c10::Device(c10::DeviceType::PrivateUse1, device));
    if (nbytes > 0) {
      context->root = make_root(static_cast<int64_t>(nbytes), device);
      context->first = c10::weak_intrusive_ptr<Value>(context->root);
    }
    return data;
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return nullptr;
  }
  void copy_data(void*, const void*, size_t) const override {
    TORCH_CHECK(false, "genie: memory on remote_accelerator is not addressable here");
  }
};

RemoteAllocator allocator;

const bool registered = [] {
  c10::SetAllocator(c10::DeviceType::PrivateUse1, &allocator);
  return true;
}();

} // namespace

std::atomic<uint32_t> Value::current_epoch{0};

namespace {

// A thread's freed blocks of one size. Blocks may come back on another thread than they were taken on.
template <size_t Size>
struct Blocks {
  static constexpr size_t kMost = 512;
  void* kept[kMost];
  size_t count = 0;
  bool over = false; // the thread is ending: nothing is kept any more

  ~Blocks() {
    over = true;
    while (count > 0) {
      ::operator delete(kept[--count]);
    }
  }
  void* take() {
    return count > 0 ? kept[--count] : ::operator new(Size);
  }
  void put(void* memory) {
    if (over || count == kMost) {
      ::operator delete(memory);
    } else {
      kept[count++] = memory;
    }
  }
};

thread_local Blocks<sizeof(Value)> value_blocks;
thread_local Blocks<sizeof(StorageContext)> context_blocks;

} // namespace

void* Value::operator new(size_t) {
  return value_blocks.take();
}

void Value::operator delete(void* memory, size_t) {
  value_blocks.put(memory);
}

void* StorageContext::operator new(size_t) {
  return context_blocks.take();
}

void StorageContext::operator delete(void* memory, size_t) {
  context_blocks.put(memory);
}

Value::~Value() {
  if (mark != 0) {
    std::lock_guard<std::mutex> lock(marked_guard);
    marked.erase(this);
  }
  if (handle != 0 && !released && epoch == current_epoch.load(std::memory_order_relaxed)) {
    forget(device, handle);
  }
}

void mark_value(Value& value, uint32_t mark) {
  std::lock_guard<std::mutex> lock(marked_guard);
  value.mark = mark;
  marked.insert(&value);
}

bool any_value_marked() {
  std::lock_guard<std::mutex> lock(marked_guard);
  return !marked.empty();
}

std::vector<std::pair<uint64_t, uint32_t>> marked_values(int16_t device) {
  std::lock_guard<std::mutex> lock(marked_guard);
  std::vector<std::pair<uint64_t, uint32_t>> found;
  for (const auto* value : marked) {
    if (value->device == device && value->handle != 0 && value->epoch == Value::current_epoch) {
      found.emplace_back(value->handle, value->mark);
    }
  }
  return found;
}

Spec spec_of(const at::Tensor& tensor) {
  Spec spec;
  spec.sizes.assign(tensor.sizes().begin(), tensor.sizes().end());
  spec.strides.assign(tensor.strides().begin(), tensor.strides().end());
  spec.offset = tensor.storage_offset();
  spec.dtype = tensor.scalar_type();
  spec.conj = tensor.is_conj();
  spec.neg = tensor.is_neg();
  return spec;
}

StorageContext* context_of(const c10::Storage& storage) {
  const auto& data = storage.data_ptr();
  return data.get_deleter() == &delete_context ? static_cast<StorageContext*>(data.get_context()) : nullptr;
}

c10::Storage make_storage(int64_t nbytes, int16_t device) {
  c10::DataPtr data(
      reinterpret_cast<void*>(take_address(nbytes)),
      new StorageContext(),
      &delete_context,
      c10::Device(c10::DeviceType::PrivateUse1, static_cast<c10::DeviceIndex>(device)));
  return c10::Storage(c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), nbytes, std::move(data), &allocator, /*resizable=*/true));
}

void set_value(const at::Tensor& tensor, ValuePtr value) {
  if (auto* context = context_of(tensor.storage())) {
    c10::weak_intrusive_ptr<Value> weak(value);
    if (context->first.expired()) {
      context->first = weak;
    }
    context->latest = std::move(weak);
  }
  tensor.unsafeGetTensorImpl()->set_backend_meta(std::move(value));
}

at::Tensor make_tensor(const Spec& spec, ValuePtr value, const at::Tensor* base) {
  const auto meta = c10::scalarTypeToTypeMeta(spec.dtype);
  c10::Storage storage = base
      ? base->storage()
      : make_storage(
            static_cast<int64_t>(
                at::detail::computeStorageNbytes(spec.sizes, spec.strides, meta.itemsize(), spec.offset)),
            value->device);
  auto tensor = at::detail::make_tensor_base<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), meta);
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(spec.sizes, spec.strides, spec.offset);
  at::Tensor result(std::move(tensor));
  if (spec.conj) {
    result._set_conj(true);
  }
  if (spec.neg) {
    result._set_neg(true);
  }
  set_value(result, std::move(value));
  return result;
}

} // namespace genie
