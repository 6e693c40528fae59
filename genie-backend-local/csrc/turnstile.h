// Whose turn it is on a device: start-time fair queueing (Goyal, Vin and Cheng, 1996) over measured time, in a tree of
// flows – classes of priority, their tenants, their sessions. A turn is one execution, and is never taken back.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "pace.h"

namespace genie_local {

class Turnstile;

// Who takes turns, or a group of those. Its fields are the turnstile's, under its lock.
class Flow {
 public:
  Flow(std::shared_ptr<Turnstile> turnstile, std::shared_ptr<Flow> parent, double weight);
  ~Flow();
  Flow(const Flow&) = delete;
  Flow& operator=(const Flow&) = delete;

  Turnstile& turnstile() const {
    return *turnstile_;
  }
  void set_weight(double weight);
  // What it and those below it had of the device.
  double seconds() const;

 private:
  friend class Turnstile;
  const std::shared_ptr<Turnstile> turnstile_;
  const std::shared_ptr<Flow> parent_;
  Flow* const above_;  // the parent, or the turnstile's root
  std::vector<Flow*> below_;
  double weight_;
  double tag_ = 0;  // the virtual time at which its next turn starts
  double clock_ = 0;  // the virtual time among those below it
  double seconds_ = 0;
  int64_t waiting_ = 0;  // of those below it, or itself
  int64_t running_ = 0;
  Time left_{};  // when it last ran
  double usual_ = 0;  // seconds of a turn
  double gap_ = 0;  // seconds until it was back, when the device was kept for it; 0: not known
  int64_t missed_ = 0;  // so often in a row it was not back in time
  int64_t skipped_ = 0;  // turns after which the device is not kept for it
};
using FlowPtr = std::shared_ptr<Flow>;

// Somebody who waits for a turn: for one flow, or for several that will run together. The best placed of them decides.
struct Ticket {
  std::vector<Flow*> flows;
  Flow* winner = nullptr;  // whose turn it is; set when there is one
  bool entered = false;
  std::condition_variable called{};
};

// Of one device, on which `lanes` turns may be had at a time. Thread-safe.
class Turnstile {
 public:
  // 0 lanes: as many as there are cores for, by the threads of each.
  explicit Turnstile(int64_t lanes);
  ~Turnstile();
  Turnstile(const Turnstile&) = delete;
  Turnstile& operator=(const Turnstile&) = delete;

  // Waits for a turn. Each of the ticket's flows is then at work, until `leave` or `give_up`.
  void enter(Ticket& ticket);
  // One flow more, for a ticket that waits, or is about to, or has its turn.
  void join(Ticket& ticket, Flow& flow);
  // These do not run in the turn they were in.
  void give_up(const std::vector<Flow*>& flows);
  // The turn is over. It took `seconds`, of which each has an equal part.
  void leave(const std::vector<Flow*>& flows, double seconds);
  // Somebody else waits, or was here just now.
  bool contended();

 private:
  friend class Flow;

  void come(Flow& flow, Time now);
  static void begin(Flow& flow);
  Time dispatch(Time now);
  Time keep_for(Flow& flow, const Flow* other);
  bool alone(const Flow& flow, Time now) const;
  static bool expected(const Flow& flow, Time now);
  static Time back_at(const Flow& flow);
  static bool active(const Flow& flow, Time now);
  Flow* next(Time now, bool here);
  static void grant(Ticket& ticket, Flow& winner);

  std::mutex lock_;
  const int64_t lanes_;
  int64_t running_ = 0;
  std::unique_ptr<Flow> root_;
  std::deque<Ticket*> waiting_;
  Flow* kept_for_ = nullptr;
  const Flow* last_ = nullptr;
  Time other_{};  // when another one came than had the turn before
};

// A turn of one flow, where there are turns at all.
class Turn {
 public:
  explicit Turn(Flow* flow);
  ~Turn();
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  Flow* const flow_;
  Time start_;
};

}  // namespace genie_local
