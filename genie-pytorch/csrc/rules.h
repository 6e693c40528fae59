// Shape rules in C++ for operators hot enough that a meta kernel on every new shape would show.
#pragma once

#include "infer.h"

namespace genie {

// Fills `result` and returns true where the rule is sure; false leaves it to memory and the meta kernel.
bool apply_rule(const Operator& op, const torch::jit::Stack& stack, Inferred& result);

} // namespace genie
