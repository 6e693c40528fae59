#include "batch.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "pace.h"
#include "turnstile.h"

namespace genie_local {
namespace {

constexpr size_t most_groups = 256;
constexpr size_t most_members = 32;
// Of the time an execution takes, at most: two that take turns wait all of that time for each other.
constexpr double share_waited = 0.5;

}  // namespace

// The executions that have the same weights.
class Batcher::Group {
 public:
  Group(const BatchOptions& options, Products& products) : options_(options), products_(products) {}

  void run(Session::Run& run, int64_t lanes);
  // Nobody is here, nor was lately.
  bool idle();

 private:
  struct Member {
    Session::Run& run;
    std::condition_variable called{};
    std::exception_ptr error{};
    bool taken = false;
    bool done = false;
  };
  struct Seen {
    Time at;  // it came, or was done
    double gap = 0;  // seconds between being done and coming again, usually
    bool here = false;
  };

  // Nobody finds a member that is gone, whatever ended it.
  struct Leaving {
    Group& group;
    Member& me;
    ~Leaving() {
      auto& waiting = group.waiting_;
      waiting.erase(std::remove(waiting.begin(), waiting.end(), &me), waiting.end());
    }
  };

  void arrived(const void* session);
  void forget(Time now);
  size_t share(int64_t lanes) const;
  Time going_at(Time since) const;
  void lead(std::unique_lock<std::mutex>& lock, size_t most, Time since);
  void await_turn(std::unique_lock<std::mutex>& lock, Ticket& ticket);
  std::vector<Flow*> begin_turn(const std::vector<Session::Run*>& runs);

  const BatchOptions& options_;
  Products& products_;
  std::mutex lock_;
  std::deque<Member*> waiting_;
  Ticket* ticket_ = nullptr;  // for the device, of those that wait
  int64_t running_ = 0;  // batches
  double usual_ = 0;  // seconds an execution takes, of a batch or alone
  std::map<const void*, Seen> seen_;  // sessions
};

void Batcher::Group::run(Session::Run& run, int64_t lanes) {
  std::unique_lock<std::mutex> lock(lock_);
  arrived(run.session());
  Member me{run};
  waiting_.push_back(&me);
  if (ticket_ != nullptr && run.flow() != nullptr) {
    run.flow()->turnstile().join(*ticket_, *run.flow());
  }
  if (waiting_.front() != &me) {
    waiting_.front()->called.notify_one();  // it may be waiting for this one
  }
  const Leaving leaving{*this, me};
  std::optional<Time> since;  // it could go
  std::optional<Ticket> ticket;
  while (!me.done) {
    if (me.taken || waiting_.front() != &me || (running_ >= lanes && run.flow() == nullptr)) {
      since.reset();
      me.called.wait(lock);
      continue;
    }
    if (run.flow() != nullptr && ticket_ == nullptr) {
      await_turn(lock, ticket.emplace());
      since.reset();
    }
    const auto now = Clock::now();
    if (!since) {
      since = now;
    }
    forget(now);
    const auto most = share(lanes);
    const auto until = going_at(*since);
    if (waiting_.size() >= std::max<size_t>(most, options_.fewest) || now >= until) {
      lead(lock, std::max<size_t>(most, options_.fewest), *since);
    } else {
      me.called.wait_until(lock, until);
    }
  }
  if (me.error) {
    std::rethrow_exception(me.error);
  }
}

void Batcher::Group::arrived(const void* session) {
  const auto now = Clock::now();
  auto& its = seen_[session];
  if (const auto gap = now - its.at; gap < longest_pause) {
    its.gap = usual_pause(its.gap, gap);
  }
  its.at = now;
  its.here = true;
}

void Batcher::Group::forget(Time now) {
  for (auto its = seen_.begin(); its != seen_.end();) {
    its = !its->second.here && now - its->second.at > longest_pause ? seen_.erase(its) : std::next(its);
  }
}

// How many go together, so that all lanes have as many.
size_t Batcher::Group::share(int64_t lanes) const {
  const auto each = (seen_.size() + lanes - 1) / lanes;
  return std::clamp<size_t>(each, 1, most_members);
}

// When those that are likely to come will have come. A session that has this group to itself waits for nobody.
Time Batcher::Group::going_at(Time since) const {
  if (waiting_.size() < static_cast<size_t>(options_.fewest)) {
    return since + as_duration(options_.patience);
  }
  const auto latest = since + as_duration(std::min(options_.patience, share_waited * usual_));
  auto until = since;
  for (const auto& [session, its] : seen_) {
    if (!its.here) {
      const auto expected = its.at + as_duration(1.5 * its.gap) + slack;
      // Who would come too late is not waited for at all.
      if (expected <= latest) {
        until = std::max(until, expected);
      }
    }
  }
  return until;
}

// Runs so many of those that wait: the one whose turn it is, and the first of the others. Waiting for them, since then,
// was part of the turn.
void Batcher::Group::lead(std::unique_lock<std::mutex>& lock, size_t most, Time since) {
  Flow* const winner = ticket_ == nullptr ? nullptr : ticket_->winner;
  const auto due = std::find_if(
      waiting_.begin(), waiting_.end(), [winner](const Member* each) { return winner && each->run.flow() == winner; });
  if (due != waiting_.end()) {
    std::rotate(waiting_.begin(), due, due + 1);
  }
  const auto count = std::min({waiting_.size(), most, most_members});
  const std::vector<Member*> members(waiting_.begin(), waiting_.begin() + static_cast<ptrdiff_t>(count));
  waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<ptrdiff_t>(count));
  std::vector<Session::Run*> runs;
  for (auto* member : members) {
    member->taken = true;
    runs.push_back(&member->run);
  }
  const auto flows = begin_turn(runs);
  ++running_;
  if (!waiting_.empty()) {
    waiting_.front()->called.notify_one();  // another lane may be free
  }
  lock.unlock();
  const auto start = Clock::now();
  std::vector<std::exception_ptr> errors(count);
  try {
    if (count == 1) {
      runs.front()->alone();
    } else {
      run_in_lockstep(products_, runs, errors);
    }
    runs.front()->end_turn();
  } catch (...) {
    for (auto& error : errors) {
      error = error ? error : std::current_exception();
    }
  }
  const auto took = Clock::now() - start;
  if (winner != nullptr) {
    winner->turnstile().leave(flows, in_seconds(Clock::now() - since));
  }
  lock.lock();
  const auto now = Clock::now();
  --running_;
  usual_ = usual_ == 0 ? in_seconds(took) : 0.7 * usual_ + 0.3 * in_seconds(took);
  for (size_t i = 0; i < count; ++i) {
    auto& its = seen_[runs[i]->session()];
    its.at = now;
    its.here = false;
    members[i]->error = errors[i];
    members[i]->done = true;
    members[i]->called.notify_one();
  }
  if (!waiting_.empty()) {
    waiting_.front()->called.notify_one();
  }
}

