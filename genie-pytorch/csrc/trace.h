// A program recorded whole: one plan, run again without recording.
#pragma once

#include "stream.h"

#include <memory>
#include <optional>
#include <vector>

namespace genie {

class Trace {
 public:
  // Fresh outputs for these inputs, which must be like the traced ones; an output that was an input is that input.
  // `look`: one of them is about to be looked at, so the execution may travel with the question.
  std::vector<at::Tensor> replay(const std::vector<at::Tensor>& inputs, bool look);

 private:
  friend std::shared_ptr<Trace> end_trace(int16_t, const std::vector<at::Tensor>&, const std::vector<at::Tensor>&);

  struct Leaf {
    int input = -1;    // which input it is, or …
    ValuePtr constant; // … a value the program made its own
  };
  struct Output {
    int input = -1;      // the very input
    int value = -1;      // else: position among the plan's outputs, or …
    int leaf_input = -1; // … the input whose value it shares
    int base_input = -1; // whose memory it is a view of
    int base_output = -1;
    Spec spec;
  };

  int16_t device_ = 0;
  Known known_;
  std::vector<Leaf> leaves_;
  std::vector<uint64_t> parameters_;
  std::vector<Output> outputs_;
  std::vector<int> same_value_; // per input: the first input that is the same value
  std::vector<bool> written_;   // per input: its version moved while it was traced
};

void begin_trace(int16_t device, const std::vector<at::Tensor>& inputs);
// Null when the program looked at a value on the way or mixes in what can't be replayed; it has run all the same.
std::shared_ptr<Trace> end_trace(
    int16_t device, const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& outputs);
// After an exception: what was recorded stays recorded.
void abandon_trace(int16_t device);

} // namespace genie
