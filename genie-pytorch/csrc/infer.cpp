#include "infer.h"

#include "rules.h"
#include "stream.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/Exceptions.h>

#include <algorithm>
#include <mutex>
#include <unordered_map>

namespace genie {

namespace {

using torch::jit::Stack;
using Key = std::vector<uint64_t>;

struct KeyHash {
  size_t operator()(const Key& key) const {
    uint64_t h = 0x9E3779B97F4A7C15ull ^ key.size();
    for (const auto word : key) {
      h = (h ^ word) * 0xFF51AFD7ED558CCDull;
      h ^= h >> 29;
    }
    return h;
  }
};

void add_tensor(Key& key, const at::Tensor& tensor) {
  if (!tensor.defined()) {
    key.push_back(~uint64_t(0));
    return;
  }
  auto* impl = tensor.unsafeGetTensorImpl();
  const auto sizes = tensor.sizes();
  key.push_back(
      static_cast<uint64_t>(sizes.size()) | static_cast<uint64_t>(tensor.scalar_type()) << 8 |
      static_cast<uint64_t>(tensor.device().type()) << 16 | static_cast<uint64_t>(impl->is_wrapped_number()) << 24 |
      static_cast<uint64_t>(tensor.is_conj()) << 25 | static_cast<uint64_t>(tensor.is_neg()) << 26);
  key.push_back(static_cast<uint64_t>(tensor.storage_offset()));
  for (const auto size : sizes) {
    key.push_back(static_cast<uint64_t>(size));
  }
  for (const auto stride : tensor.strides()) {
    key.push_back(static_cast<uint64_t>(stride));
  }
}

void add_value(Key& key, const c10::IValue& value, ArgKind kind, bool factory) {
  key.push_back(0xA000 + static_cast<uint64_t>(value.isNone() ? 0 : value.isTensor() ? 1 : 2));
  if (value.isNone()) {
    return;
  }
  if (value.isTensor()) {
    add_tensor(key, value.toTensor());
  } else if (value.isInt()) {
    key.push_back(kind == ArgKind::kScalar && !factory ? 1 : static_cast<uint64_t>(value.toInt()));
  } else if (value.isDouble()) {
    uint64_t bits;
    const double number = value.toDouble();
    std::memcpy(&bits, &number, sizeof bits);
    key.push_back(kind == ArgKind::kScalar && !factory ? 2 : bits);
  } else if (value.isBool()) {
    key.push_back(value.toBool() ? 3 : 4);
  } else if (value.isComplexDouble()) {
    key.push_back(5);
  } else if (value.isDevice()) {
    key.push_back(static_cast<uint64_t>(value.toDevice().type()));
  } else if (value.isString()) {
    key.push_back(std::hash<std::string>()(value.toStringRef()));
    for (const char c : value.toStringRef()) {
      key.push_back(static_cast<uint64_t>(c));
    }
  } else if (value.isIntList()) {
    const auto list = value.toIntVector();
    key.push_back(list.size());
    for (const auto item : list) {
      key.push_back(static_cast<uint64_t>(item));
    }
  } else if (value.isList()) {
    const auto list = value.toListRef();
    key.push_back(list.size());
    for (const auto& item : list) {
      add_value(key, item, kind, factory);
    }
  } else {
    key.push_back(static_cast<uint64_t>(value.isGenerator()));
  }
}

// All that decides a pointwise result's dtype.
void add_family(Key& key, const c10::IValue& value, ArgKind kind) {
  if (value.isTensor() && value.toTensor().defined()) {
    const auto& tensor = value.toTensor();
    key.push_back(
        0xB000 | static_cast<uint64_t>(tensor.dim() == 0) | static_cast<uint64_t>(tensor.scalar_type()) << 16 |
        static_cast<uint64_t>(tensor.unsafeGetTensorImpl()->is_wrapped_number()) << 24 |
        static_cast<uint64_t>(on_device(tensor)) << 25);
  } else {
    add_value(key, value, kind, false);
  }
}

at::Tensor to_meta(const at::Tensor& tensor) {
  if (!tensor.defined() || !on_device(tensor)) {
    return tensor;
  }
  const auto meta = tensor.dtype();
  const auto nbytes = at::detail::computeStorageNbytes(
      tensor.sizes(), tensor.strides(), meta.itemsize(), tensor.storage_offset());
  c10::Storage storage(c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(),
      static_cast<int64_t>(std::max<size_t>(nbytes, tensor.storage().nbytes())),
      c10::DataPtr(nullptr, c10::Device(c10::DeviceType::Meta)),
      c10::GetAllocator(c10::DeviceType::Meta),
      /*resizable=*/true));
  auto result = at::detail::make_tensor_base<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::Meta), meta);
  auto* impl = result.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) {
    impl->set_wrapped_number(true);
  }
  at::Tensor out(std::move(result));
  if (tensor.is_conj()) {
    out._set_conj(true);
  }
  if (tensor.is_neg()) {
    out._set_neg(true);
  }
  return out;
}

