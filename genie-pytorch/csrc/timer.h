// What recording costs, for the program's statistics.
#pragma once

#include "stream.h"

#include <chrono>

namespace genie {

// Times about one operator in 64, which then stands for those before it: two clock reads on each would be a tenth of
// what they measure.
class Timer {
 public:
  Timer() : on_(counters.operators - counters.timed >= 64 || counters.operators == 0) {
    if (on_) {
      start_ = std::chrono::steady_clock::now();
    }
  }

  // Sending is not recording: called before a segment is cut.
  void stop() {
    if (on_) {
      const auto spent = std::chrono::steady_clock::now() - start_;
      const uint64_t meant = counters.operators - counters.timed;
      counters.record_ns += meant * static_cast<uint64_t>(std::chrono::nanoseconds(spent).count());
      counters.timed = counters.operators;
    }
  }

  // The node was asked, which is not recording either.
  void cancel() {
    on_ = false;
  }

 private:
  bool on_;
  std::chrono::steady_clock::time_point start_;
};

} // namespace genie
