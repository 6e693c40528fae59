// Bytes between the program's memory and the node's.
#include "adopt.h"
#include "infer.h"
#include "port.h"
#include "record.h"
#include "source.h"

#include <ATen/ATen.h>
#include <Python.h>
#include <torch/csrc/autograd/python_variable.h>

#include <sys/mman.h>

namespace genie {

namespace {

// Parameters are likely to be known to the node already: they are offered by content.
bool is_parameter(const at::Tensor& tensor) {
  constexpr size_t kWorthwhile = 1 << 12;
  if (tensor.nbytes() < kWorthwhile || !tensor.is_leaf()) {
    return false;
  }
  const auto gil = PyGILState_Ensure();
  bool found = false;
  PyObject* object = THPVariable_Wrap(tensor);
  if (object != nullptr) {
    found = ParameterClass != nullptr && PyObject_IsInstance(object, ParameterClass) == 1;
    Py_DECREF(object);
  }
  clear_error();
  PyGILState_Release(gil);
  return found;
}

at::Tensor upload(const at::Tensor& contiguous, int16_t device, bool weight) {
  Spec spec = spec_of(contiguous);
  spec.offset = 0;
  auto value = c10::make_intrusive<Value>(device);
  {
    Lock lock;
    value->handle = new_handle(device);
    note_upload(device, value->handle);
    value->maker = &stream_for(device, nullptr);
    send_forgotten(device);
  }
  try {
    port::upload(device, value->handle, spec, contiguous.const_data_ptr(), contiguous.nbytes(), weight);
  } catch (...) {
    value->released = true; // the node never had it
    throw;
  }
  return make_tensor(spec, std::move(value));
}

} // namespace

at::Tensor to_device(const at::Tensor& host, int16_t device, bool keep_layout) {
  if (host.layout() != at::kStrided || host.is_quantized()) {
    port::refuse(
        "aten::_to_copy",
        c10::str("a tensor of layout ", host.layout(), host.is_quantized() ? " (quantized)" : "", " can't be on ",
                 "remote_accelerator; make it dense first (.to_dense(), .dequantize())"));
  }
  const bool weight = is_parameter(host);
  at::AutoDispatchBelowADInplaceOrView below;
  const auto plain = host.resolve_conj().resolve_neg();
  if (plain.is_contiguous()) {
    return upload(plain, device, weight);
  }
  if (keep_layout && plain.is_non_overlapping_and_dense()) {
    const auto flat = at::as_strided(plain, {plain.numel()}, {1}, plain.storage_offset());
    return at::as_strided(upload(flat, device, weight), plain.sizes(), plain.strides(), 0);
  }
  return upload(plain.contiguous(), device, weight);
}

namespace {

// Into `result`: contiguous, on the CPU, of the same shape and dtype.
void fetch_into(const at::Tensor& tensor, const at::Tensor& result) {
  if (tensor.numel() == 0) {
    return;
  }
  const auto device = static_cast<int16_t>(tensor.device().index());
  uint64_t handle;
  ValuePtr held;
  {
    Lock lock;
    auto& stream = stream_for(device, value_of(tensor));
    touch(stream, tensor);
    held = ValuePtr::reclaim_copy(value_of(tensor));
    handle = settle(held);
    send_forgotten(device);
  }
  port::fetch(device, handle, result.mutable_data_ptr(), result.nbytes());
}

} // namespace

at::Tensor to_host(const at::Tensor& tensor) {
  at::AutoDispatchBelowADInplaceOrView below;
  auto result = at::empty(tensor.sizes(), at::TensorOptions().dtype(tensor.dtype()).device(at::kCPU));
  constexpr size_t kLarge = size_t(4) << 20;
  constexpr uintptr_t kPage = 4096;
  if (result.nbytes() >= kLarge) {
    // Untouched memory: faulting it in by small pages would take longer than receiving into it.
    const auto start = (reinterpret_cast<uintptr_t>(result.mutable_data_ptr()) + kPage - 1) & ~(kPage - 1);
    const auto end = (reinterpret_cast<uintptr_t>(result.mutable_data_ptr()) + result.nbytes()) & ~(kPage - 1);
    madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
  }
  fetch_into(tensor, result);
  return result;
}

namespace kernels {

at::Tensor to_copy(
    const at::Tensor& self,
    std::optional<at::ScalarType> dtype,
    std::optional<at::Layout> layout,
    std::optional<at::Device> device,
    std::optional<bool> pin_memory,
    bool non_blocking,
    std::optional<at::MemoryFormat> memory_format) {
  const auto target = device.value_or(self.device());
  const auto format = memory_format.value_or(at::MemoryFormat::Preserve);
  at::AutoDispatchBelowADInplaceOrView below;
  if (target.type() == c10::DeviceType::PrivateUse1) {
    const auto index = target.has_index() ? target.index() : current_device();
    if (on_device(self) && self.device().index() == index) {
      static const Operator& op = operator_for(c10::Dispatcher::singleton().findSchemaOrThrow("aten::_to_copy", ""));
      torch::jit::Stack stack;
      torch::jit::push(
          stack, self, dtype, layout, std::optional<at::Device>(), pin_memory, false, memory_format);
      record(op, &stack);
      return stack[0].toTensor();
    }
    at::Tensor host = on_device(self) ? to_host(self) : self;
    if ((dtype.has_value() && *dtype != host.scalar_type()) || format != at::MemoryFormat::Preserve) {
      host = at::_to_copy(host, dtype, layout, at::Device(at::kCPU), false, false, memory_format);
    }
    return to_device(host, static_cast<int16_t>(index), true);
  }
  port::looked(static_cast<int16_t>(self.device().index()), "aten::_to_copy");
  at::Tensor host = to_host(self);
  const bool relayout = !self.is_contiguous() && self.is_non_overlapping_and_dense();
  if (format == at::MemoryFormat::Preserve && relayout) {
    auto laid = at::empty_strided(self.sizes(), self.strides(), host.options());
    laid.copy_(host);
    host = laid;
  }
  const bool convert = (dtype.has_value() && *dtype != host.scalar_type()) || format != at::MemoryFormat::Preserve ||
      target.type() != c10::DeviceType::CPU || pin_memory.value_or(false);
  return convert ? at::_to_copy(host, dtype, layout, target, pin_memory, non_blocking, memory_format) : host;
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  at::AutoDispatchBelowADInplaceOrView below;
  if (!on_device(self)) {
    port::looked(static_cast<int16_t>(source.device().index()), "aten::copy_");
    if (self.device().is_cpu() && self.is_contiguous() && self.scalar_type() == source.scalar_type() &&
        self.sizes() == source.sizes() && !self.is_conj() && !self.is_neg()) {
      fetch_into(source, self);
      return self;
    }
    return self.copy_(to_host(source), non_blocking);
  }
  at::Tensor operand = source;
  if (!on_device(source)) {
    if (source.dim() != 0 || source.is_complex()) {
      operand = to_device(source, static_cast<int16_t>(self.device().index()), true);
    }
  } else if (source.device() != self.device()) {
    operand = to_device(to_host(source), static_cast<int16_t>(self.device().index()), true);
  }
  static const Operator& op = operator_for(c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", ""));
  torch::jit::Stack stack;
  torch::jit::push(stack, self, operand, false);
  record(op, &stack);
  return self;
}

at::Scalar local_scalar_dense(const at::Tensor& self) {
  TORCH_CHECK(
      self.numel() == 1,
      "a Tensor with ",
      self.numel(),
      " elements cannot be converted to Scalar");
  port::looked(static_cast<int16_t>(self.device().index()), "aten::item");
  return to_host(self).item();
}

} // namespace kernels

} // namespace genie
