#include "record.h"

#include "adopt.h"
#include "infer.h"
#include "port.h"
#include "timer.h"
#include "writer.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>
#include <c10/core/impl/LocalDispatchKeySet.h>


namespace genie {

namespace {

using torch::jit::Stack;

// Applies `f` to every tensor among the arguments; `f` may replace it.
template <typename F>
void each_tensor(const Operator& op, Stack& args, F&& f) {
  for (size_t i = 0; i < args.size(); ++i) {
    if (!op.tensor_like[i]) {
      continue;
    }
    auto& value = args[i];
    if (value.isTensor()) {
      if (value.toTensor().defined()) {
        f(const_cast<at::Tensor&>(value.toTensor()), op.written[i]);
      }
    } else if (value.isTensorList()) {
      auto list = value.toTensorList();
      for (size_t k = 0; k < list.size(); ++k) {
        at::Tensor item = list.get(k);
        if (item.defined()) {
          const auto* before = item.unsafeGetTensorImpl();
          f(item, op.written[i]);
          if (item.unsafeGetTensorImpl() != before) {
            list.set(k, item);
          }
        }
      }
    } else if (value.isOptionalTensorList()) {
      auto list = value.toOptionalTensorList();
      for (size_t k = 0; k < list.size(); ++k) {
        std::optional<at::Tensor> item = list.get(k);
        if (item.has_value() && item->defined()) {
          const auto* before = item->unsafeGetTensorImpl();
          f(*item, op.written[i]);
          if (item->unsafeGetTensorImpl() != before) {
            list.set(k, item);
          }
        }
      }
    }
  }
}

bool is_host_scalar(const at::Tensor& tensor) {
  return tensor.dim() == 0 && tensor.device().is_cpu() && !tensor.is_complex();
}

bool has_fake(const Operator& op, Stack& args) {
  bool fake = false;
  each_tensor(op, args, [&](at::Tensor& tensor, bool) {
    fake = fake || is_fake(tensor);
  });
  return fake;
}

struct Operands {
  int device = -1;
  bool host = false; // an operand lives on the host and is no scalar
  Value* hint = nullptr;
};

Operands look_at(const Operator& op, Stack& args) {
  Operands found;
  each_tensor(op, args, [&](at::Tensor& tensor, bool) {
    if (on_device(tensor)) {
      const int device = tensor.device().index();
      TORCH_CHECK(
          found.device < 0 || found.device == device,
          "Expected all tensors to be on the same device, but found at least two devices, remote_accelerator:",
          found.device,
          " and remote_accelerator:",
          device,
          "!");
      found.device = device;
      if (found.hint == nullptr || found.hint->maker == nullptr) {
        found.hint = value_of(tensor);
      }
    } else {
      if (!tensor.device().is_cpu() || tensor.layout() != at::kStrided) {
        port::refuse(
            op.name,
            c10::str("a tensor on ", tensor.device(), " of layout ", tensor.layout(), " meets remote_accelerator"));
      }
      found.host = found.host || !is_host_scalar(tensor) || op.takes_host_index;
    }
  });
  if (found.device < 0) {
    found.device = current_device();
    for (size_t i = 0; i < args.size(); ++i) {
      if (op.args[i] == ArgKind::kDevice && args[i].isDevice() && args[i].toDevice().has_index()) {
        found.device = args[i].toDevice().index();
      }
    }
  }
  return found;
}

// Whether an operator with operands here is asked to make its result on another device.
bool makes_elsewhere(const Operator& op, const Stack& args, const Operands& operands) {
  if (op.factory || op.mutates) {
    return false;
  }
  for (size_t i = 0; i < args.size(); ++i) {
    if (op.args[i] == ArgKind::kDevice && args[i].isDevice()) {
      const auto device = args[i].toDevice();
      const auto index = device.has_index() ? device.index() : current_device();
      return device.type() != c10::DeviceType::PrivateUse1 || index != operands.device;
    }
  }
  return false;
}

// Host tensors met by device tensors outside a capture: everything comes home and the operator runs there.
void run_on_host(const Operator& op, Stack* stack, size_t count) {
  Stack args(stack->end() - static_cast<int64_t>(count), stack->end());
  each_tensor(op, args, [&](at::Tensor& tensor, bool) {
    if (on_device(tensor) && at::GradMode::is_enabled() && tensor.requires_grad()) {
      // Autograd has noted a result on the device by now, and would not take a gradient from the CPU.
      port::refuse(op.name, "a tensor on remote_accelerator that requires grad meets one on the CPU");
    }
  });
  port::warn_mixed(op.name);
  each_tensor(op, args, [&](at::Tensor& tensor, bool) {
    if (on_device(tensor)) {
      tensor = to_host(tensor);
    }
  });
  torch::jit::drop(*stack, count);
  for (auto& arg : args) {
    stack->push_back(std::move(arg));
  }
  at::AutoDispatchBelowADInplaceOrView below;
  op.handle.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
}

void write(Writer& writer, const c10::IValue& value, ArgKind kind, bool tensors);

void write_tensor(Writer& writer, const at::Tensor& tensor) {
  if (!tensor.defined()) {
    writer.none();
  } else if (on_device(tensor)) {
    writer.value(tensor);
  } else {
    writer.host_scalar(tensor);
  }
}

void write(Writer& writer, const c10::IValue& value, ArgKind kind, bool tensors) {
  if (value.isNone()) {
    writer.none();
  } else if (value.isTensor()) {
    write_tensor(writer, value.toTensor());
  } else if (value.isInt()) {
    switch (kind) {
      case ArgKind::kDtype:
        return writer.dtype(static_cast<at::ScalarType>(value.toInt()));
      case ArgKind::kLayout:
        return writer.layout(value.toInt());
      case ArgKind::kMemoryFormat:
        return writer.memory_format(value.toInt());
      default:
        return writer.integer(value.toInt());
    }
  } else if (value.isDouble()) {
    writer.real(value.toDouble());
  } else if (value.isBool()) {
    writer.boolean(value.toBool());
  } else if (value.isComplexDouble()) {
    writer.complex(value.toComplexDouble());
  } else if (value.isString()) {
    writer.string(value.toStringRef());
  } else if (value.isDevice()) {
    writer.device(value.toDevice().type() == c10::DeviceType::PrivateUse1);
  } else if (value.isGenerator()) {
    writer.generator(generator_number(value.toGenerator()));
  } else if (value.isIntList()) {
    const auto list = value.toIntVector();
    writer.list(list.size());
    for (const auto item : list) {
      writer.integer(item);
    }
  } else if (value.isList()) {
    const auto list = value.toListRef();
    writer.list(list.size());
    for (const auto& item : list) {
      write(writer, item, kind, tensors);
    }
  } else {
    TORCH_INTERNAL_ASSERT(false, "genie: an argument of type ", value.tagKind(), " was not refused in time");
  }
}

// Checked before anything is written, so that a refusal leaves the stream whole.
void check_arguments(const Operator& op, const Stack& args) {
  for (size_t i = 0; i < args.size(); ++i) {
    if (args[i].isNone()) {
      continue;
    }
    if (op.args[i] == ArgKind::kRefused) {
      port::refuse(op.name, "argument '" + op.handle.schema().arguments()[i].name() + "' can't travel to a node");
    }
    if (args[i].isDevice()) {
      const auto type = args[i].toDevice().type();
      if (type != c10::DeviceType::PrivateUse1 && type != c10::DeviceType::CPU) {
        port::refuse(op.name, "a tensor on remote_accelerator can't become one on " + args[i].toDevice().str());
      }
    }
    if (args[i].isGenerator() && args[i].toGenerator().defined()) {
      generator_number(args[i].toGenerator());
    }
  }
}

c10::IValue host_value(const at::Tensor& tensor, const c10::TypePtr& type) {
  const auto scalar = tensor.item();
  switch (type->kind()) {
    case c10::TypeKind::BoolType:
      return scalar.toBool();
    case c10::TypeKind::FloatType:
      return scalar.toDouble();
    case c10::TypeKind::NumberType:
      return scalar;
    default:
      return scalar.toLong();
  }
}

const at::Tensor* base_of(const Operator& op, const Stack& args, const ReturnInfo& info, size_t item) {
  if (info.kind != ReturnKind::kView && info.kind != ReturnKind::kViewList) {
    return nullptr;
  }
  const auto& arg = args[static_cast<size_t>(info.argument)];
  if (arg.isTensor()) {
    return &arg.toTensor();
  }
  (void)op;
  (void)item;
  return nullptr;
}

void apply_written(const Operator& op, Stack& args, const std::vector<Spec>& written) {
  size_t next = 0;
  for (size_t i = 0; i < args.size() && next < written.size(); ++i) {
    if (!op.written[i] || !args[i].isTensor()) {
      continue;
    }
    const Spec& spec = written[next++];
    const auto& tensor = args[i].toTensor();
    if (!spec.defined ||
        (tensor.sizes() == spec.sizes && tensor.strides() == spec.strides && tensor.storage_offset() == spec.offset)) {
      continue;
    }
    tensor.unsafeGetTensorImpl()->set_sizes_and_strides(spec.sizes, spec.strides, spec.offset);
    const auto need = static_cast<int64_t>(at::detail::computeStorageNbytes(
        spec.sizes, spec.strides, tensor.dtype().itemsize(), tensor.storage_offset()));
    if (static_cast<int64_t>(tensor.storage().nbytes()) < need) {
      tensor.storage().unsafeGetStorageImpl()->set_nbytes(need);
    }
  }
}

at::ScalarType host_dtype(const c10::TypePtr& type) {
  switch (type->kind()) {
    case c10::TypeKind::BoolType:
      return at::kBool;
    case c10::TypeKind::IntType:
      return at::kLong;
    default:
      return at::kDouble;
  }
}

// The operator's outputs are what the node says they are.
void ask_node(const Operator& op, const Stack& args, const std::vector<ValuePtr>& values, Inferred& answered) {
  ++counters.asked_node;
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] == nullptr) {
      continue; // undefined
    }
    answered.specs[i] = port::describe(values[i]->device, values[i]->handle);
    correct(*values[i], answered.specs[i]);
  }
  for (size_t i = 0; i < args.size(); ++i) {
    if (op.resizes && op.written[i] && args[i].isTensor() && args[i].toTensor().defined()) {
      const Value* value = value_of(args[i].toTensor());
      answered.written.push_back(port::describe(value->device, value->handle));
    }
  }
}

