// What makes an execution end between two operators: somebody asked, or its time is up.
#pragma once

#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <mutex>
#include <string>
#include <utility>

namespace genie_local {

class Stop {
 public:
  static constexpr int64_t never = std::numeric_limits<int64_t>::max();

  // From any thread. Holds for what runs now and for all that comes, until `resume`.
  void ask(std::string reason) {
    const std::lock_guard<std::mutex> lock(lock_);
    reason_ = std::move(reason);
    asked_.store(true, std::memory_order_release);
  }
  void resume() {
    asked_.store(false, std::memory_order_release);
  }
  // Seconds one execution may take; 0: as long as it likes.
  void limit(double seconds) {
    limit_.store(seconds > 0 ? seconds : 0, std::memory_order_relaxed);
  }
  double limit() const {
    return limit_.load(std::memory_order_relaxed);
  }

  // When an execution that begins now has to be done.
  int64_t until() const {
    const auto seconds = limit();
    return seconds > 0 ? now() + static_cast<int64_t>(std::min(seconds, 1e9) * 1e9) : never;
  }
  bool asked() const {
    return asked_.load(std::memory_order_acquire);
  }
  // Before every operator: a load, and where executions are limited a look at the coarse clock.
  bool due(int64_t until) const {
    return asked() || (until != never && now() >= until);
  }
  std::string reason() {
    const std::lock_guard<std::mutex> lock(lock_);
    return reason_;
  }

 private:
  // Good to a few milliseconds, and a fifth of the price of the exact one.
  static int64_t now() {
    timespec time{};
    clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
    return int64_t{1000000000} * time.tv_sec + time.tv_nsec;
  }

  std::atomic<bool> asked_{false};
  std::atomic<double> limit_{0};
  std::mutex lock_;
  std::string reason_;
};

}  // namespace genie_local
