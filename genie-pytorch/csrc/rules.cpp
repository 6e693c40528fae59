#include "rules.h"

#include "attention.h"
#include "geometry.h"

#include <ATen/ExpandUtils.h>

#include <array>
#include <atomic>

namespace genie {

namespace {

using torch::jit::Stack;

std::array<std::atomic<bool>, 128> host_like{};

Spec& only(Inferred& result, at::ScalarType dtype) {
  result.written.clear();
  result.ask_layout = false;
  result.lengths.assign(1, 1);
  result.specs.resize(1);
  result.specs[0].dtype = dtype;
  result.specs[0].sizes.clear();
  return result.specs[0];
}

bool plain(const c10::IValue& value) {
  return value.isTensor() && is_plain(value.toTensor());
}

bool absent(const c10::IValue& value) {
  return value.isNone() || (value.isTensor() && !value.toTensor().defined());
}

bool real_float(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble;
}

bool matmul(const Operator& op, const Stack& stack, Inferred& result) {
  const bool added = op.name == "aten::addmm" || op.name == "aten::baddbmm";
  const size_t first = added ? 1 : 0;
  if (!stack[first].isTensor() || !stack[first + 1].isTensor()) {
    return false;
  }
  const auto& a = stack[first].toTensor();
  const auto& b = stack[first + 1].toTensor();
  const auto rank = a.dim();
  const bool batched = op.name == "aten::bmm" || op.name == "aten::baddbmm";
  if (!on_device(a) || !on_device(b) || rank != (batched ? 3 : 2) || b.dim() != rank ||
      a.scalar_type() != b.scalar_type() || a.is_conj() || b.is_conj() || a.size(-1) != b.size(-2) ||
      (batched && a.size(0) != b.size(0)) || stack.size() != op.args.size()) {
    return false;
  }
  if (added) {
    // The added tensor must broadcast; anything but the usual bias is left to the meta kernel.
    if (!plain(stack[0])) {
      return false;
    }
    const auto& c = stack[0].toTensor();
    if (c.dim() != 1 || c.size(0) != b.size(-1) || c.scalar_type() != a.scalar_type()) {
      return false;
    }
  } else if (op.args.size() != 2) {
    return false; // an explicit result dtype
  }
  Spec& spec = only(result, a.scalar_type());
  if (batched) {
    spec.sizes.push_back(a.size(0));
  }
  spec.sizes.push_back(a.size(-2));
  spec.sizes.push_back(b.size(-1));
  set_contiguous(spec);
  return true;
}

bool linear(const Stack& stack, Inferred& result) {
  if (!plain(stack[0]) || !plain(stack[1]) || !(absent(stack[2]) || plain(stack[2]))) {
    return false;
  }
  const auto& input = stack[0].toTensor();
  const auto& weight = stack[1].toTensor();
  if (input.dim() < 2 || weight.dim() != 2 || input.size(-1) != weight.size(1) ||
      input.scalar_type() != weight.scalar_type()) {
    return false;
  }
  if (!absent(stack[2])) {
    const auto& bias = stack[2].toTensor();
    if (bias.dim() != 1 || bias.size(0) != weight.size(0) || bias.scalar_type() != weight.scalar_type()) {
      return false;
    }
  }
  Spec& spec = only(result, input.scalar_type());
  spec.sizes.assign(input.sizes().begin(), input.sizes().end());
  spec.sizes.back() = weight.size(0);
  set_contiguous(spec);
  return true;
}

bool attention(const Stack& stack, Inferred& result) {
  for (size_t i = 0; i < 3; ++i) {
    if (!stack[i].isTensor() || !on_device(stack[i].toTensor()) || stack[i].toTensor().dim() != 4) {
      return false;
    }
  }
  const auto& query = stack[0].toTensor();
  const auto& key = stack[1].toTensor();
  const auto& value = stack[2].toTensor();
  const bool grouped = stack[7].toBool();
  if (query.scalar_type() != key.scalar_type() || query.scalar_type() != value.scalar_type() ||
      query.size(0) != key.size(0) || key.size(0) != value.size(0) || query.size(3) != key.size(3) ||
      key.size(2) != value.size(2) || key.size(1) != value.size(1) || (!grouped && query.size(1) != key.size(1)) ||
      !host_like[static_cast<size_t>(query.device().index())]) {
    return false;
  }
  std::optional<at::Tensor> mask;
  if (!absent(stack[3])) {
    mask = stack[3].toTensor();
    if (!on_device(*mask)) {
      return false;
    }
  }
  const auto scale = stack[6].isNone() ? std::nullopt : std::optional<double>(stack[6].toDouble());
  if (!host_attention_is_fused(
          query, key, value, mask, stack[4].toDouble(), stack[5].toBool(), scale, grouped)) {
    return false;
  }
  // The fused kernel lays its result out as the query is.
  if (value.size(3) != query.size(3)) {
    return false;
  }
  Spec& spec = only(result, query.scalar_type());
  spec.sizes.assign(query.sizes().begin(), query.sizes().end());
  set_contiguous(spec);
  const auto strides = query.is_non_overlapping_and_dense() ? query.strides().vec()
                                                            : at::infer_dense_strides(query.sizes(), query.strides());
  spec.strides.assign(strides.begin(), strides.end());
  return true;
}

bool cat(const Stack& stack, Inferred& result) {
  const auto list = stack[0].toTensorList();
  if (list.empty()) {
    return false;
  }
  const at::Tensor first = list.get(0);
  const auto rank = first.dim();
  if (rank == 0) {
    return false;
  }
  const auto dim = stack[1].toInt() < 0 ? stack[1].toInt() + rank : stack[1].toInt();
  if (dim < 0 || dim >= rank) {
    return false;
  }
  int64_t length = 0;
  for (size_t k = 0; k < list.size(); ++k) {
    const at::Tensor item = list.get(k);
    if (!plain(item) || item.dim() != rank || item.scalar_type() != first.scalar_type() || item.numel() == 0 ||
        item.suggest_memory_format() != at::MemoryFormat::Contiguous) {
      return false;
    }
    for (int64_t i = 0; i < rank; ++i) {
      if (i != dim && item.size(i) != first.size(i)) {
        return false;
      }
    }
    length += item.size(dim);
  }
  Spec& spec = only(result, first.scalar_type());
  spec.sizes.assign(first.sizes().begin(), first.sizes().end());
  spec.sizes[static_cast<size_t>(dim)] = length;
  set_contiguous(spec);
  return true;
}

bool softmax(const Stack& stack, Inferred& result) {
  if (!plain(stack[0]) || stack[2].toBool() || !real_float(stack[0].toTensor().scalar_type())) {
    return false;
  }
  const auto& input = stack[0].toTensor();
  if (input.dim() == 0 || stack[1].toInt() < -input.dim() || stack[1].toInt() >= input.dim()) {
    return false;
  }
  Spec& spec = only(result, input.scalar_type());
  spec.sizes.assign(input.sizes().begin(), input.sizes().end());
  set_contiguous(spec);
  return true;
}

bool layer_norm(const Stack& stack, Inferred& result) {
  if (!plain(stack[0]) || !(absent(stack[2]) || plain(stack[2])) || !(absent(stack[3]) || plain(stack[3]))) {
    return false;
  }
  const auto& input = stack[0].toTensor();
  const auto shape = stack[1].toIntVector();
  const auto normalized = static_cast<int64_t>(shape.size());
  if (!real_float(input.scalar_type()) || normalized == 0 || normalized > input.dim()) {
    return false;
  }
  const auto axis = input.dim() - normalized;
  for (int64_t i = 0; i < normalized; ++i) {
    if (input.size(axis + i) != shape[static_cast<size_t>(i)]) {
      return false;
    }
  }
  for (const size_t i : {size_t(2), size_t(3)}) {
    if (!absent(stack[i]) &&
        (stack[i].toTensor().sizes() != at::IntArrayRef(shape) ||
         stack[i].toTensor().scalar_type() != input.scalar_type())) {
      return false;
    }
  }
  result.written.clear();
  result.ask_layout = false;
  result.lengths.assign(3, 1);
  result.specs.resize(3);
  for (auto& spec : result.specs) {
    spec.dtype = input.scalar_type();
    spec.sizes.assign(input.sizes().begin(), input.sizes().end());
  }
  for (const size_t i : {size_t(1), size_t(2)}) {
    for (auto k = static_cast<size_t>(axis); k < static_cast<size_t>(input.dim()); ++k) {
      result.specs[i].sizes[k] = 1;
    }
  }
  for (auto& spec : result.specs) {
    set_contiguous(spec);
  }
  return true;
}

bool batch_norm(const Stack& stack, Inferred& result) {
  if (!plain(stack[0]) || !host_like[static_cast<size_t>(stack[0].toTensor().device().index())]) {
    return false;
  }
  const auto& input = stack[0].toTensor();
  if (!real_float(input.scalar_type()) || input.dim() < 2 ||
      input.suggest_memory_format() != at::MemoryFormat::Contiguous) {
    return false;
  }
  for (size_t i = 1; i < 5; ++i) {
    if (!absent(stack[i]) &&
        (!plain(stack[i]) || stack[i].toTensor().sizes() != at::IntArrayRef{input.size(1)} ||
         stack[i].toTensor().scalar_type() != input.scalar_type())) {
      return false;
    }
  }
  // A CPU saves the batch's statistics in training, and nothing in evaluation.
  const bool training = stack[5].toBool();
  result.written.clear();
  result.ask_layout = false;
  result.lengths.assign(3, 1);
  result.specs.resize(3);
  for (auto& spec : result.specs) {
    spec.dtype = input.scalar_type();
    spec.sizes.assign(1, training ? input.size(1) : 0);
  }
  result.specs[0].sizes.assign(input.sizes().begin(), input.sizes().end());
  for (auto& spec : result.specs) {
    set_contiguous(spec);
  }
  return true;
}

bool embedding(const Stack& stack, Inferred& result) {
  if (!plain(stack[0]) || !plain(stack[1])) {
    return false;
  }
  const auto& weight = stack[0].toTensor();
  const auto& indices = stack[1].toTensor();
  if (weight.dim() != 2 || (indices.scalar_type() != at::kLong && indices.scalar_type() != at::kInt)) {
    return false;
  }
  Spec& spec = only(result, weight.scalar_type());
  spec.sizes.assign(indices.sizes().begin(), indices.sizes().end());
  spec.sizes.push_back(weight.size(1));
  set_contiguous(spec);
  return true;
}

// arange(end, …), arange(start, end, …), arange(start, end, step, …): the other four arguments are options, dtype first.
// Its meta kernel is Python, and imports half of Dynamo when first called.
bool arange(const Stack& stack, Inferred& result) {
  const size_t numbers = stack.size() - 4;
  for (size_t i = 0; i < numbers; ++i) {
    if (!stack[i].isInt()) {
      return false;
    }
  }
  const int64_t start = numbers > 1 ? stack[0].toInt() : 0;
  const int64_t end = stack[numbers > 1 ? 1 : 0].toInt();
  const int64_t step = numbers > 2 ? stack[2].toInt() : 1;
  constexpr int64_t kExact = int64_t(1) << 53; // sizes are computed in doubles for some dtypes
  if (step == 0 || (step > 0 ? end < start : end > start) || std::abs(start) > kExact || std::abs(end) > kExact) {
    return false;
  }
  const auto dtype = stack[numbers].isNone() ? at::kLong : static_cast<at::ScalarType>(stack[numbers].toInt());
  if (dtype != at::kLong && dtype != at::kInt && !real_float(dtype)) {
    return false;
  }
  Spec& spec = only(result, dtype);
  const int64_t sign = step > 0 ? 1 : -1;
  spec.sizes.assign(1, (end - start + step - sign) / step);
  set_contiguous(spec);
  return true;
}

} // namespace

void set_host_like(int16_t device, bool like) {
  host_like[static_cast<size_t>(device)] = like;
}

bool apply_rule(const Operator& op, const Stack& stack, Inferred& result) {
  switch (op.rule) {
    case Rule::kMatmul:
      return matmul(op, stack, result);
    case Rule::kLinear:
      return linear(stack, result);
    case Rule::kAttention:
      return attention(stack, result);
    case Rule::kCat:
      return cat(stack, result);
    case Rule::kSoftmax:
      return softmax(stack, result);
    case Rule::kLayerNorm:
      return layer_norm(stack, result);
    case Rule::kBatchNorm:
      return batch_norm(stack, result);
    case Rule::kEmbedding:
      return embedding(stack, result);
    case Rule::kArange:
      return arange(stack, result);
    default:
      return false;
  }
}

bool pointwise_geometry(const Operator& op, const Stack& stack, Inferred& result) {
  if (op.returns.size() != 1 || op.resizes) {
    return false;
  }
  Spec* spec = nullptr;
  if (op.returns[0].kind == ReturnKind::kFresh) {
    spec = &only(result, at::kFloat);
  } else {
    return false;
  }
  for (const auto& value : stack) {
    if (value.isTensor() && value.toTensor().defined()) {
      const auto& tensor = value.toTensor();
      if (!on_device(tensor)) {
        continue; // a host scalar takes part in the dtype alone
      }
      if (!plain(value)) {
        return false;
      }
      // Broadcast; what does not fit is the meta kernel's to refuse.
      if (!broadcast_into(*spec, tensor.sizes())) {
        return false;
      }
    } else if (value.isList()) {
      return false;
    }
  }
  set_contiguous(*spec);
  return true;
}

} // namespace genie