// Strides that decide where an element is: those of dimensions of more than one.
bool same_layout(const at::Tensor& tensor, const Spec& actual) {
  if (tensor.sizes() != at::IntArrayRef(actual.sizes)) {
    return false;
  }
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    if (tensor.size(i) > 1 && tensor.stride(i) != actual.strides[static_cast<size_t>(i)]) {
      return tensor.numel() == 0;
    }
  }
  return true;
}

void compare_with_node(const Operator& op, const Stack& stack) {
  for (size_t i = 0; i < op.returns.size(); ++i) {
    const auto& value = stack[stack.size() - op.returns.size() + i];
    if (!value.isTensor() || !value.toTensor().defined()) {
      continue;
    }
    const auto& tensor = value.toTensor();
    uint64_t handle;
    {
      Lock lock;
      handle = settle(ValuePtr::reclaim_copy(value_of(tensor)));
    }
    const auto actual = port::describe(static_cast<int16_t>(tensor.device().index()), handle);
    TORCH_CHECK(
        same_layout(tensor, actual) && tensor.scalar_type() == actual.dtype,
        "genie: geometry of output ", i, " of ", op.name, ".", op.overload, " is ", tensor.sizes(), " ",
        tensor.strides(), " ", tensor.scalar_type(), " here and ", at::IntArrayRef(actual.sizes), " ",
        at::IntArrayRef(actual.strides), " ", actual.dtype, " on the node");
  }
}

