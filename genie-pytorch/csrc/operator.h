// What the recorder needs to know of an ATen operator, read once from its schema.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <string>
#include <vector>

namespace genie {

enum class ArgKind : uint8_t {
  kPlain,        // decided by the value at hand
  kScalar,       // Scalar: its number can't change a shape
  kDtype,
  kLayout,
  kMemoryFormat,
  kDevice,
  kGenerator,
  kRefused,      // storages, streams, names: nothing a plan can carry
};

enum class ReturnKind : uint8_t {
  kFresh,     // a new tensor
  kView,      // a new tensor on the memory of an argument
  kSame,      // the very argument, written in place
  kList,      // a list of new tensors
  kViewList,
  kSameList,
  kHost,      // a number or a flag: the program looks at it at once
};

struct ReturnInfo {
  ReturnKind kind;
  int argument = -1; // for views and sames
};

// How the shapes of an operator's outputs are found without running it.
enum class Rule : uint8_t { kNone, kPointwise, kLinear, kAttention, kMatmul, kCat, kSoftmax, kLayerNorm, kBatchNorm, kEmbedding, kArange };

struct Operator {
  c10::OperatorHandle handle;
  uint32_t id;                   // interned name
  std::string name;              // "aten::add"
  std::string overload;          // "Tensor"
  std::vector<ArgKind> args;
  std::vector<bool> written;     // per argument
  std::vector<bool> tensor_like; // per argument: Tensor, Tensor?, Tensor[] or Tensor?[]
  std::vector<ReturnInfo> returns;
  bool factory = false;          // no tensor argument: every scalar matters for shapes
  bool has_refused = false;
  bool mutates = false;
  bool resizes = false;          // out=: the written argument may change its geometry
  bool reshapes = false;         // changes the geometry of its first argument in place
  bool host_returns = false;
  bool ask_node = false;         // its meta kernel is known to differ from the real one
  bool over_lists = false;       // the same for each tensor of its lists
  bool takes_host_index = false; // indices may live on the host, as on every accelerator
  std::vector<size_t> writes_unsaid; // arguments written though the schema doesn't say so, …
  size_t writes_unsaid_if = 0;       // … when this flag is true
  Rule rule = Rule::kNone;

  explicit Operator(c10::OperatorHandle handle);
};

// The operator with this interned id.
const Operator& operator_at(uint32_t id);
// Registered for the handle; made on first use.
const Operator& operator_for(const c10::OperatorHandle& handle);

} // namespace genie
