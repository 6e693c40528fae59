#include "products.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/stack.h>
#include <ATen/ops/cat.h>
#include <c10/core/GradMode.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>

namespace genie_local {
namespace {

constexpr size_t most_trials = 4096;
constexpr int64_t rows_at_once = 64;  // rows of a block: kernels work on some of them at a time
constexpr int first_tries = 3;  // of each way
constexpr uint64_t try_again = 64;  // after so many
constexpr int checks = 2;

struct Form {
  const char* name;
  int8_t rows, weight, bias, made;
};
constexpr Form forms[] = {
    {"aten::linear", 0, 1, 2, 0},
    {"aten::addmm", 1, 2, 0, 1},
    {"aten::mm", 0, 1, -1, 1},
};
constexpr const char* views[] = {"aten::t", "aten::transpose.int", "aten::permute", "aten::detach", "aten::alias"};

bool is_value(const Step& step, int8_t argument) {
  return step.arguments[argument].kind == Argument::Kind::value;
}

bool is_dense(const at::Tensor& tensor) {
  return tensor.defined() && tensor.layout() == c10::kStrided && !tensor.is_conj() && !tensor.is_neg() &&
      !tensor._is_zerotensor() && tensor.has_storage();
}

const at::Tensor& tensor_at(const Part& part, int8_t argument) {
  return part.operands[argument].toTensor();
}

// None where there is none.
at::Tensor bias_of(const Product& product, const Part& part) {
  if (product.bias < 0 || !part.operands[product.bias].isTensor()) {
    return {};
  }
  return tensor_at(part, product.bias);
}

at::Tensor call(const Step& step, torch::jit::Stack stack) {
  step.op->handle.callBoxed(stack);
  return std::move(stack.back()).toTensor();
}

// Half of a core's second cache: the rest is for rows, results, and what the kernel packs.
int64_t block_bytes() {
  static const int64_t bytes = [] {
    const auto cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
    return cache > 0 ? std::clamp<int64_t>(cache / 2, 1 << 17, 1 << 20) : int64_t{1} << 18;
  }();
  return bytes;
}

// Of the weight's dimension that is divided.
int64_t block_size(const at::Tensor& weight, int64_t dim) {
  const auto outputs = weight.size(dim);
  const auto each = std::max<int64_t>(weight.size(1 - dim) * static_cast<int64_t>(weight.itemsize()), 1);
  const auto most = std::max(block_bytes() / each / rows_at_once * rows_at_once, rows_at_once);
  if (outputs <= most + most / 2) {
    return outputs;
  }
  const auto count = (outputs + most - 1) / most;
  return ((outputs + count - 1) / count + rows_at_once - 1) / rows_at_once * rows_at_once;
}

void copy_block(const at::Tensor& result, int64_t start, const at::Tensor& block) {
  const auto outputs = block.size(-1);
  if (block.numel() == outputs && block.is_contiguous()) {  // one row
    const auto bytes = static_cast<int64_t>(result.itemsize());
    std::memcpy(static_cast<char*>(result.mutable_data_ptr()) + start * bytes, block.const_data_ptr(), outputs * bytes);
  } else {
    result.narrow(-1, start, outputs).copy_(block);
  }
}

// Every result, block by block of the weight: read from memory once, it is in the cache for the others.
void fill_blocks(const Step& step, const Product& product, std::vector<Part>& parts) {
  const auto& weight = tensor_at(parts.front(), product.weight);
  const auto outputs = weight.size(product.made);
  const auto size = block_size(weight, product.made);
  // What is left is none of its own if it is smaller than kernels like.
  const auto count = std::max<int64_t>((outputs - rows_at_once + size - 1) / size, 1);
  at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const c10::NoGradGuard no_grad;
    for (auto number = first; number < last; ++number) {
      const auto start = number * size;
      const auto length = number + 1 == count ? outputs - start : size;
      const auto block = weight.narrow(product.made, start, length);
      for (auto& part : parts) {
        torch::jit::Stack stack = part.operands;
        stack[product.weight] = block;
        if (const auto bias = bias_of(product, part); bias.defined() && bias.dim() > 0 && bias.size(-1) == outputs) {
          stack[product.bias] = bias.narrow(-1, start, length);
        }
        copy_block(part.result, start, call(step, std::move(stack)));
      }
    }
  });
}

