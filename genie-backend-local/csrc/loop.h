// A plan repeated: what genie.loops.Loop says, checked, and how far it is.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "plan.h"

namespace genie_local {

struct LoopSpec {
  using Pairs = std::vector<std::pair<int64_t, int64_t>>;
  Pairs carries;  // input, output
  Pairs strides;  // parameter, step
  std::vector<int64_t> emit;
  int64_t stop = -1;
};

// Advanced by Session::iterate, under the session's lock.
class Loop {
 public:
  // `words` are the first iteration's. Refused (plan) when the plan cannot be repeated this way.
  Loop(std::shared_ptr<Plan> plan, std::vector<uint64_t> words, LoopSpec spec, int64_t times);

  // The words of the next iteration; outputs of the last are found under `scratch` handles.
  void advance();
  static int64_t scratch(int64_t output) {
    return -1 - output;  // never a caller's
  }

  const std::shared_ptr<Plan>& plan() const {
    return plan_;
  }
  const std::vector<uint64_t>& words() const {
    return words_;
  }
  const LoopSpec& spec() const {
    return spec_;
  }
  bool begun() const {
    return done_ > 0;
  }
  bool over() const {
    return over_ || done_ >= times_;
  }
  void iterated() {
    ++done_;
  }
  void end() {
    over_ = true;
  }

 private:
  void check() const;

  std::shared_ptr<Plan> plan_;
  std::vector<uint64_t> words_;
  LoopSpec spec_;
  int64_t times_;
  int64_t done_ = 0;
  bool over_ = false;
};

// While it lives, the plan's parameters are these words', afterwards again those of the last execution it received:
// only what changes is ever sent.
class Patched {
 public:
  Patched(Plan& plan, const std::vector<uint64_t>& words);
  ~Patched();
  Patched(const Patched&) = delete;
  Patched& operator=(const Patched&) = delete;

 private:
  void restore();

  Plan& plan_;
  std::vector<size_t> changed_;  // parameters
};

}  // namespace genie_local