c10::IValue to_meta(const c10::IValue& value) {
  if (value.isTensor()) {
    return to_meta(value.toTensor());
  }
  if (value.isDevice()) {
    return value.toDevice().type() == c10::DeviceType::PrivateUse1 ? c10::Device(c10::DeviceType::Meta)
                                                                   : value.toDevice();
  }
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& item : value.toTensorVector()) {
      list.push_back(to_meta(item));
    }
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const auto& item : value.toListRef()) {
      list.push_back(item.isNone() ? std::nullopt : std::optional<at::Tensor>(to_meta(item.toTensor())));
    }
    return list;
  }
  if (value.isGenerator()) {
    return c10::IValue(); // a meta kernel draws nothing
  }
  return value;
}

void add_spec(Inferred& result, const c10::IValue& value) {
  if (value.isTensor() && value.toTensor().defined()) {
    result.specs.push_back(spec_of(value.toTensor()));
  } else {
    Spec undefined;
    undefined.defined = false;
    result.specs.push_back(std::move(undefined));
  }
}

Inferred run_meta(const Operator& op, const Stack& stack) {
  Stack meta;
  meta.reserve(stack.size());
  for (const auto& value : stack) {
    meta.push_back(to_meta(value));
  }
  Stack arguments(meta);
  {
    at::AutoDispatchBelowADInplaceOrView below;
    op.handle.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::Meta), &meta);
  }
  Inferred result;
  for (size_t i = 0; i < op.returns.size(); ++i) {
    const auto kind = op.returns[i].kind;
    if (kind == ReturnKind::kSame || kind == ReturnKind::kSameList || kind == ReturnKind::kHost) {
      result.lengths.push_back(0);
    } else if (meta[i].isList()) {
      const auto items = meta[i].toListRef();
      result.lengths.push_back(static_cast<uint32_t>(items.size()));
      for (const auto& item : items) {
        add_spec(result, item);
      }
    } else {
      result.lengths.push_back(1);
      add_spec(result, meta[i]);
    }
  }
  if (op.resizes) {
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (op.written[i] && arguments[i].isTensor()) {
        add_spec(result, arguments[i]);
        result.written.push_back(std::move(result.specs.back()));
        result.specs.pop_back();
      }
    }
  }
  return result;
}

// A refusal that says the meta kernel can't know, not that the program is wrong.
bool means_unknown(const std::string& message) {
  for (const char* text :
       {"not implemented", "data-dependent", "DynamicOutputShape", "doesn't register", "Could not run", "meta tensor",
        "Meta", "meta", "NYI", "no fake impl", "unsupported"}) {
    if (message.find(text) != std::string::npos) {
      return true;
    }
  }
  return false;
}

// Meta kernels may be written in Python, and PyTorch has two ways to carry what they raise.
Inferred run_meta_kernel(const Operator& op, const Stack& stack) {
  try {
    return run_meta(op, stack);
  } catch (pybind11::error_already_set& error) {
    const pybind11::gil_scoped_acquire gil;
    error.restore();
    python_error raised;
    raised.persist();
    throw std::move(raised);
  }
}

// Ctrl-C, or the end of the program: no opinion of the kernel's.
bool is_interrupt(const python_error& error) {
  const pybind11::gil_scoped_acquire gil;
  return error.type != nullptr && PyErr_GivenExceptionMatches(error.type, PyExc_Exception) == 0;
}

// The order of a value's dimensions in memory, those of size one apart.
struct Layout {
  std::vector<uint8_t> order; // outermost first
  bool dense = false;
};

