// Shape rules in C++ for operators hot enough that a meta kernel on every new shape would show.
//
// Each covers the common case and leaves the rest, errors included, to the meta kernel.
#pragma once

#include "infer.h"

namespace genie {

// Fills `result` and returns true where the rule is sure.
bool apply_rule(const Operator& op, const torch::jit::Stack& stack, Inferred& result);

// The geometry of a pointwise result, dtype apart.
bool pointwise_geometry(const Operator& op, const torch::jit::Stack& stack, Inferred& result);

// Whether the device computes on a CPU: some layouts depend on it.
void set_host_like(int16_t device, bool host_like);

} // namespace genie
