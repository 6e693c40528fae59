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
  std::vector<std::pair<int, int>> entries;  // (step, input it uses), in order
  std::vector<int> maker;          // value → step, or -1
  std::vector<double> onward;      // step → the least time from its start to the end
  bool tight = true;               // whether memory may not suffice
  std::vector<int> link_kind;      // [from * devices + to] → links of one kind have equal figures; empty: too many
  std::vector<double> sending;     // [kind * values + value], seconds

  void prepare();
  double transfer(int value, int from, int to) const {
    const size_t link = static_cast<size_t>(from) * devices + to;
    if (!link_kind.empty()) return sending[static_cast<size_t>(link_kind[link]) * values + value];
    return latency[link] + static_cast<double>(size[value]) / bandwidth[link];
  }
  bool may(int unit_, int device) const { return allowed[static_cast<size_t>(unit_) * devices + device] != 0; }
  double cost(int device, int step) const { return seconds[static_cast<size_t>(device) * steps + step]; }
};

struct Move {
  int value, from, to, before;
  double ready;
  double begin, end;
  int cause;     // what it waited for: kMaking the value, else the transfer that kept its sender or its receiver
  double until;  // bytes its sender sent so far, these included
};
constexpr int kMaking = -2;

struct Span {
  double begin = 0.0, end = 0.0;
  int cause = -1;   // -1 nothing, kMaking the step before on its device, else a transfer
  int before = -1;  // the step before it on its device
};

struct Outcome {
  double makespan = 0.0;
  std::vector<double> busy, sent, received;  // seconds per device
  double moved = 0.0;                        // bytes
  double overflow = 0.0;                     // bytes over capacity, as shares of it, over all devices
  std::vector<int64_t> peak;                 // bytes per device
};

// Runs placements in time. Keeps its memory from call to call, and the times of one run, so that a placement that
// differs in little from it need not be run from the start.
class Clock {
 public:
  explicit Clock(const Problem& problem);
  // `place`: step → device. Gives up, and says so, once the end is sure to come after `limit`.
  bool run(const std::vector<int>& place, Outcome& outcome, double limit = kNever);
  // The same for a placement that differs from the one kept in `changed` steps alone, none of which, then or now, has
  // to do with anything that begins before `from`: what does is taken as it was. Nothing is told of ports.
  bool rerun(const std::vector<int>& place, std::span<const int> changed, double from, Outcome& outcome, double limit);
  void keep();    // the times of the last run
  void forget();  // the last run

  // Of the run that is kept.
  std::vector<Span> spans;  // per step
  std::vector<Move> moves;  // by number; among them are some that are no more
  std::vector<int> events;  // steps, and ~transfers, in an order in which each comes after all that it waited for
  int last = -1;            // the step that ends last
  const std::vector<int>& sent_by(int device) const { return lines_[device]; }  // in order
  const std::vector<int>& received_by(int device) const { return arrivals_[device]; }

  // Of transfers, that which brings a value to a device it is not made on.
  int brings(int value, int device) const { return slots_[static_cast<size_t>(value) * p_.devices + device].kept; }
  // From the start of each step, and of each transfer, to the end, if devices and ports keep to their orders.
  void ways_to_end(const std::vector<int>& place, std::vector<double>& steps, std::vector<double>& transfers) const;

  int ran = 0;  // steps in the last run, as far as it went
  int64_t work() const { return static_cast<int64_t>(fresh_events_.size()); }  // … and its transfers

 private:
  struct Slot {  // a value on a device
    double arrival = 0.0;
    int arrived = 0;  // the epoch it is there in
    int sent = 0;     // the epoch it is sent there in
    int move = -1;    // that brings it in this epoch
    int kept = -1;    // … in the run that is kept
  };
  struct Device {
    double free = 0.0, out = 0.0, in = 0.0;  // when it, and its ports, have nothing more to do
    double rest = 0.0;                       // seconds of steps it has still to do
    double until = 0.0;                      // bytes sent
    int step = -1, previous = -1;            // its next step, and the one it did last
    int out_by = -1, in_by = -1;             // transfers that took its ports last
    size_t front = 0;                        // the first of its transfers that waits; again, at hand:
    double ready = kNever;
    int to = 0;
    size_t sent = 0, received = 0;  // transfers that stay as they are
  };

  void start(const std::vector<int>& place, Outcome& outcome);
  bool finish(double limit, Outcome& outcome);
  void send(int value, int from, double ready);
  void queue(int value, int from, int to, int before, double ready);
  bool advance(int device, double limit, Outcome& outcome);
  void show_front(Device& device, int number);
  void set_home(int value, int device);
  void compact();
  Slot& slot(int value, int device) { return slots_[static_cast<size_t>(value) * p_.devices + device]; }

  const Problem& p_;
  const std::vector<int>* place_ = nullptr;
  double from_ = -1.0;  // what begins before is as it was
  int epoch_ = 0;
  std::vector<Slot> slots_;
  std::vector<int> home_, home_kept_;  // value → where it is made or starts
  std::vector<std::pair<int, int>> homes_before_;
  std::vector<Device> devices_;
  std::vector<int> next_step_;            // step → the next one on its device
  std::vector<Span> fresh_;               // per step, of the last run
  std::vector<int> fresh_events_;         // of the last run
  int fresh_last_ = -1;
  size_t kept_moves_ = 0;                 // how many of `moves` are of the run that is kept
  // Transfers by sender in the order they became ready, and by receiver in the order they began.
  std::vector<std::vector<int>> lines_, arrivals_, fresh_lines_, fresh_arrivals_;
};

// Bytes per device over the steps, by liveness. Keeps its memory from call to call.
class Ledger {
 public:
  explicit Ledger(const Problem& problem);
  void run(const std::vector<int>& place, Outcome& outcome);

 private:
  struct Holding {  // a value on a device it was not made on
    int device, allocation, next;
  };
  int find(int value, int device) const;
  int allocate(int value, int device);

  const Problem& p_;
  std::vector<int> home_, main_;  // value → where it was made, and its memory there
  std::vector<int> copies_;       // value → its first holding elsewhere, or -1
  std::vector<Holding> holdings_;
  struct Allocation {
    int64_t bytes;
    int device, sharers;
  };
  std::vector<Allocation> allocations_;
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
    const double slack = 1e-12 * (value < other.value ? value : other.value);
    if (value < other.value - slack) return true;
    return value <= other.value + slack && moved < other.moved;
  }
  double scalar() const { return (value + 1e-12) * (1 + 8 * violation + 32 * overflow); }
};

struct Objective {
  enum Kind { kLatency, kCost, kThroughput, kUser };
  Kind kind = kLatency;
  std::vector<double> price;  // device → what a second on it costs
  std::vector<double> handling;  // device → the share of a transfer's time that its work takes (kThroughput)
  double latency_cap = 0.0;   // seconds; 0: none
  double cost_cap = 0.0;      // 0: none
  double thrift = 0.0;        // what a second of sending must save (kLatency)
  double handover = 0.0;      // seconds that each further device must gain (kLatency)
  std::function<std::pair<double, double>(const Outcome&)> user;  // → score, violation

  Score score(const Outcome& outcome) const;
};

}  // namespace genie