// Every result from one product of all rows.
void fill_stacked(const Step& step, const Product& product, std::vector<Part>& parts) {
  const auto& weight = tensor_at(parts.front(), product.weight);
  std::vector<at::Tensor> rows;
  rows.reserve(parts.size());
  for (const auto& part : parts) {
    rows.push_back(tensor_at(part, product.rows).reshape({-1, weight.size(1 - product.made)}));
  }
  torch::jit::Stack stack = parts.front().operands;
  stack[product.rows] = at::cat(rows);
  const auto made = call(step, std::move(stack));
  int64_t start = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto count = rows[i].size(0);
    parts[i].result.view({count, made.size(1)}).copy_(made.narrow(0, start, count));
    start += count;
  }
}

}  // namespace

struct Products::Trial {
  std::array<double, 3> best{};
  std::array<int, 3> tried{};
  uint64_t uses = 0;
  int checked = 0;
  bool inexact = false;  // blocks do not give the very bits
};

void find_products(Plan& plan) {
  std::vector<int32_t> origin(plan.values, -1);  // the input a value is a view of
  for (const auto& input : plan.inputs) {
    origin[input.value] = input.value;
  }
  plan.products.clear();
  plan.weights.clear();
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const auto& step = plan.steps[i];
    const auto& name = step.op->name;
    if (std::find(std::begin(views), std::end(views), name) != std::end(views) && is_value(step, 0) &&
        step.outputs.size() == 1 && step.outputs[0] >= 0) {
      origin[step.outputs[0]] = origin[step.arguments[0].value];
    }
    const auto form = std::find_if(std::begin(forms), std::end(forms), [&](const Form& its) { return name == its.name; });
    if (form == std::end(forms) || *step.phase != "decode" || step.op->shim != nullptr || !step.written.empty() ||
        !is_value(step, form->rows) || !is_value(step, form->weight)) {
      continue;
    }
    const auto weight = origin[step.arguments[form->weight].value];
    if (weight >= 0) {
      plan.products.push_back({static_cast<uint32_t>(i), form->rows, form->weight, form->bias, form->made});
      plan.weights.push_back(weight);
    }
  }
  std::sort(plan.weights.begin(), plan.weights.end());
  plan.weights.erase(std::unique(plan.weights.begin(), plan.weights.end()), plan.weights.end());
}

Products::Products(bool exact) : exact_(exact) {}

size_t Products::Hash::operator()(const std::vector<int64_t>& words) const {
  uint64_t hash = 0xcbf29ce484222325U;
  for (const auto word : words) {
    hash = (hash ^ static_cast<uint64_t>(word)) * 0x100000001b3U;  // FNV-1a over words
  }
  return hash ^ (hash >> 32);
}

bool Products::fits(const Product& product, const Part& part) {
  const auto& rows = tensor_at(part, product.rows);
  const auto& weight = tensor_at(part, product.weight);
  if (!is_dense(rows) || !is_dense(weight) || weight.dim() != 2 || rows.dim() == 0 || !rows.is_contiguous() ||
      rows.numel() == 0 || weight.numel() == 0 || rows.scalar_type() != weight.scalar_type() ||
      rows.device() != weight.device() || rows.size(-1) != weight.size(1 - product.made) ||
      (product.made == 1 && rows.dim() != 2)) {
    return false;
  }
  const auto bias = bias_of(product, part);
  return !bias.defined() || (is_dense(bias) && bias.dim() == 1 && bias.size(0) == weight.size(product.made) &&
                             bias.scalar_type() == rows.scalar_type() && bias.device() == rows.device());
}

bool Products::alike(const Product& product, const Part& one, const Part& other) {
  const auto& rows = tensor_at(one, product.rows);
  const auto& weight = tensor_at(one, product.weight);
  const auto& its = tensor_at(other, product.weight);
  return rows.sizes() == tensor_at(other, product.rows).sizes() && weight.const_data_ptr() == its.const_data_ptr() &&
      weight.scalar_type() == its.scalar_type() && weight.sizes() == its.sizes() && weight.strides() == its.strides() &&
      bias_of(product, one).defined() == bias_of(product, other).defined();
}