// An operator that changes a tensor's own geometry must not change that of tensors that merely share its value.
void own_value(Stream& stream, const at::Tensor& tensor) {
  static const Operator& alias = operator_for(c10::Dispatcher::singleton().findSchemaOrThrow("aten::alias", ""));
  touch(stream, tensor);
  Writer writer(stream, alias.id, 1);
  writer.value(tensor);
  std::vector<ValuePtr> values;
  writer.returns({spec_of(tensor)}, values);
  set_value(tensor, std::move(values[0]));
}

} // namespace

bool check_geometry = false;

int& capture_depth() {
  thread_local int depth = 0;
  return depth;
}

void record(const Operator& op, Stack* stack) {
  Timer timer;
  const size_t count = op.args.size();
  Stack args(
      std::make_move_iterator(stack->end() - static_cast<int64_t>(count)), std::make_move_iterator(stack->end()));
  torch::jit::drop(*stack, count);

  if (has_fake(op, args)) {
    // FakeTensorMode asks for geometry only.
    for (auto& arg : args) {
      stack->push_back(std::move(arg));
    }
    return op.handle.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::Meta), stack);
  }
  auto operands = look_at(op, args);
  if (makes_elsewhere(op, args, operands)) {
    // zeros_like(remote, device="cpu"): the operand lends its geometry alone.
    for (const auto& arg : args) {
      stack->push_back(without_elements(arg));
    }
    at::AutoDispatchBelowADInplaceOrView below;
    return op.handle.callBoxed(stack);
  }
  if (op.over_lists && is_spread(static_cast<int16_t>(operands.device))) {
    // What the host's kernel does is one operator per tensor.
    for (auto& arg : args) {
      stack->push_back(std::move(arg));
    }
    return op.handle.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }
  if (operands.host) {
    if (capture_depth() == 0 && !op.takes_host_index && !op.mutates) {
      for (auto& arg : args) {
        stack->push_back(std::move(arg));
      }
      return run_on_host(op, stack, count);
    }
    each_tensor(op, args, [&](at::Tensor& tensor, bool written) {
      if (!on_device(tensor) && (!is_host_scalar(tensor) || op.takes_host_index)) {
        TORCH_CHECK(!written, "genie: ", op.name, " can't write into a host tensor from remote_accelerator");
        tensor = to_device(tensor, static_cast<int16_t>(operands.device), false);
      }
    });
  }
  check_arguments(op, args);

  const bool lists = std::any_of(op.returns.begin(), op.returns.end(), [](const ReturnInfo& info) {
    return info.kind == ReturnKind::kList || info.kind == ReturnKind::kViewList;
  });
  // How many tensors a list holds must be known to name them.
  const Inferred* known = op.host_returns ? nullptr : infer(op, args, lists);

  std::vector<ValuePtr> values;
  Inferred answered;
  Stream* used = nullptr;
  if (known == nullptr) {
    for (size_t i = 0; i < op.returns.size(); ++i) {
      const auto& info = op.returns[i];
      const bool same = info.kind == ReturnKind::kSame || info.kind == ReturnKind::kSameList;
      answered.lengths.push_back(same ? 0 : 1);
      if (!same) {
        Spec spec; // where it is a tensor, a placeholder: its geometry is the node's to say
        spec.dtype = info.kind == ReturnKind::kHost ? host_dtype(op.handle.schema().returns()[i].type()) : at::kFloat;
        spec.defined = !leaves_undefined(op, args, i);
        answered.specs.push_back(std::move(spec));
      }
    }
  }
  std::optional<Lock> lock; // released while the node is asked
  {
    lock.emplace();
    auto& stream = stream_for(static_cast<int16_t>(operands.device), operands.hint);
    used = &stream;
    if (op.reshapes) {
      own_value(stream, args[0].toTensor());
    }
    each_tensor(op, args, [&](at::Tensor& tensor, bool) {
      if (on_device(tensor)) {
        touch(stream, tensor);
      }
    });
    Writer writer(stream, op.id, static_cast<uint32_t>(count));
    for (size_t i = 0; i < count; ++i) {
      write(writer, args[i], op.args[i], op.tensor_like[i]);
    }
    writer.returns(known != nullptr ? known->specs : answered.specs, values);
    if (known == nullptr || known->ask_layout) {
      flush(stream, true);
      if (known == nullptr) {
        stream.look();
      }
      lock.reset();
    }
  }
  if (known == nullptr) {
    timer.cancel();
    port::looked(static_cast<int16_t>(operands.device), op.name);
    if (!op.host_returns) {
      ask_node(op, args, values, answered);
    }
    known = &answered;
  }

  if (known->ask_layout) {
    answered = *known;
    answered.ask_layout = false;
    ask_node(op, args, values, answered);
    learn_layout(op, args, answered);
    known = &answered;
  }
  if (!known->written.empty()) {
    apply_written(op, args, known->written);
  }
  size_t next = 0;
  for (size_t i = 0; i < op.returns.size(); ++i) {
    const auto& info = op.returns[i];
    switch (info.kind) {
      case ReturnKind::kSame:
      case ReturnKind::kSameList:
        stack->push_back(args[static_cast<size_t>(info.argument)]);
        break;
      case ReturnKind::kHost: {
        const Spec& spec = known->specs[next];
        const auto scalar = to_host(make_tensor(spec, std::move(values[next])));
        ++next;
        stack->push_back(host_value(scalar, op.handle.schema().returns()[i].type()));
        break;
      }
      case ReturnKind::kFresh:
      case ReturnKind::kView: {
        const Spec& spec = known->specs[next];
        auto value = std::move(values[next++]);
        if (!spec.defined) {
          stack->push_back(at::Tensor());
        } else {
          stack->push_back(make_tensor(spec, std::move(value), base_of(op, args, info, 0)));
        }
        break;
      }
      case ReturnKind::kList:
      case ReturnKind::kViewList: {
        c10::List<at::Tensor> list;
        for (uint32_t k = 0; k < known->lengths[i]; ++k) {
          const Spec& spec = known->specs[next];
          auto value = std::move(values[next++]);
          list.push_back(
              spec.defined ? make_tensor(spec, std::move(value), base_of(op, args, info, k)) : at::Tensor());
        }
        stack->push_back(std::move(list));
        break;
      }
    }
  }
  if (check_geometry && !op.host_returns) {
    compare_with_node(op, *stack);
  }
  args.clear();
  values.clear();
  timer.stop();
  if (!lock) {
    lock.emplace();
  }
  maybe_cut(*used);
}

} // namespace genie
