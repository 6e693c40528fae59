// The geometry of an operator's outputs, found without running it.
#pragma once

#include "operator.h"
#include "value.h"

#include <ATen/core/stack.h>

#include <optional>
#include <vector>

namespace genie {

struct Inferred {
  // Per return, in schema order; a list return contributes each of its items.
  std::vector<Spec> specs;
  std::vector<uint32_t> lengths; // per return: 1, or the length of the list
  std::vector<Spec> written;     // for out=: the new geometry of each written argument, in argument order
  bool ask_layout = false;       // sizes are sure, strides are the node's to say
};

// From rules for hot operators, then from memory, then from the meta kernel. Empty when none of them knows, and
// only the node can tell; with `must`, that is an error. Throws what PyTorch's own checks throw.
const Inferred* infer(const Operator& op, const torch::jit::Stack& stack, bool must);

// The argument with tensors on the device replaced by tensors without elements.
c10::IValue without_elements(const c10::IValue& value);

// Whether return `i` is undefined though its meta kernel, if there is one, makes it.
bool leaves_undefined(const Operator& op, const torch::jit::Stack& stack, size_t i);

// What the node said of an operator's layouts, for the next time its operands are laid out alike.
void learn_layout(const Operator& op, const torch::jit::Stack& stack, const Inferred& answered);

} // namespace genie
