// Operators that must not be recorded as they come, each with its reason.
#include "adopt.h"
#include "attention.h"
#include "port.h"
#include "record.h"

#include <ATen/ATen.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/linear_native.h>
#include <ATen/ops/scaled_dot_product_attention_native.h>
#include <torch/library.h>

#include <unordered_set>

namespace genie {

namespace kernels {

at::Tensor to_copy(
    const at::Tensor&,
    std::optional<at::ScalarType>,
    std::optional<at::Layout>,
    std::optional<at::Device>,
    std::optional<bool>,
    bool,
    std::optional<at::MemoryFormat>);
at::Tensor& copy_(at::Tensor&, const at::Tensor&, bool);
at::Scalar local_scalar_dense(const at::Tensor&);

namespace {

// The same value under another tensor: nothing for the node to do.
at::Tensor same_value(const at::Tensor& self) {
  if (is_fake(self)) {
    return at::native::alias(self);
  }
  if (value_of(self) == nullptr) {
    Lock lock;
    touch(stream_for(static_cast<int16_t>(self.device().index()), nullptr), self);
  }
  return make_tensor(spec_of(self), ValuePtr::reclaim_copy(value_of(self)), &self);
}

at::Tensor& set_storage(
    at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef sizes, at::IntArrayRef strides) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  if (strides.empty() && !sizes.empty()) {
    impl->set_sizes_contiguous(sizes);
    impl->set_storage_offset(offset);
  } else {
    impl->set_sizes_and_strides(sizes, strides, offset);
  }
  // Which value it is follows from the storage, once somebody asks.
  impl->set_backend_meta(nullptr);
  return self;
}

at::Tensor& set_whole_storage(at::Tensor& self, at::Storage source) {
  const auto length = static_cast<int64_t>(source.nbytes() / self.dtype().itemsize());
  return set_storage(self, std::move(source), 0, {length}, {1});
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  if (!self.is_same(source)) {
    set_storage(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
    if (auto* value = value_of(source)) {
      set_value(self, ValuePtr::reclaim_copy(value));
    }
  }
  return self;
}

at::Tensor& set_nothing(at::Tensor& self) {
  return set_storage(
      self, make_storage(0, static_cast<int16_t>(self.device().index())), 0, at::IntArrayRef{0}, at::IntArrayRef{1});
}

bool has_compatible_shallow_copy_type(const at::Tensor& self, const at::Tensor& other) {
  // As between CPU and CUDA: parameters change device in place, so ties and optimizers keep their references.
  const auto fits = [](const at::Tensor& tensor) {
    return tensor.layout() == at::kStrided && !tensor.is_quantized() &&
        (on_device(tensor) || tensor.device().is_cpu()) && !is_fake(tensor);
  };
  return fits(self) && fits(other);
}

bool needs_grad(std::initializer_list<const at::Tensor*> tensors) {
  if (!at::GradMode::is_enabled()) {
    return false;
  }
  for (const auto* tensor : tensors) {
    if (tensor->defined() && tensor->requires_grad()) {
      return true;
    }
  }
  return false;
}

bool any_fake(std::initializer_list<const at::Tensor*> tensors) {
  for (const auto* tensor : tensors) {
    if (tensor->defined() && is_fake(*tensor)) {
      return true;
    }
  }
  return false;
}

// Whether matmul sees one matrix in it: strides count there, also those of dimensions of size one.
bool folds(const at::Tensor& input) {
  for (int64_t i = 0; i + 2 < input.dim(); ++i) {
    if (input.stride(i) != input.stride(i + 1) * input.size(i + 1)) {
      return false;
    }
  }
  return input.is_contiguous();
}

// linear and attention stay whole, for fewer commands and for the node's best kernel; under autograd they take
// the decomposition PyTorch differentiates.
at::Tensor linear(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  const at::Tensor none;
  const at::Tensor& b = bias.has_value() ? *bias : none;
  // Of an input that is not contiguous, what it is composed of depends on which tensors require grad, also where no
  // grad is taken; the node does not know.
  if (needs_grad({&input, &weight, &b}) || any_fake({&input, &weight, &b}) || !folds(input)) {
    return at::native::linear(input, weight, bias);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  static const Operator& op = operator_for(c10::Dispatcher::singleton().findSchemaOrThrow("aten::linear", ""));
  torch::jit::Stack stack;
  torch::jit::push(stack, input, weight, bias);
  record(op, &stack);
  return stack[0].toTensor();
}

at::Tensor attention(
    const at::Tensor& query,
    const at::Tensor& key,
    const at::Tensor& value,
    const std::optional<at::Tensor>& mask,
    double dropout,
    bool causal,
    std::optional<double> scale,
    bool grouped) {
  const at::Tensor none;
  const at::Tensor& m = mask.has_value() ? *mask : none;
  if (any_fake({&query, &key, &value, &m})) {
    return at::native::scaled_dot_product_attention(query, key, value, mask, dropout, causal, scale, grouped);
  }
  if (needs_grad({&query, &key, &value, &m})) {
    if (host_attention_is_fused(query, key, value, mask, dropout, causal, scale, grouped)) {
      std::optional<at::Tensor> additive = mask;
      if (mask.has_value() && mask->defined() && mask->scalar_type() == at::kBool) {
        // As PyTorch's own composite turns a keep-mask into an additive one.
        auto zeros = at::zeros_like(*mask, mask->options().dtype(query.dtype()));
        additive = at::where(*mask, zeros, at::scalar_tensor(-std::numeric_limits<double>::infinity(), zeros.options()));
      }
      return std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(
          query, key, value, dropout, causal, additive, scale));
    }
    return at::native::scaled_dot_product_attention(query, key, value, mask, dropout, causal, scale, grouped);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  static const Operator& op =
      operator_for(c10::Dispatcher::singleton().findSchemaOrThrow("aten::scaled_dot_product_attention", ""));
  torch::jit::Stack stack;
  torch::jit::push(stack, query, key, value, mask, dropout, causal, scale, grouped);
  record(op, &stack);
  return stack[0].toTensor();
}

// An assertion whose failure nobody could look at: it is looked at here, as CUDA does where it must.
void assert_now(const at::Tensor& self, std::string_view message) {
  port::looked(static_cast<int16_t>(self.device().index()), "aten::_assert_async");
  TORCH_CHECK(to_host(self).item().toBool(), message);
}

void assert_async(const at::Tensor& self) {
  assert_now(self, "Expected Tensor with single nonzero value, but got zero");
}

void refuse_layout(const c10::OperatorHandle& handle, torch::jit::Stack*) {
  port::refuse(
      handle.schema().name(),
      "remote_accelerator holds dense, strided tensors only; make the tensor dense first (.to_dense(), .dequantize())");
}

void record_stream(at::Tensor&, c10::Stream) {}

bool is_pinned(const at::Tensor&, std::optional<at::Device>) {
  return false;
}

struct Kernel final : c10::OperatorKernel {
  explicit Kernel(const Operator& op) : op(op) {}
  void operator()(const c10::OperatorHandle&, c10::DispatchKeySet, torch::jit::Stack* stack) {
    record(op, stack);
  }
  const Operator& op;
};

void record_unknown(const c10::OperatorHandle& handle, torch::jit::Stack* stack) {
  const auto& name = handle.schema().name();
  if (name.rfind("aten::", 0) != 0 && name.rfind("prims::", 0) != 0) {
    port::refuse(name, "nodes run PyTorch's own operators only");
  }
  record(operator_for(handle), stack);
}

// Compositions kept as such although they have kernels.
const std::unordered_set<std::string>& left_composed() {
  static const std::unordered_set<std::string> names{
      // Their own kernels look at the values on the host, and raise there.
      "aten::_linalg_check_errors",
      // Its lengths are on the host by contract: its composition is recorded, on the device.
      "aten::_pack_padded_sequence",
      "aten::_assert_tensor_metadata",
  };
  return names;
}

} // namespace

} // namespace kernels

// Every operator that is not a composition of others gets a kernel of its own: through the fallback alone,
// operators with a composite kernel (native_layer_norm) would be taken apart. Those with a kernel here have it already.
void register_operators() {
  static torch::Library library(
      torch::Library::IMPL, "aten", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    if (name.name.rfind("aten::", 0) != 0) {
      continue;
    }
    const auto full = name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
    if (kernels::left_composed().count(full) != 0) {
      continue;
    }
    const auto handle = dispatcher.findSchema(name);
    // A composition with a kernel of its own on the CPU (silu_backward) rounds as that kernel does: kept whole.
    if (!handle.has_value() ||
        (handle->hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd) &&
         !handle->hasKernelForDispatchKey(c10::DispatchKey::CPU)) ||
        handle->hasKernelForDispatchKey(c10::DispatchKey::PrivateUse1)) {
      continue;
    }
    library.impl(
        full.c_str() + 6,
        torch::CppFunction::makeFromBoxedFunctor(std::make_unique<kernels::Kernel>(operator_for(*handle))));
  }
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&kernels::record_unknown>());
}

