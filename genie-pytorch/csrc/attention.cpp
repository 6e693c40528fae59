#include "attention.h"

#include "value.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/_fused_sdp_choice.h>

namespace genie {

namespace {

// A CPU tensor of the same geometry and no memory: the choice looks at geometry alone.
at::Tensor shadow(const at::Tensor& tensor) {
  c10::Storage storage(c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(),
      0,
      c10::DataPtr(nullptr, c10::Device(c10::DeviceType::CPU)),
      nullptr,
      /*resizable=*/false));
  auto result = at::detail::make_tensor_base<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  result.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides());
  at::Tensor out(std::move(result));
  if (tensor.requires_grad()) {
    out.set_requires_grad(true);
  }
  return out;
}

} // namespace

bool host_attention_is_fused(
    const at::Tensor& query,
    const at::Tensor& key,
    const at::Tensor& value,
    const std::optional<at::Tensor>& mask,
    double dropout,
    bool causal,
    std::optional<double> scale,
    bool grouped) {
  std::optional<at::Tensor> shadow_mask;
  if (mask.has_value() && mask->defined()) {
    shadow_mask = shadow(*mask);
  }
  constexpr int64_t kFlash = 1; // sdp::SDPBackend::flash_attention
  return at::_fused_sdp_choice(
             shadow(query), shadow(key), shadow(value), shadow_mask, dropout, causal, scale, grouped) == kFlash;
}

} // namespace genie
