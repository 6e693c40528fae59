// Plans that are one call of a program that a compiler made (genie.compilers), in place of their graph's steps.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <vector>

#include "plan.h"

namespace genie_local {

// A value as a compiled program has it, and as the plan's graph carries it: the same bits.
struct Face {
  std::vector<int64_t> shape;
  c10::ScalarType dtype;
  c10::ScalarType carried;
};

// What a compiled step runs. Tensors go to Python and come back as DLPack capsules, which share their memory. A session's
// own: one call at a time.
class Compiled {
 public:
  Compiled(pybind11::object program, int64_t bytes, std::vector<Face> operands, std::vector<Face> results);
  ~Compiled();
  Compiled(const Compiled&) = delete;
  Compiled& operator=(const Compiled&) = delete;

  // Takes the GIL. Operands that are not as the program takes them are refused by an exception.
  std::vector<at::Tensor> run(const std::vector<at::Tensor>& operands);

  const int64_t bytes;  // what a run allocates

 private:
  // What the program made of an operand's memory, for as long as the operand lies there.
  struct View {
    const void* data = nullptr;
    pybind11::object made;
  };

  at::Tensor as_taken(const at::Tensor& operand, size_t place) const;

  pybind11::object program_;
  pybind11::object view_;
  std::vector<View> views_;
  const std::vector<Face> operands_;
  const std::vector<Face> results_;
};

// `donated` says of each of the plan's inputs whether it is, `takes` which of them are the program's operands.
// `parameters` are the words of the graph's numbers, which are part of the program: with others it is not run.
std::shared_ptr<Plan> compiled_plan(
    const std::string& name,
    const std::vector<bool>& donated,
    const std::vector<int32_t>& takes,
    std::vector<uint64_t> parameters,
    size_t results,
    std::shared_ptr<Compiled> compiled);

}  // namespace genie_local