TORCH_LIBRARY_IMPL(_, SparsePrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&kernels::refuse_layout>());
}

TORCH_LIBRARY_IMPL(_, SparseCsrPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&kernels::refuse_layout>());
}

TORCH_LIBRARY_IMPL(_, QuantizedPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&kernels::refuse_layout>());
}

TORCH_LIBRARY_IMPL(_, NestedTensorPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&kernels::refuse_layout>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("_to_copy", kernels::to_copy);
  m.impl("copy_", kernels::copy_);
  m.impl("_local_scalar_dense", kernels::local_scalar_dense);
  m.impl("detach", kernels::same_value);
  m.impl("alias", kernels::same_value);
  m.impl("lift_fresh", kernels::same_value);
  m.impl("set_.source_Storage", kernels::set_whole_storage);
  m.impl("set_.source_Storage_storage_offset", kernels::set_storage);
  m.impl("set_.source_Tensor", kernels::set_tensor);
  m.impl("set_", kernels::set_nothing);
  m.impl("_has_compatible_shallow_copy_type", kernels::has_compatible_shallow_copy_type);
  m.impl("_assert_async", kernels::assert_async);
  m.impl("_assert_async.msg", kernels::assert_now);
  m.impl("record_stream", kernels::record_stream);
  m.impl("is_pinned", kernels::is_pinned);
  m.impl("linear", kernels::linear);
  m.impl("scaled_dot_product_attention", kernels::attention);
}

TORCH_LIBRARY_IMPL(aten, AutogradPrivateUse1, m) {
  m.impl("linear", kernels::linear);
  m.impl("scaled_dot_product_attention", kernels::attention);
}

} // namespace genie
