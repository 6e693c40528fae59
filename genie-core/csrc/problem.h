// What is to be placed: a graph as arrays, devices, links, and what must hold.

#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <utility>
#include <vector>

namespace genie {

// Lists of different lengths, one after the other.
struct Lists {
  std::vector<int> start{0};
  std::vector<int> items;

  std::span<const int> of(int at) const {
    return {items.data() + start[at], static_cast<size_t>(start[at + 1] - start[at])};
  }
  void close() { start.push_back(static_cast<int>(items.size())); }
  int size() const { return static_cast<int>(start.size()) - 1; }
};

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr int kMade = -2;      // a value that a step makes
constexpr int kAnywhere = -1;  // an input that starts where it is used first

struct Problem {
  int steps = 0;
  int devices = 0;
  int values = 0;
  std::vector<double> seconds;     // [device * steps + step]
  Lists operands;                  // per step, each value once
  Lists outputs;                   // per step
  std::vector<int> parent;         // value → the operand whose memory it shares, or -1
  std::vector<int64_t> size;       // value → bytes
  std::vector<int> home;           // value → kMade, kAnywhere, or the device an input lives on
  std::vector<int> last;           // value → the step after which it is forgotten; `steps`: never
  std::vector<double> latency;     // [from * devices + to], seconds
  std::vector<double> bandwidth;   // [from * devices + to], bytes per second
  std::vector<int64_t> capacity;   // device → bytes
  std::vector<int> unit;           // step → the steps that must be where it is
  int units = 0;
  std::vector<uint8_t> allowed;    // [unit * devices + device]
  std::vector<int> block;          // step → a label; runs of one label are likely to go together
  std::vector<int> order;          // the order in which devices run their steps; empty: as they are numbered
  bool ports = true;               // a device sends one value at a time, and receives one

  // Found by `prepare`.
  Lists members;                   // unit → steps
  Lists released;                  // step → values
  Lists users;                     // value → steps, in order
  std::vector<int> maker;          // value → step, or -1
  bool tight = true;               // whether memory may not suffice

  void prepare();
  double transfer(int value, int from, int to) const {
    const size_t link = static_cast<size_t>(from) * devices + to;
    return latency[link] + static_cast<double>(size[value]) / bandwidth[link];
  }
  bool may(int unit_, int device) const { return allowed[static_cast<size_t>(unit_) * devices + device] != 0; }
  double cost(int device, int step) const { return seconds[static_cast<size_t>(device) * steps + step]; }
};

struct Move {
  int value, from, to, before;
  double begin, end;
  int cause;  // what it waited for: -1 nothing; the sender's or receiver's transfer before it; kMaking: the value
  bool at_sender;
};
constexpr int kMaking = -2;

struct Outcome {
  double makespan = 0.0;
  std::vector<double> busy, sent, received;  // seconds per device
  double moved = 0.0;                        // bytes
  double overflow = 0.0;                     // bytes over capacity, as shares of it, over all devices
  std::vector<int64_t> peak;                 // bytes per device
};

// Runs a placement in time. Keeps its memory from call to call.
class Clock {
 public:
  explicit Clock(const Problem& problem);
  // `place`: step → device.
  void run(const std::vector<int>& place, Outcome& outcome);

  std::vector<double> begin, end;  // per step
  std::vector<int> cause;          // per step: -1 nothing, kMaking the step before on its device, else a transfer
  std::vector<int> before;         // per step: the one before it on its device, or -1
  std::vector<Move> moves;         // in the order of the steps they are needed by
  int last = -1;                   // the step that ends last

 private:
  void send(int value, int at, double ready);

  const Problem& p_;
  struct Slot {  // a value on a device
    double arrival = 0.0;
    int arrived = 0;  // the epoch it is there in
    int wanted = 0;   // the epoch it is sent there in
    int move = -1;
  };
  Slot& slot(int value, int device) { return slots_[static_cast<size_t>(value) * p_.devices + device]; }

  std::vector<Slot> slots_;
  std::vector<int> head_of_, next_of_, tail_of_, home_;  // of a value's transfers
  std::vector<std::vector<int>> queue_;  // per device: transfers in the order they became ready
  std::vector<size_t> front_;
  std::vector<double> ready_;
  std::vector<std::vector<int>> list_;
  std::vector<size_t> at_;
  std::vector<double> free_, out_, in_;
  std::vector<int> out_by_, in_by_;
  int epoch_ = 0;
};

// Bytes per device over the steps, by liveness. Keeps its memory from call to call.
class Ledger {
 public:
  explicit Ledger(const Problem& problem);
  void run(const std::vector<int>& place, Outcome& outcome);

 private:
  struct Holding {
    int device, allocation, next;
  };
  int find(int value, int device) const;
  void hold(int value, int device, int allocation);

  const Problem& p_;
  std::vector<int> first_;  // value → its first holding, or -1
  std::vector<Holding> holdings_;
  std::vector<int64_t> bytes_;
  std::vector<int> sharers_, where_;
  std::vector<int64_t> held_;
};

struct Score {
  double overflow = 0.0;   // of memory
  double violation = 0.0;  // of caps, as shares of them
  double value = 0.0;
  double moved = 0.0;

  bool better(const Score& other) const {
    if (overflow != other.overflow) return overflow < other.overflow;
    if (violation != other.violation) return violation < other.violation;
    const double slack = 1e-12 * (value < other.value ? other.value : value);
    if (value < other.value - slack) return true;
    return value <= other.value + slack && moved < other.moved;
  }
  double scalar() const { return (value + 1e-12) * (1 + 8 * violation + 32 * overflow); }
};

struct Objective {
  enum Kind { kLatency, kCost, kThroughput, kUser };
  Kind kind = kLatency;
  std::vector<double> price;  // device → what a second on it costs
  double latency_cap = 0.0;   // seconds; 0: none
  double cost_cap = 0.0;      // 0: none
  double handover = 0.0;      // seconds that each further device must gain (kLatency)
  std::function<std::pair<double, double>(const Outcome&)> user;  // → score, violation

  Score score(const Outcome& outcome) const;
};

}  // namespace genie
