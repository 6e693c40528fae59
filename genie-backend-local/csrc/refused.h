// The two ways things go wrong: a request is refused (Refused), or a step fails (Failure).
#pragma once

#include <c10/util/Exception.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

namespace genie_local {

enum class Refusal { plan, protocol, node, memory, closed };

// Thrown to the caller; becomes the genie.errors class of its kind.
class Refused : public std::runtime_error {
 public:
  Refused(Refusal kind, const std::string& message) : std::runtime_error(message), kind(kind) {}
  const Refusal kind;
};

// What a step's exception said. Values that depend on the step carry it instead of a tensor.
struct Failure {
  std::string kind;  // the Python exception's class name
  std::string message;
  std::string op = {};
  std::string source = {};  // the line of the user's program
  std::string device = {};
  int64_t plan = -1;
  int64_t step = -1;
};

using FailurePtr = std::shared_ptr<const Failure>;

// Thrown to the caller who looks at a poisoned value.
class Poisoned : public std::exception {
 public:
  explicit Poisoned(FailurePtr failure) : failure(std::move(failure)) {}
  const FailurePtr failure;
};

std::string first_line(const std::string& text);

// The exception in flight, for a catch (...) block.
Failure current_failure();

// Errors of PyTorch outside of a plan's steps.
template <class Function>
auto translated(Function&& function) {
  try {
    return function();
  } catch (const c10::Error&) {
    throw Poisoned(std::make_shared<const Failure>(current_failure()));
  }
}

}  // namespace genie_local
