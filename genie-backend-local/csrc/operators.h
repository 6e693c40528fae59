// The operators a plan may name: PyTorch's own schemas, less those that reach outside of tensors.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <memory>
#include <string>
#include <vector>

#include "shims.h"

namespace genie_local {

struct Operator {
  c10::OperatorHandle handle;
  std::string name;  // "aten::add.Tensor"
  std::vector<bool> writes;  // per argument: the kernel may write into it
  std::vector<bool> aliased;  // per argument: may be written, or share memory with a result
  int generator = -1;  // the index of the generator argument
  bool draws_default = false;  // draws random numbers and takes no generator
  enum class Way : uint8_t {
    plain,
    uncleared,  // it gives out memory as it finds it
    regional,  // it has no kernel: its plan says what it runs
    compiled,  // nor has this: a program that was compiled for the plan
  };
  Way way = Way::plain;
  Shim shim = nullptr;
};

using OperatorPtr = std::shared_ptr<const Operator>;

// Refused (plan) when there is none or it is not allowed.
OperatorPtr find_operator(const std::string& operation, const std::string& overload, c10::DeviceType device);

}  // namespace genie_local
