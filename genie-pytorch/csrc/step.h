// One step of a program's loop, recorded as one segment, so that a node may run the steps that follow by itself.
#pragma once

#include "stream.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace genie {

class Step {
 public:
  const Known& known() const {
    return known_;
  }
  // As they were executed; see genie.bindings.
  const std::vector<uint64_t>& words() const {
    return words_;
  }
  const std::vector<bool>& donated() const {
    return donated_;
  }
  int16_t device() const {
    return device_;
  }

 private:
  friend std::shared_ptr<Step> end_step(int16_t);
  friend std::pair<bool, std::vector<uint64_t>> end_rehearsal(int16_t, const Step&);

  int16_t device_ = 0;
  Known known_;
  std::vector<uint32_t> commands_; // the segment's tokens up to its last command
  std::vector<uint64_t> words_;
  std::vector<bool> donated_; // by leaf
};

void begin_step(int16_t device);
// Sends the step. Null when it did not stay one segment: the program looked at a value, or ran a compiled one.
std::shared_ptr<Step> end_step(int16_t device);
// After an exception: what was recorded stays recorded.
void abandon_step(int16_t device);

// A step recorded to see what it would be, and dropped. What it would look at raises.
void begin_rehearsal(int16_t device);
// Whether its commands are those of `like`, and its words after the first.
std::pair<bool, std::vector<uint64_t>> end_rehearsal(int16_t device, const Step& like);

// A tensor for a rehearsal, known by a handle that is somebody else's.
at::Tensor stand_in(const at::Tensor& like, uint64_t handle, const std::vector<int64_t>& sizes);

// A step's plan about to be repeated on the node: its bindings, and names for what the last iteration makes.
class Repetition {
 public:
  // `words` are those of the first iteration; the first of them is chosen here.
  Repetition(const Step& step, std::vector<uint64_t> words);

  const std::string& bindings() const {
    return bindings_;
  }
  // The node has the bindings: from now on both sides remember them.
  void begun();
  // Output k of the last iteration.
  at::Tensor output(size_t k, const at::Tensor& like, const std::vector<int64_t>& sizes) const;

 private:
  std::shared_ptr<Plan> plan_;
  std::string bindings_;
  std::vector<ValuePtr> values_;
};

// The node takes this value over: whoever looks at it here, or computes with it, is told so.
void give_up(const at::Tensor& tensor);

} // namespace genie