bool Products::stackable(const Product& product, const std::vector<Part>& parts) const {
  const auto bias = bias_of(product, parts.front());
  return std::all_of(parts.begin(), parts.end(), [&](const Part& part) {
    if (bias.defined() && bias_of(product, part).const_data_ptr() != bias.const_data_ptr()) {
      return false;
    }
    return std::all_of(part.operands.begin(), part.operands.end(), [](const c10::IValue& operand) {
      return !operand.isScalar() || operand.toScalar().equal(1);  // the bias' and the product's factors
    });
  });
}

Products::Choice Products::choose(const Step& step, const Product& product, const std::vector<Part>& parts) {
  const auto& rows = tensor_at(parts.front(), product.rows);
  const auto& weight = tensor_at(parts.front(), product.weight);
  std::vector<int64_t> key{
      static_cast<int64_t>(std::hash<std::string>()(step.op->name)),
      static_cast<int64_t>(rows.scalar_type()),
      static_cast<int64_t>(parts.size()),
      at::get_num_threads(),
      bias_of(product, parts.front()).defined()};
  for (const auto words : {rows.sizes(), weight.sizes(), weight.strides()}) {
    key.insert(key.end(), words.begin(), words.end());
  }
  const bool stacks = !exact_ && stackable(product, parts);
  if (!rows.is_cpu()) {  // what work queued on a device takes, nobody here sees
    return {stacks ? Way::stacked : Way::each, nullptr};
  }
  const std::lock_guard<std::mutex> lock(lock_);
  auto& trial = trials_[key];
  if (!trial) {
    if (trials_.size() > most_trials) {
      trials_.erase(key);
      return {};
    }
    trial = std::make_unique<Trial>();
  }
  std::vector<Way> ways{Way::each};
  if (!trial->inexact && block_size(weight, product.made) < weight.size(product.made)) {
    ways.push_back(Way::blocks);
  }
  if (stacks) {
    ways.push_back(Way::stacked);
  }
  if (++trial->uses % try_again == 0) {
    return {ways[trial->uses / try_again % ways.size()], trial.get()};
  }
  const auto worth = [&](Way way) {
    const auto index = static_cast<size_t>(way);
    return trial->tried[index] < first_tries ? trial->tried[index] - double{first_tries} : trial->best[index];
  };
  const auto best =
      std::min_element(ways.begin(), ways.end(), [&](Way one, Way other) { return worth(one) < worth(other); });
  return {*best, trial.get()};
}

void Products::fill(const Choice& choice, const Step& step, const Product& product, std::vector<Part>& parts) {
  if (choice.way == Way::stacked) {
    fill_stacked(step, product, parts);
    return;
  }
  fill_blocks(step, product, parts);
  if (!blocks_are_exact(choice, step, parts.front())) {
    for (auto& part : parts) {
      part.result.copy_(call(step, part.operands));
    }
  }
}

// What a kernel does with a block is no promise of anybody's: at first it is compared.
bool Products::blocks_are_exact(const Choice& choice, const Step& step, const Part& part) {
  {
    const std::lock_guard<std::mutex> lock(lock_);
    if (choice.trial->checked >= checks || choice.trial->inexact) {
      return !choice.trial->inexact;
    }
  }
  const auto whole = call(step, part.operands);
  const auto& result = part.result;
  const bool exact = whole.sizes() == result.sizes() && whole.strides() == result.strides() &&
      whole.scalar_type() == result.scalar_type() &&
      std::memcmp(whole.const_data_ptr(), result.const_data_ptr(), result.nbytes()) == 0;
  const std::lock_guard<std::mutex> lock(lock_);
  ++choice.trial->checked;
  choice.trial->inexact |= !exact;
  choice.trial->tried[static_cast<size_t>(Way::blocks)] = -1;  // its time was this comparison's, too
  return exact;
}

void Products::took(const Choice& choice, double seconds) {
  if (choice.trial == nullptr) {
    return;
  }
  const std::lock_guard<std::mutex> lock(lock_);
  const auto index = static_cast<size_t>(choice.way);
  auto& best = choice.trial->best[index];
  // The least of what was seen, forgotten slowly.
  best = choice.trial->tried[index]++ <= 0 ? seconds : std::min(best * 1.02, seconds);
}

}  // namespace genie_local
