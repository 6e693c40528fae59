// What the client knows of a value that lives on a node: a name for it, and its geometry.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/TensorImpl.h>
#include <c10/util/SmallVector.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace genie {

struct Stream;

// Geometry of a tensor, as the operator that makes it decides.
struct Spec {
  c10::SmallVector<int64_t, 5> sizes;
  c10::SmallVector<int64_t, 5> strides;
  int64_t offset = 0;
  at::ScalarType dtype = at::kFloat;
  bool conj = false;
  bool neg = false;
  bool defined = true;

  bool operator==(const Spec& other) const {
    return dtype == other.dtype && offset == other.offset && conj == other.conj && neg == other.neg &&
        defined == other.defined && sizes == other.sizes && strides == other.strides;
  }
};

Spec spec_of(const at::Tensor& tensor);

// One SSA value. Tensors that are the same value (detach, .data) share it: PyTorch copies the backend meta along.
// While its segment is pending a value is known by its index there; once the segment is sent, by its handle.
struct Value final : c10::BackendMeta {
  explicit Value(int16_t device) : device(device), epoch(current_epoch) {}
  ~Value() override;

  // One per operator: their memory is kept and used again.
  static void* operator new(size_t size);
  static void operator delete(void* memory, size_t size);

  // The stream of the pending segment that makes it; null once that is sent.
  Stream* home() const {
    return pending ? maker : nullptr;
  }

  // Position in the segment that saw this value last; meaningless unless `segment` is that segment's serial.
  uint64_t segment = 0;
  uint64_t handle = 0;     // 0 until sent
  Stream* maker = nullptr; // stream that made it: a backward pass records where its operands were made
  const std::string* failure = nullptr; // why it was never made, where its segment could not be sent
  uint32_t index = 0;
  int16_t device;
  bool pending = false;
  bool released = false; // the node knows it is gone: no free to send
  uint32_t epoch;        // the life of the sessions it belongs to
  uint32_t mark = 0;     // what the user said of it; see mark_value

  static std::atomic<uint32_t> current_epoch;
};

using ValuePtr = c10::intrusive_ptr<Value>;

// Says `mark` of a value. The caller holds the recorder's lock, as whoever asks does.
void mark_value(Value& value, uint32_t mark);
bool any_value_marked();
// (handle, mark) of the living values on a device that are marked and sent.
std::vector<std::pair<uint64_t, uint32_t>> marked_values(int16_t device);

// Context of every storage on the device. Values are held weakly: a storage must not keep a temporary alive.
struct StorageContext {
  static void* operator new(size_t size);
  static void operator delete(void* memory, size_t size);

  c10::weak_intrusive_ptr<Value> first{c10::intrusive_ptr<Value>()};
  c10::weak_intrusive_ptr<Value> latest{c10::intrusive_ptr<Value>()};
  ValuePtr root; // set for storages made by the allocator, which no operator made
  // The last stream that touched this memory and the segment it did so in: another stream must let it go first.
  Stream* stream = nullptr;
  uint64_t segment = 0;
};

StorageContext* context_of(const c10::Storage& storage);

// The value behind a tensor, or null when the tensor was made around the dispatcher (from a bare storage).
inline Value* value_of(const at::Tensor& tensor) {
  return static_cast<Value*>(tensor.unsafeGetTensorImpl()->get_backend_meta());
}

void set_value(const at::Tensor& tensor, ValuePtr value);

// A tensor with fresh storage, or a view of `base`'s storage.
at::Tensor make_tensor(const Spec& spec, ValuePtr value, const at::Tensor* base = nullptr);

c10::Storage make_storage(int64_t nbytes, int16_t device);

// A FakeTensor, or what its mode makes on the way: it has the device's key and nobody's memory.
inline bool is_fake(const at::Tensor& tensor) {
  auto* impl = tensor.unsafeGetTensorImpl();
  return impl->is_python_dispatch() ||
      (impl->has_storage() && impl->unsafe_storage().device_type() != c10::DeviceType::PrivateUse1 &&
       impl->key_set().has_backend(c10::BackendComponent::PrivateUse1Bit));
}

inline bool on_device(const at::Tensor& tensor) {
  return tensor.device().type() == c10::DeviceType::PrivateUse1;
}

} // namespace genie
