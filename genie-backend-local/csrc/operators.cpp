#include "operators.h"

#include <ATen/core/enum_tag.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>
#include <unordered_set>

#include "refused.h"
#include "regions.h"

namespace genie_local {
namespace {

bool in_namespace(const std::string& operation, const char* name) {
  return operation.rfind(name, 0) == 0;
}

bool is_denied(const std::string& operation) {
  static const std::unordered_set<std::string> denied = {
      // files and streams of the node
      "aten::from_file",
      "aten::_print",
      "aten::record_stream",
      // autograd's own; there is no autograd here
      "aten::_backward",
      "aten::set_data",
      "aten::requires_grad_",
      "aten::retain_grad",
      "aten::get_gradients",
      // fail as a process, not as an operator
      "aten::_assert_async",
      "aten::_functional_assert_async",
      // build tensors over memory they do not check
      "aten::_nested_view_from_buffer",
      "aten::_nested_view_from_buffer_copy",
      "aten::_sparse_coo_tensor_unsafe",
      "aten::_sparse_compressed_tensor_unsafe",
      "aten::_sparse_csr_tensor_unsafe",
      "aten::_sparse_csc_tensor_unsafe",
      "aten::_sparse_bsr_tensor_unsafe",
      "aten::_sparse_bsc_tensor_unsafe",
  };
  return denied.count(operation) != 0;
}

// What these make is memory as it was left, be it by another session.
bool leaves_memory(const std::string& operation) {
  static const std::unordered_set<std::string> known = {
      "aten::empty",
      "aten::empty_like",
      "aten::empty_permuted",
      "aten::empty_quantized",
      "aten::empty_strided",
      "aten::new_empty",
      "aten::new_empty_strided",
      "aten::_empty_affine_quantized",
      "aten::_empty_per_channel_affine_quantized",
      "aten::resize",
      "aten::resize_",
      "aten::resize_as",
      "aten::resize_as_",
      "aten::_resize_output",
      "aten::_resize_output_",
      "aten::set",
      "aten::set_",
      "prims::empty_strided",
      "prims::empty_permuted",
      "prims::resize",
  };
  return known.count(operation) != 0;
}

bool is_value(const c10::TypePtr& type) {
  switch (type->kind()) {
    case c10::TypeKind::TensorType:
    case c10::TypeKind::BoolType:
    case c10::TypeKind::IntType:
    case c10::TypeKind::FloatType:
    case c10::TypeKind::SymIntType:
    case c10::TypeKind::SymFloatType:
    case c10::TypeKind::SymBoolType:
    case c10::TypeKind::NumberType:
      return true;
    case c10::TypeKind::ListType:
    case c10::TypeKind::OptionalType:
      return is_value(type->containedType(0)) &&
          type->containedType(0)->kind() == c10::TypeKind::TensorType;
    default:
      return false;
  }
}

// Batch normalisation updates its running statistics without saying so in its schema.
bool is_written_silently(const std::string& argument) {
  return argument == "running_mean" || argument == "running_var";
}

OperatorPtr look_up(const std::string& operation, const std::string& overload, c10::DeviceType device) {
  const auto full = overload.empty() ? operation : operation + "." + overload;
  if (!in_namespace(operation, "aten::") && !in_namespace(operation, "prims::") && !is_regional(operation)) {
    throw Refused(Refusal::plan, "operator " + full + " is not allowed: only aten:: and prims:: are");
  }
  if (is_denied(operation)) {
    throw Refused(Refusal::plan, "operator " + full + " is not allowed: it reaches outside of the plan's tensors");
  }
  const auto handle = c10::Dispatcher::singleton().findSchema({operation, overload});
  if (!handle) {
    throw Refused(Refusal::plan, "this PyTorch has no operator " + full);
  }
  const auto& schema = handle->schema();
  for (const auto& result : schema.returns()) {
    if (!is_value(result.type())) {
      throw Refused(Refusal::plan, "operator " + full + " is not allowed: it returns " + result.type()->str());
    }
  }
  Operator found{*handle, full};
  // A composite may return a view of anything it is given, whatever its schema says.
  const bool composite = handle->hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd);
  for (const auto& argument : schema.arguments()) {
    const auto* alias = argument.alias_info();
    const bool silent = is_written_silently(argument.name());
    found.writes.push_back(silent || (alias != nullptr && alias->isWrite()));
    found.aliased.push_back(composite || silent || alias != nullptr);
    auto type = argument.real_type();
    if (type->kind() == c10::TypeKind::OptionalType) {
      type = type->containedType(0);
    }
    if (type->kind() == c10::TypeKind::GeneratorType) {
      found.generator = static_cast<int>(found.writes.size()) - 1;
    }
  }
  found.draws_default = found.generator < 0 && handle->hasTag(at::Tag::nondeterministic_seeded);
  if (is_regional(operation)) {
    found.way = Operator::Way::regional;
  } else if (leaves_memory(operation)) {
    found.way = Operator::Way::uncleared;
  }
  found.shim = find_shim(full, device);
  return std::make_shared<const Operator>(std::move(found));
}

}  // namespace

OperatorPtr find_operator(const std::string& operation, const std::string& overload, c10::DeviceType device) {
  static std::mutex lock;
  static std::map<std::tuple<std::string, std::string, c10::DeviceType>, OperatorPtr> known;
  const std::lock_guard<std::mutex> guard(lock);
  auto& found = known[{operation, overload, device}];
  if (!found) {
    found = look_up(operation, overload, device);
  }
  return found;
}

}  // namespace genie_local
