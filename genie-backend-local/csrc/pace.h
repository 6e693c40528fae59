// How many executions there is room for at a time, and how long one that is likely to come is waited for.
#pragma once

#include <ATen/Parallel.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <thread>

namespace genie_local {

using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;

// A session that does not come back within this time has stopped, or does something else in between.
constexpr auto longest_pause = std::chrono::milliseconds(100);
constexpr auto slack = std::chrono::microseconds(100);

inline Clock::duration as_duration(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

inline double in_seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// What is usual, after one more pause. Being late once says less than being early.
inline double usual_pause(double usual, Clock::duration latest) {
  const auto seconds = in_seconds(latest);
  return usual + (usual == 0 ? 1 : seconds < usual ? 0.5 : 0.2) * (seconds - usual);
}

inline int64_t cores() {
  static const int64_t count = [] {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof(set), &set) == 0) {
      return static_cast<int64_t>(CPU_COUNT(&set));
    }
    return static_cast<int64_t>(std::max(std::thread::hardware_concurrency(), 1U));
  }();
  return count;
}

// On the CPU, with the threads each has.
inline int64_t cpu_lanes() {
  return std::max<int64_t>(cores() / at::get_num_threads(), 1);
}

}  // namespace genie_local
