// How long steps take: some executions are timed step by step, the times summed by operator, shapes and phase.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "memory.h"
#include "plan.h"

namespace genie_local {

// The operator, the phase, and the tensors it was given and made.
struct TimingKey {
  const Operator* op = nullptr;
  const std::string* phase = nullptr;
  size_t operands = 0;  // of the tensors in `words`; the others were made
  // Per tensor: dtype, whether it is contiguous, and rank in one word; then its sizes.
  std::vector<int64_t> words;

  bool operator==(const TimingKey& other) const {
    return op == other.op && phase == other.phase && operands == other.operands && words == other.words;
  }
};

struct TimingKeyHash {
  size_t operator()(const TimingKey& key) const;
};

struct TimedTensor {
  c10::ScalarType dtype;
  bool contiguous;
  std::vector<int64_t> shape;
};

// Times in seconds. `typical` is the median of the latest.
struct TimingRow {
  std::string target;
  std::string phase;
  std::vector<TimedTensor> operands;
  std::vector<TimedTensor> results;
  int64_t count = 0;
  double mean = 0;
  double least = 0;
  double variance = 0;
  double typical = 0;
};

// A phase by an address that is its own: their vocabulary is closed and small.
const std::string* phase_named(const std::string& name);

// Decides which executions are timed, so that all of timing takes at most `share` of the time, and keeps the sums.
//
// On the CPU a step's time is that of the thread. Elsewhere it is the device's, by events in its stream: nobody waits
// for them, they are read when they have come to pass. What a device's events cannot tell is not timed.
class Timer {
 public:
  explicit Timer(c10::Device device);

  // Whether the execution of `plan` that now begins is to be timed.
  bool due(Plan& plan);
  // Of executions that are timed: around the execution, and around each of its steps.
  void begin();
  void before(const Step& step, const std::vector<Holder*>& slots);
  void performed(const Step& step, const std::vector<Holder*>& slots, bool done);
  void released(const Step& step);
  void end(Plan& plan);

  // Of the time; 1: every execution is timed, 0: none.
  void set_share(double share) {
    share_ = share;
  }
  bool always() const {
    return share_ >= 1;
  }
  // The rows since the last call.
  std::vector<TimingRow> take();
  int64_t timed() const {
    return timed_;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr size_t recent = 32;
  struct Sums {
    OperatorPtr op;  // keeps the key's address its own
    int64_t count = 0;
    double mean = 0;
    double squares = 0;  // of differences from the mean (Welford, 1962)
    double least = 0;
    std::array<float, recent> latest{};
  };
  struct Pending {
    std::vector<c10::Event> events;  // one before the first step, one after each
    std::vector<std::pair<OperatorPtr, TimingKey>> keys;  // no operator: the step was not done
  };

  void note(const at::Tensor& tensor);
  void add(const OperatorPtr& op, const TimingKey& key, double seconds);
  void record(Pending& pending);
  void settle();

  const c10::Device device_;
  double share_ = 0.005;
  double allowance_ = 0;  // seconds that timing may take by now
  double step_ = 5e-6;  // what a step takes, and what timing it costs, by what was seen
  double cost_ = 3e-7;
  double tick_ = 0;  // what asking the time costs
  int64_t timed_ = 0;  // executions
  TimingKey key_;
  bool known_ = true;  // the step was done, and key_ says all of its tensors
  double took_ = 0;  // the step, so far
  Clock::time_point began_;
  Clock::time_point started_;
  double inside_ = 0;  // seconds within the steps of this execution
  std::unordered_map<TimingKey, Sums, TimingKeyHash> sums_;
  std::optional<Pending> events_;  // of this execution
  std::deque<Pending> pending_;
};

}  // namespace genie_local
