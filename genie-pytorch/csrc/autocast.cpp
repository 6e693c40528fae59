// Automatic mixed precision: the policies PyTorch applies on a CPU, so that a program gives the same numbers.
#include <ATen/autocast_mode.h>
#include <ATen/core/List.h>
#include <torch/library.h>

namespace genie {

namespace {

using torch::jit::Stack;

constexpr auto kDevice = c10::DeviceType::PrivateUse1;

enum class Policy { kLower, kFloat32, kPromote };

template <typename F>
void each_tensor(c10::IValue& value, F&& f) {
  if (value.isTensor() && value.toTensor().defined()) {
    value = f(value.toTensor());
  } else if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& item : value.toTensorVector()) {
      list.push_back(f(item));
    }
    value = std::move(list);
  }
}

struct Cast final : c10::OperatorKernel {
  explicit Cast(Policy policy) : policy(policy) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
    c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastPrivateUse1);
    const size_t count = op.schema().arguments().size();
    const auto first = stack->end() - static_cast<int64_t>(count);
    at::ScalarType to = at::kFloat;
    if (policy == Policy::kLower) {
      to = at::autocast::get_autocast_dtype(kDevice);
    } else if (policy == Policy::kPromote) {
      to = at::autocast::get_lower_precision_fp_from_device_type(kDevice);
      for (auto it = first; it != stack->end(); ++it) {
        each_tensor(*it, [&](const at::Tensor& tensor) {
          to = at::autocast::prioritize(to, tensor, kDevice);
          return tensor;
        });
      }
    }
    for (auto it = first; it != stack->end(); ++it) {
      each_tensor(*it, [&](const at::Tensor& tensor) { return at::autocast::cached_cast(to, tensor, kDevice); });
    }
    op.callBoxed(stack);
  }

  const Policy policy;
};

// The lists of ATen/autocast_mode.cpp for the CPU.
constexpr const char* kLowerPrecision[] = {
    "conv1d", "conv1d.padding", "conv2d", "conv2d.padding", "conv3d", "conv3d.padding", "bmm", "mm",
    "linalg_vecdot", "baddbmm", "addmm", "addbmm", "linear", "_convolution.deprecated", "matmul", "conv_tbc",
    "conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input", "prelu",
    "scaled_dot_product_attention", "_native_multi_head_attention"};

constexpr const char* kFloat32[] = {
    "avg_pool3d", "binary_cross_entropy", "grid_sampler", "polar", "prod", "prod.dim_int", "quantile",
    "quantile.scalar", "nanquantile", "nanquantile.scalar", "stft", "stft.center", "cdist", "grid_sampler_2d",
    "grid_sampler_3d", "trace", "view_as_complex", "cholesky", "cholesky_inverse", "cholesky_solve", "inverse",
    "lu_solve", "orgqr", "ormqr", "pinverse", "max_pool3d", "max_unpool2d", "max_unpool3d", "adaptive_avg_pool3d",
    "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d", "replication_pad3d",
    "mse_loss", "cosine_embedding_loss", "nll_loss", "nll_loss2d", "hinge_embedding_loss", "poisson_nll_loss",
    "smooth_l1_loss", "cross_entropy_loss", "l1_loss", "huber_loss", "margin_ranking_loss", "soft_margin_loss",
    "triplet_margin_loss", "multi_margin_loss", "ctc_loss.IntList", "ctc_loss.Tensor", "kl_div",
    "multilabel_margin_loss", "binary_cross_entropy_with_logits", "fft_fft", "fft_ifft", "fft_fft2", "fft_ifft2",
    "fft_fftn", "fft_ifftn", "fft_rfft", "fft_irfft", "fft_rfft2", "fft_irfft2", "fft_rfftn", "fft_irfftn",
    "fft_hfft", "fft_ihfft", "linalg_cond", "linalg_cond.p_str", "linalg_matrix_rank",
    "linalg_matrix_rank.tol_tensor", "linalg_matrix_rank.atol_rtol_tensor", "linalg_matrix_rank.atol_rtol_float",
    "linalg_solve", "linalg_cholesky", "linalg_svdvals", "linalg_eigvals", "linalg_eigvalsh", "linalg_inv",
    "linalg_householder_product", "linalg_tensorinv", "linalg_tensorsolve", "fake_quantize_per_tensor_affine",
    "geqrf", "lstsq", "_lu_with_info", "qr", "svd", "triangular_solve", "fractional_max_pool2d",
    "fractional_max_pool3d", "adaptive_max_pool3d", "multilabel_margin_loss_forward", "linalg_qr",
    "linalg_cholesky_ex", "linalg_svd", "linalg_eig", "linalg_eigh", "linalg_lstsq", "linalg_inv_ex"};

constexpr const char* kWidest[] = {"stack", "cat", "index_copy"};

template <size_t N>
void register_all(torch::Library& library, const char* const (&names)[N], Policy policy) {
  for (const char* name : names) {
    const std::string text(name);
    const auto dot = text.find('.');
    const auto base = "aten::" + text.substr(0, dot);
    const auto overload = dot == std::string::npos ? std::string() : text.substr(dot + 1);
    // A torch without the operator has nothing to cast.
    if (c10::Dispatcher::singleton().findSchema({base, overload}).has_value()) {
      library.impl(name, torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Cast>(policy)));
    }
  }
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  register_all(m, kLowerPrecision, Policy::kLower);
  register_all(m, kFloat32, Policy::kFloat32);
  register_all(m, kWidest, Policy::kPromote);
}

} // namespace

} // namespace genie
