#include "operator.h"

#include <deque>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

namespace genie {

namespace {

std::mutex guard;
std::deque<Operator> operators;
std::unordered_map<std::string, uint32_t> by_name;

ArgKind kind_of(const c10::Argument& argument) {
  // The real type keeps what the plain one forgets: dtype, layout and memory format are ints in a stack.
  c10::TypePtr type = argument.real_type();
  if (auto optional = type->cast<c10::OptionalType>()) {
    type = optional->getElementType();
  }
  if (auto list = type->cast<c10::ListType>(); list && list->getElementType()->kind() == c10::TypeKind::NumberType) {
    return ArgKind::kScalar; // of each item
  }
  switch (type->kind()) {
    case c10::TypeKind::ScalarTypeType:
      return ArgKind::kDtype;
    case c10::TypeKind::LayoutType:
      return ArgKind::kLayout;
    case c10::TypeKind::MemoryFormatType:
      return ArgKind::kMemoryFormat;
    case c10::TypeKind::DeviceObjType:
      return ArgKind::kDevice;
    case c10::TypeKind::GeneratorType:
      return ArgKind::kGenerator;
    case c10::TypeKind::NumberType:
      return ArgKind::kScalar;
    case c10::TypeKind::StorageType:
    case c10::TypeKind::StreamObjType:
    case c10::TypeKind::QSchemeType:
      return ArgKind::kRefused;
    default:
      return ArgKind::kPlain;
  }
}

bool holds_tensors(const c10::TypePtr& type) {
  switch (type->kind()) {
    case c10::TypeKind::TensorType:
      return true;
    case c10::TypeKind::OptionalType:
      return holds_tensors(type->expectRef<c10::OptionalType>().getElementType());
    case c10::TypeKind::ListType:
      return holds_tensors(type->expectRef<c10::ListType>().getElementType());
    default:
      return false;
  }
}

bool is_tensor_list(const c10::TypePtr& type) {
  return type->kind() == c10::TypeKind::ListType && holds_tensors(type);
}

const std::unordered_map<std::string, Rule>& rules() {
  static const std::unordered_map<std::string, Rule> table = [] {
    std::unordered_map<std::string, Rule> t;
    for (const char* name :
         {"add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_", "pow", "neg", "rsqrt", "sqrt", "exp", "tanh",
          "sigmoid", "relu", "silu", "gelu", "cos", "sin", "eq", "ne", "lt", "le", "gt", "ge", "logical_not",
          "bitwise_and", "bitwise_or", "bitwise_not", "logical_and", "logical_or", "where", "masked_fill",
          "maximum", "minimum", "rsub", "reciprocal", "abs", "erf", "log", "clone"}) {
      t.emplace(std::string("aten::") + name, Rule::kPointwise);
    }
    for (const char* name : {"mm", "bmm", "addmm", "baddbmm"}) {
      t.emplace(std::string("aten::") + name, Rule::kMatmul);
    }
    t.emplace("aten::linear", Rule::kLinear);
    t.emplace("aten::scaled_dot_product_attention", Rule::kAttention);
    t.emplace("aten::cat", Rule::kCat);
    t.emplace("aten::_softmax", Rule::kSoftmax);
    t.emplace("aten::_log_softmax", Rule::kSoftmax);
    t.emplace("aten::native_layer_norm", Rule::kLayerNorm);
    t.emplace("aten::native_batch_norm", Rule::kBatchNorm);
    t.emplace("aten::embedding", Rule::kEmbedding);
    t.emplace("aten::arange", Rule::kArange);
    return t;
  }();
  return table;
}

} // namespace

Operator::Operator(c10::OperatorHandle op)
    : handle(op), id(0), name(op.schema().name()), overload(op.schema().overload_name()) {
  const auto& schema = op.schema();
  factory = true;
  for (const auto& argument : schema.arguments()) {
    args.push_back(kind_of(argument));
    has_refused = has_refused || args.back() == ArgKind::kRefused;
    const bool tensors = holds_tensors(argument.type());
    tensor_like.push_back(tensors);
    factory = factory && !tensors;
    const bool write = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
    written.push_back(write);
    mutates = mutates || write;
    resizes = resizes || (write && argument.is_out());
  }
  for (const auto& ret : schema.returns()) {
    ReturnInfo info{ReturnKind::kFresh};
    const bool list = is_tensor_list(ret.type());
    if (!holds_tensors(ret.type())) {
      info.kind = ReturnKind::kHost;
      host_returns = true;
    } else if (const auto* alias = ret.alias_info()) {
      for (size_t i = 0; i < schema.arguments().size(); ++i) {
        const auto* other = schema.arguments()[i].alias_info();
        if (other == nullptr) {
          continue;
        }
        for (const auto& set : alias->beforeSets()) {
          if (other->beforeSets().count(set) != 0) {
            info.argument = static_cast<int>(i);
          }
        }
      }
      if (alias->isWrite()) {
        info.kind = list ? ReturnKind::kSameList : ReturnKind::kSame;
      } else {
        info.kind = list ? ReturnKind::kViewList : ReturnKind::kView;
      }
      if (info.argument < 0) {
        info.kind = list ? ReturnKind::kList : ReturnKind::kFresh;
      }
    } else if (list) {
      info.kind = ReturnKind::kList;
    }
    returns.push_back(info);
  }
  // Schemas that don't say they write: batch norm updates its running statistics in training.
  static const std::unordered_set<std::string> batch_norms{"aten::native_batch_norm", "aten::cudnn_batch_norm"};
  if (batch_norms.count(name) != 0 && args.size() > 5) {
    writes_unsaid = {3, 4};
    writes_unsaid_if = 5;
  }
  static const std::unordered_set<std::string> host_index{
      "aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_", "aten::_unsafe_index",
      "aten::_unsafe_index_put", "aten::tensor_split", "aten::repeat_interleave"};
  takes_host_index = host_index.count(name) != 0;
  static const std::unordered_set<std::string> geometry{
      "aten::resize_", "aten::resize_as_", "aten::squeeze_", "aten::unsqueeze_", "aten::t_", "aten::transpose_",
      "aten::as_strided_", "aten::_resize_output_"};
  reshapes = geometry.count(name) != 0;
  resizes = resizes || reshapes;
  // Batch norm in evaluation saves nothing on a CPU and empty statistics elsewhere; embedding bags skip offsets
  // they don't need; LAPACK and FFT results come in the layout of the library that made them.
  static const std::unordered_set<std::string> differs{
      "aten::native_batch_norm", "aten::_native_batch_norm_legit", "aten::linalg_eig", "aten::_fft_r2c",
      "aten::_linalg_svd", "aten::_embedding_bag_forward_only", "aten::multilabel_margin_loss_forward", "aten::_embedding_bag"};
  ask_node = differs.count(name) != 0;
  over_lists = name.rfind("aten::_foreach_", 0) == 0;
  const auto found = rules().find(name);
  if (found != rules().end() && overload.find("out") == std::string::npos) {
    rule = found->second;
  }
}

const Operator& operator_at(uint32_t id) {
  std::lock_guard<std::mutex> lock(guard);
  return operators.at(id);
}

const Operator& operator_for(const c10::OperatorHandle& handle) {
  const auto& schema = handle.schema();
  const std::string key = schema.name() + "." + schema.overload_name();
  std::lock_guard<std::mutex> lock(guard);
  const auto found = by_name.find(key);
  if (found != by_name.end()) {
    return operators[found->second];
  }
  operators.emplace_back(handle);
  const auto id = static_cast<uint32_t>(operators.size() - 1);
  operators.back().id = id;
  by_name.emplace(key, id);
  return operators.back();
}

} // namespace genie