Layout layout_of(const Spec& spec) {
  Layout layout;
  for (size_t i = 0; i < spec.sizes.size(); ++i) {
    if (spec.sizes[i] != 1) {
      layout.order.push_back(static_cast<uint8_t>(i));
    }
  }
  std::stable_sort(layout.order.begin(), layout.order.end(), [&](uint8_t a, uint8_t b) {
    return spec.strides[a] > spec.strides[b];
  });
  int64_t step = 1;
  layout.dense = spec.offset == 0;
  for (auto it = layout.order.rbegin(); it != layout.order.rend(); ++it) {
    layout.dense = layout.dense && spec.strides[*it] == step;
    step *= std::max<int64_t>(spec.sizes[*it], 1);
  }
  return layout;
}

// Lays `spec` out in the given order; false if it has other dimensions of size one.
bool apply_layout(const Layout& layout, Spec& spec) {
  size_t plural = 0;
  for (const auto size : spec.sizes) {
    plural += size != 1;
  }
  if (!layout.dense || plural != layout.order.size()) {
    return false;
  }
  for (const auto dim : layout.order) {
    if (dim >= spec.sizes.size() || spec.sizes[dim] == 1) {
      return false;
    }
  }
  int64_t step = 1;
  for (size_t i = spec.sizes.size(); i-- > 0;) {
    if (spec.sizes[i] == 1) {
      spec.strides[i] = 1;
    }
  }
  for (auto it = layout.order.rbegin(); it != layout.order.rend(); ++it) {
    spec.strides[*it] = step;
    step *= std::max<int64_t>(spec.sizes[*it], 1);
  }
  return true;
}

void add_layout(Key& key, const c10::IValue& value, ArgKind kind) {
  if (value.isTensor() && value.toTensor().defined()) {
    const auto& tensor = value.toTensor();
    key.push_back(0xC000 | static_cast<uint64_t>(tensor.scalar_type()) << 16 | static_cast<uint64_t>(tensor.dim()) << 24);
    if (on_device(tensor)) {
      const auto layout = layout_of(spec_of(tensor));
      uint64_t repeated = 0; // dimensions that are one element seen many times
      for (int64_t i = 0; i < tensor.dim(); ++i) {
        repeated |= static_cast<uint64_t>(tensor.stride(i) == 0 && tensor.size(i) != 1) << (i & 31);
      }
      key.push_back(static_cast<uint64_t>(layout.dense) | repeated << 1);
      key.insert(key.end(), layout.order.begin(), layout.order.end());
    }
  } else if (value.isTensorList() || value.isOptionalTensorList()) {
    for (const auto& item : value.toListRef()) {
      add_layout(key, item, kind);
    }
  } else {
    add_value(key, value, kind, false); // dimensions, paddings, a memory format
  }
}

void layout_family(Key& key, const Operator& op, const Stack& stack) {
  key.clear();
  key.push_back(op.id);
  for (size_t i = 0; i < stack.size(); ++i) {
    add_layout(key, stack[i], op.args[i]);
  }
}

std::mutex layouts_guard;
std::unordered_map<Key, std::vector<Layout>, KeyHash> layouts;

bool laid_plainly(const at::Tensor& tensor) {
  return !tensor.defined() || !on_device(tensor) || tensor.is_contiguous();
}

// Whether the strides a meta kernel gives may be wrong: a fresh result of operands that are not contiguous.
bool may_surprise(const Operator& op, const Stack& stack) {
  if (op.mutates || op.factory) {
    return false;
  }
  for (const auto& info : op.returns) {
    if (info.kind != ReturnKind::kFresh) {
      return false;
    }
  }
  for (const auto& value : stack) {
    if (value.isTensor()) {
      if (!laid_plainly(value.toTensor())) {
        return true;
      }
    } else if (value.isTensorList()) {
      for (const at::Tensor& item : value.toTensorVector()) {
        if (!laid_plainly(item)) {
          return true;
        }
      }
    }
  }
  return false;
}

