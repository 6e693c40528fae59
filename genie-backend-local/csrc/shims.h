// Operators a frontend may record that have no kernel on the device that runs them.
#pragma once

#include <ATen/core/stack.h>
#include <c10/core/Device.h>

#include <string>

namespace genie_local {

// Pops the arguments and pushes the results, as a boxed kernel does.
using Shim = void (*)(torch::jit::Stack& stack);

// nullptr where the operator's own kernel serves.
Shim find_shim(const std::string& name, c10::DeviceType device);

}  // namespace genie_local
