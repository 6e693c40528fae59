// Each shim computes exactly what the same program computes natively on the device (tests/local/test_shims.py).
#include "shims.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/as_strided.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/histc.h>
#include <ATen/ops/native_dropout.h>
#include <ATen/ops/native_dropout_backward.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/zeros_like.h>

#include <unordered_map>
#include <vector>

namespace genie_local {
namespace {

using at::Tensor;
using torch::jit::Stack;

class Arguments {
 public:
  Arguments(Stack& stack, size_t count) : stack_(stack), count_(count) {}

  c10::IValue& operator[](size_t index) {
    return torch::jit::peek(stack_, index, count_);
  }
  Tensor tensor(size_t index) {
    auto& value = (*this)[index];
    return value.isNone() ? Tensor() : value.toTensor();
  }
  template <class... Results>
  void reply(Results&&... results) {
    torch::jit::drop(stack_, count_);
    (stack_.emplace_back(std::forward<Results>(results)), ...);
  }

 private:
  Stack& stack_;
  const size_t count_;
};

Tensor cat(const std::vector<Tensor>& tensors) {
  return at::cat(tensors, 1);
}

Tensor maybe_add(const Tensor& tensor, const Tensor& bias) {
  return bias.defined() ? tensor + bias : tensor;
}

// Recurrent cells are fused on CUDA alone; PyTorch chooses the fused form for any device that is not the CPU, so a
// frontend on a device of its own records it. The decompositions are those of the CPU's cells and of their gradients.

// (input_gates, hidden_gates, cx, input_bias?, hidden_bias?) -> (hy, cy, workspace: activated gates)
void lstm_cell(Stack& stack) {
  Arguments arguments(stack, 5);
  const auto hidden = maybe_add(arguments.tensor(1), arguments.tensor(4));
  const auto input = maybe_add(arguments.tensor(0), arguments.tensor(3));
  const auto workspace = hidden + input;
  const auto gates = workspace.unsafe_chunk(4, 1);
  const auto in = gates[0].sigmoid_();
  const auto forget = gates[1].sigmoid_();
  const auto cell = gates[2].tanh_();
  const auto out = gates[3].sigmoid_();
  auto cy = (forget * arguments.tensor(2)).add_(in * cell);
  auto hy = out * cy.tanh();
  arguments.reply(std::move(hy), std::move(cy), workspace);
}

// (grad_hy?, grad_cy?, cx, cy, workspace, has_bias) -> (grad_gates, grad_cx, grad_bias)
void lstm_cell_backward(Stack& stack) {
  Arguments arguments(stack, 6);
  const auto grad_hy = arguments.tensor(0);
  auto grad_cy = arguments.tensor(1);
  const auto cx = arguments.tensor(2);
  const auto cy = arguments.tensor(3);
  const bool has_bias = arguments[5].toBool();
  if (!grad_hy.defined() && !grad_cy.defined()) {
    arguments.reply(Tensor(), Tensor(), Tensor());
    return;
  }
  const auto gates = arguments.tensor(4).unsafe_chunk(4, 1);
  const auto& in = gates[0];
  const auto& forget = gates[1];
  const auto& cell = gates[2];
  const auto& out = gates[3];
  Tensor grad_out = at::zeros_like(out);
  if (grad_hy.defined()) {
    const auto squashed = cy.tanh();
    grad_out = at::sigmoid_backward(grad_hy * squashed, out);
    const auto through = at::tanh_backward(grad_hy * out, squashed);
    grad_cy = grad_cy.defined() ? grad_cy + through : through;
  }
  auto grad_gates = cat(
      {at::sigmoid_backward(grad_cy * cell, in),
       at::sigmoid_backward(grad_cy * cx, forget),
       at::tanh_backward(grad_cy * in, cell),
       grad_out});
  auto grad_bias = has_bias ? grad_gates.sum(at::IntArrayRef{0}) : Tensor();
  auto grad_cx = grad_cy * forget;
  arguments.reply(std::move(grad_gates), std::move(grad_cx), std::move(grad_bias));
}

// Kernels round differently at the ends of rows, so which tensors are contiguous and which are parts of wider ones is
// as in the CPU's cell too.
// (input_gates, hidden_gates, hx, input_bias?, hidden_bias?) -> (hy, workspace: reset, update, new, hx, hidden new)
void gru_cell(Stack& stack) {
  Arguments arguments(stack, 5);
  const auto input = maybe_add(arguments.tensor(0), arguments.tensor(3)).unsafe_chunk(3, 1);
  const auto hidden_bias = arguments.tensor(4);
  const auto own = hidden_bias.defined() ? arguments.tensor(1) + hidden_bias : arguments.tensor(1).clone();
  const auto hidden = own.unsafe_chunk(3, 1);
  const auto hx = arguments.tensor(2);
  const auto reset = hidden[0].add_(input[0]).sigmoid_();
  const auto update = hidden[1].add_(input[1]).sigmoid_();
  const auto fresh = input[2].add(hidden[2] * reset).tanh_();
  auto hy = (hx - fresh).mul_(update).add_(fresh);
  auto workspace = cat({reset, update, fresh, hx, hidden[2]});
  arguments.reply(std::move(hy), std::move(workspace));
}

// (grad_hy, workspace, has_bias) -> (grad_input_gates, grad_hidden_gates, grad_hx, grad_input_bias, grad_hidden_bias)
void gru_cell_backward(Stack& stack) {
  Arguments arguments(stack, 3);
  const auto grad = arguments.tensor(0);
  const bool has_bias = arguments[2].toBool();
  const auto parts = arguments.tensor(1).unsafe_chunk(5, 1);
  const auto& reset = parts[0];
  const auto& update = parts[1];
  const auto fresh = parts[2].contiguous();
  const auto& hx = parts[3];
  const auto& hidden_new = parts[4];
  auto grad_hx = grad * update;
  const auto grad_update = at::sigmoid_backward(grad * (hx - fresh), update);
  const auto grad_new = at::tanh_backward(grad + grad_hx.neg(), fresh);
  const auto grad_reset = at::sigmoid_backward(grad_new * hidden_new, reset);
  auto grad_input = cat({grad_reset, grad_update, grad_new});
  auto grad_hidden = cat({grad_reset, grad_update, grad_new * reset});
  auto input_bias = has_bias ? grad_input.sum(at::IntArrayRef{0}) : Tensor();
  auto hidden_bias = has_bias ? grad_hidden.sum(at::IntArrayRef{0}) : Tensor();
  arguments.reply(
      std::move(grad_input), std::move(grad_hidden), std::move(grad_hx), std::move(input_bias), std::move(hidden_bias));
}

// `linear` kept whole has a gradient operator of its own, implemented for nested tensors only. These are the
// gradients autograd takes of the addmm that `linear` is on the CPU and on CUDA.
// (self, grad_output, weight, output_mask) -> (grad_self, grad_weight, grad_bias)
void linear_backward(Stack& stack) {
  Arguments arguments(stack, 4);
  const auto self = arguments.tensor(0);
  const auto grad_output = arguments.tensor(1);
  const auto weight = arguments.tensor(2);
  const auto mask = arguments[3].toBoolList();
  TORCH_CHECK(mask.size() == 3, "linear_backward: output_mask has ", mask.size(), " elements, not 3");
  TORCH_CHECK(weight.dim() == 1 || weight.dim() == 2, "linear_backward: weight is ", weight.dim(), "-D");
  TORCH_CHECK(self.dim() > 0, "linear_backward: self has no dimension");
  const auto matrix = weight.dim() == 2 ? weight : weight.unsqueeze(0);
  const auto inputs = self.reshape({-1, matrix.size(1)});
  const auto grad = grad_output.reshape({-1, matrix.size(0)});
  const auto conjugate = [](const Tensor& tensor) { return tensor.is_complex() ? tensor.conj() : tensor; };
  Tensor grad_self;
  Tensor grad_weight;
  Tensor grad_bias;
  if (mask.get(0)) {
    // A column-major input gets a column-major gradient.
    const bool columns = self.dim() == 2 && self.stride(0) == 1 && self.stride(1) == self.size(0);
    grad_self = columns ? conjugate(matrix).t().mm(grad.t()).t() : grad.mm(conjugate(matrix));
    grad_self = grad_self.reshape(self.sizes());
  }
  if (mask.get(1)) {
    const bool columns = matrix.stride(0) == 1 && matrix.stride(1) == matrix.size(0);
    grad_weight = columns ? conjugate(inputs).t().mm(grad).t() : grad.t().mm(conjugate(inputs));
    grad_weight = grad_weight.reshape(weight.sizes());
  }
  if (mask.get(2)) {
    grad_bias = grad.sum(at::IntArrayRef{0});
  }
  arguments.reply(std::move(grad_self), std::move(grad_weight), std::move(grad_bias));
}

// The kernel trusts sizes and strides; they may come from another machine. as_strided checks them.
// (self, size, stride) -> view
void reshape_alias(Stack& stack) {
  Arguments arguments(stack, 3);
  const auto self = arguments.tensor(0);
  auto view =
      at::as_strided(self, arguments[1].toIntVector(), arguments[2].toIntVector(), self.storage_offset());
  arguments.reply(std::move(view));
}

// On the CPU PyTorch's dropout multiplies by noise that has the input's dtype: each element is a bernoulli draw divided
// by 1 - p. The fused operator, which a frontend on a device of its own records, scales in another precision.
Tensor noise(const Tensor& mask, double keep, at::ScalarType dtype) {
  return mask.to(dtype).div_(keep);
}

// (input, p, train?) -> (output, mask)
void native_dropout(Stack& stack) {
  Arguments arguments(stack, 3);
  const auto input = arguments.tensor(0);
  const auto p = arguments[1].toDouble();
  const auto train = arguments[2].toOptional<bool>();
  auto [output, mask] = at::native_dropout(input, p, train);
  if (train.value_or(true) && p < 1) {
    output = input * noise(mask, 1 - p, input.scalar_type());
  }
  arguments.reply(std::move(output), std::move(mask));
}

// (grad_output, mask, scale) -> grad_input
void native_dropout_backward(Stack& stack) {
  Arguments arguments(stack, 3);
  const auto grad = arguments.tensor(0);
  const auto mask = arguments.tensor(1);
  const auto scale = arguments[2].toDouble();
  if (!grad.is_floating_point() || scale == 0) {
    arguments.reply(at::native_dropout_backward(grad, mask, scale));
    return;
  }
  arguments.reply(grad * noise(mask, 1 / scale, grad.scalar_type()));
}

// CUDA counts integers, the CPU does not; counts and edges are exact in double precision.
// (self, bins, min, max) -> counts
void histc(Stack& stack) {
  Arguments arguments(stack, 4);
  const auto self = arguments.tensor(0);
  const bool integers = at::isIntegralType(self.scalar_type(), /*includeBool=*/false);
  const auto values = integers ? self.to(at::kDouble) : self;
  auto counts = at::histc(values, arguments[1].toInt(), arguments[2].toScalar(), arguments[3].toScalar());
  arguments.reply(integers ? counts.to(self.scalar_type()) : std::move(counts));
}

const std::unordered_map<std::string, Shim>& everywhere() {
  static const std::unordered_map<std::string, Shim> shims = {
      {"aten::linear_backward", linear_backward},
      {"aten::_reshape_alias", reshape_alias},
  };
  return shims;
}

const std::unordered_map<std::string, Shim>& on_cpu() {
  static const std::unordered_map<std::string, Shim> shims = {
      {"aten::_thnn_fused_lstm_cell", lstm_cell},
      {"aten::_thnn_fused_lstm_cell_backward_impl", lstm_cell_backward},
      {"aten::_thnn_fused_gru_cell", gru_cell},
      {"aten::_thnn_fused_gru_cell_backward", gru_cell_backward},
      {"aten::native_dropout", native_dropout},
      {"aten::native_dropout_backward", native_dropout_backward},
      {"aten::histc", histc},
  };
  return shims;
}

}  // namespace

Shim find_shim(const std::string& name, c10::DeviceType device) {
  if (const auto found = everywhere().find(name); found != everywhere().end()) {
    return found->second;
  }
  if (device == c10::DeviceType::CPU) {
    if (const auto found = on_cpu().find(name); found != on_cpu().end()) {
      return found->second;
    }
  }
  return nullptr;
}

}  // namespace genie_local