void lay_out(const Operator& op, const Stack& stack, Inferred& result) {
  thread_local Key family;
  layout_family(family, op, stack);
  std::lock_guard<std::mutex> lock(layouts_guard);
  const auto found = layouts.find(family);
  result.ask_layout = found == layouts.end() || found->second.size() != result.specs.size();
  for (size_t i = 0; i < result.specs.size() && !result.ask_layout; ++i) {
    auto& spec = result.specs[i];
    result.ask_layout = spec.defined && spec.sizes.size() > 1 && !apply_layout(found->second[i], spec);
  }
}

struct Memory {
  // Result dtype of pointwise operators by everything but shape; Undefined where the rule does not hold.
  std::unordered_map<Key, at::ScalarType, KeyHash> pointwise;
  std::unordered_map<Key, Inferred, KeyHash> known;
};

} // namespace

const Inferred* infer(const Operator& op, const Stack& stack, bool must) {
  thread_local Key key;
  thread_local Inferred scratch;
  thread_local Memory memory;
  thread_local Key family;
  bool learn = false;
  if (op.rule == Rule::kPointwise) {
    if (pointwise_geometry(op, stack, scratch)) {
      family.clear();
      family.push_back(op.id);
      for (size_t i = 0; i < stack.size(); ++i) {
        add_family(family, stack[i], op.args[i]);
      }
      const auto member = memory.pointwise.find(family);
      if (member != memory.pointwise.end()) {
        if (member->second != at::ScalarType::Undefined) {
          scratch.specs[0].dtype = member->second;
          return &scratch;
        }
      } else {
        learn = true;
      }
    }
  } else if (op.rule != Rule::kNone && apply_rule(op, stack, scratch)) {
    return &scratch;
  }
  if (op.ask_node) {
    return nullptr;
  }
  key.clear();
  key.push_back(op.id);
  for (size_t i = 0; i < stack.size(); ++i) {
    add_value(key, stack[i], op.args[i], op.factory);
  }
  const auto found = memory.known.find(key);
  if (found != memory.known.end()) {
    ++counters.memo_hits;
    return &found->second;
  }
  ++counters.memo_misses;
  Inferred result;
  try {
    result = run_meta_kernel(op, stack);
  } catch (python_error& error) {
    // Its refusals are looked at like any other's.
    error.persist();
    if (must || is_interrupt(error) || (op.mutates && !means_unknown(error.what()))) {
      throw;
    }
    return nullptr;
  } catch (const c10::NotImplementedError&) {
    if (must) {
      throw;
    }
    return nullptr;
  } catch (const std::exception& error) {
    // What a meta kernel refuses, a real one may do: the node is the authority. Except where asking would
    // leave the written operand in doubt.
    if (must || (op.mutates && !means_unknown(error.what()))) {
      throw;
    }
    return nullptr;
  }
  if (learn) {
    // The rule gives the geometry, the meta kernel once the dtype; where they differ on geometry the rule is out.
    Spec expected = scratch.specs[0];
    expected.dtype = result.specs.empty() ? at::ScalarType::Undefined : result.specs[0].dtype;
    const bool agreed = result.specs.size() == 1 && result.specs[0] == expected;
    memory.pointwise.emplace(family, agreed ? expected.dtype : at::ScalarType::Undefined);
  }
  if (!learn && may_surprise(op, stack)) {
    // Meta kernels are sure of sizes, not always of strides where operands are not laid out plainly.
    lay_out(op, stack, result);
    if (result.ask_layout) {
      scratch = std::move(result);
      return &scratch;
    }
  }
  constexpr size_t kMost = 1 << 16;
  if (memory.known.size() >= kMost) {
    memory.known.clear();
  }
  return &memory.known.emplace(key, std::move(result)).first->second;
}

void learn_layout(const Operator& op, const Stack& stack, const Inferred& answered) {
  thread_local Key family;
  layout_family(family, op, stack);
  std::vector<Layout> learned;
  for (const auto& spec : answered.specs) {
    learned.push_back(spec.defined ? layout_of(spec) : Layout{});
  }
  std::lock_guard<std::mutex> lock(layouts_guard);
  layouts[family] = std::move(learned);
}

bool leaves_undefined(const Operator& op, const Stack& stack, size_t i) {
  // Gradients of biases that are not there.
  return i >= 3 && op.name == "aten::_thnn_fused_gru_cell_backward" && !stack[2].toBool();
}

c10::IValue without_elements(const c10::IValue& value) {
  return value.isDevice() ? value : to_meta(value);
}

} // namespace genie
