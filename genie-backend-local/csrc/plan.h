// A graph made ready to run: operators found, arguments checked against schemas and converted, liveness known.
#pragma once

#include <ATen/core/ivalue.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bindings.h"
#include "operators.h"
#include "regions.h"

namespace genie_local {

class Compiled;  // compiled.h

struct Argument {
  enum class Kind : uint8_t {
    constant,  // `constant`
    value,  // the value numbered `value`
    tensors,  // a list of `values`; -2 - n: the n-th of `scalars`
    optional_tensors,  // the same; -1: none
    fresh,  // a copy of the tensor `constant`: the step writes to it or makes a view of it
    generator,  // the session's generator numbered `value`
  };
  Kind kind = Kind::constant;
  int64_t value = 0;
  std::vector<int32_t> values;
  std::vector<at::Tensor> scalars;
  bool fresh_scalars = false;  // as `fresh`
  c10::IValue constant;
};

struct Step {
  OperatorPtr op;
  std::vector<Argument> arguments;
  std::vector<int32_t> outputs;  // -1: not kept
  std::vector<int32_t> written;  // values the step may write to
  std::vector<int32_t> released;  // values nobody needs after the step
  int32_t source;  // in the plan's sources, or -1
  c10::Device device;  // of a random draw, where no operand says
  const std::string* phase;  // its name, "" where unknown; equal names have one address
  std::unique_ptr<Regional> regional = nullptr;
  std::shared_ptr<Compiled> compiled = nullptr;
};

// Where a parameter goes. Several patches may belong to one word (an int that stands for a whole list).
struct Patch {
  enum class Target : uint8_t { nothing, number, real, list_number, list_int, list_real, tensor, list_tensor };
  uint32_t step = 0;
  uint32_t argument = 0;
  uint32_t item = 0;
  int32_t region = -1;  // of the plan's, where the step is in one
  uint32_t repeat = 1;  // items, for a list that is written as one number
  Target target = Target::nothing;
  bool is_float = false;  // the word holds a double's bits
  bool wrapped = false;
  c10::ScalarType dtype = c10::ScalarType::Undefined;
};

// A step that multiplies what differs from execution to execution by what may be the same memory in all of them.
struct Product {
  uint32_t step = 0;
  int8_t rows = 0;  // the argument whose rows are multiplied …
  int8_t weight = 0;  // … by this one
  int8_t bias = -1;  // is added, if there is one
  int8_t made = 0;  // the dimension of the weight that becomes the result's last
};

struct Plan {
  struct Input {
    int32_t value;
    bool donated;
  };
  int64_t id = 0;
  size_t values = 0;
  std::vector<Input> inputs;
  std::vector<Step> steps;
  std::vector<int32_t> outputs;
  std::vector<Patch> patches;  // one per parameter
  std::vector<uint64_t> parameters;
  std::vector<std::string> sources;
  bool donates = false;
  bool fixed = false;  // its parameters are part of what it runs
  std::vector<std::unique_ptr<Plan>> regions;  // those of its steps, and those of their steps
  // For timing: executions so far, and what the steps of a timed one took, in seconds.
  uint64_t executions = 0;
  double usual = 0;
  // For execution together with others (batch.h): the products of phase decode by inputs or views of inputs, and these
  // inputs' values.
  std::vector<Product> products;
  std::vector<int32_t> weights;

  // Decodes one execution's bindings and patches the parameters that changed. Refused (protocol) when they are
  // malformed or a number does not fit.
  void receive(const uint8_t* bindings, size_t size);

  void patch(size_t parameter, uint64_t word);

  std::unique_ptr<Prediction> prediction;
};

// A zero-dimensional host tensor.
at::Tensor scalar_tensor(const c10::Scalar& number, c10::ScalarType dtype, bool wrapped);

}  // namespace genie_local