// The device's, for all that wait. Who comes before it begins is in it, too.
void Batcher::Group::await_turn(std::unique_lock<std::mutex>& lock, Ticket& ticket) {
  for (const auto* member : waiting_) {
    if (auto* flow = member->run.flow()) {
      ticket.flows.push_back(flow);
    }
  }
  ticket_ = &ticket;
  lock.unlock();
  ticket.flows.front()->turnstile().enter(ticket);
  lock.lock();
}

// The flows of those that run. The others that waited for this turn wait for the next one.
std::vector<Flow*> Batcher::Group::begin_turn(const std::vector<Session::Run*>& runs) {
  std::vector<Flow*> running, left;
  if (ticket_ != nullptr) {
    for (auto* flow : ticket_->flows) {
      const auto its = std::any_of(runs.begin(), runs.end(), [flow](const auto* run) { return run->flow() == flow; });
      (its ? running : left).push_back(flow);
    }
    ticket_->winner->turnstile().give_up(left);
    ticket_ = nullptr;
  }
  return running;
}

bool Batcher::Group::idle() {
  const std::lock_guard<std::mutex> lock(lock_);
  const auto now = Clock::now();
  forget(now);
  return waiting_.empty() && running_ == 0 && seen_.empty();
}

Batcher::Batcher(const BatchOptions& options) : options_(options), products_(options.exact) {}

Batcher::~Batcher() = default;

std::shared_ptr<Batcher::Group> Batcher::group_of(const Session::Run& run) {
  uint64_t key = run.plan().products.size();
  const auto mix = [&key](uint64_t word) { key = (key ^ word) * 0x100000001b3U; };
  for (const auto* weight : run.weights()) {
    mix(reinterpret_cast<uintptr_t>(weight));
  }
  mix(static_cast<uint64_t>(run.device().type()));
  mix(static_cast<uint64_t>(run.device().index()));
  const std::lock_guard<std::mutex> lock(lock_);
  const auto found = groups_.find(key);
  if (found != groups_.end()) {
    return found->second;
  }
  if (groups_.size() >= most_groups) {
    for (auto its = groups_.begin(); its != groups_.end();) {
      its = its->second.use_count() == 1 && its->second->idle() ? groups_.erase(its) : std::next(its);
    }
  }
  if (groups_.size() >= most_groups) {
    return nullptr;
  }
  return groups_[key] = std::make_shared<Group>(options_, products_);
}

void Batcher::run(Session::Run& run) {
  // Nothing is gained on other devices unless rows are stacked.
  const auto group = run.device().is_cpu() || !options_.exact ? group_of(run) : nullptr;
  if (!group) {
    const Turn turn(run.flow());
    run.alone();
    run.end_turn();
    return;
  }
  const auto lanes =
      options_.lanes > 0 ? options_.lanes : run.device().is_cpu() ? cpu_lanes() : 1;
  group->run(run, lanes);
}

}  // namespace genie_local
