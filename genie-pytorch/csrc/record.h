// The boxed kernel behind every operator on the device.
#pragma once

#include "operator.h"
#include "stream.h"

#include <ATen/core/stack.h>

namespace genie {

// Replaces the arguments on the stack by the operator's returns, and writes the command.
void record(const Operator& op, torch::jit::Stack* stack);

// Host ↔ device, in transfer.cpp.
at::Tensor to_device(const at::Tensor& host, int16_t device, bool keep_layout);
at::Tensor to_host(const at::Tensor& tensor);

// Debugging: every output's geometry is compared with the node's, at the price of a round trip each.
extern bool check_geometry;

// Whether this thread is inside genie.capture(): host operands are then lifted instead of the device's brought home.
int& capture_depth();

uint32_t generator_number(const at::Generator& generator);

} // namespace genie
