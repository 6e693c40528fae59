#include "batch.h"

#include <ATen/Parallel.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <optional>
#include <thread>
#include <vector>

namespace genie_local {
namespace {

using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;

constexpr size_t most_groups = 256;
constexpr size_t most_members = 32;
// A session that does not come back within this time has stopped, or does something else in between.
constexpr auto longest_pause = std::chrono::milliseconds(100);
constexpr auto slack = std::chrono::microseconds(100);
// Of the time an execution takes, at most: two that take turns wait all of that time for each other.
constexpr double share_waited = 0.5;

Clock::duration as_duration(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

double in_seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

int64_t cores() {
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
  void lead(std::unique_lock<std::mutex>& lock, size_t most);

  const BatchOptions& options_;
  Products& products_;
  std::mutex lock_;
  std::deque<Member*> waiting_;
  int64_t running_ = 0;  // batches
  double usual_ = 0;  // seconds an execution takes, of a batch or alone
  std::map<const void*, Seen> seen_;  // sessions
};

void Batcher::Group::run(Session::Run& run, int64_t lanes) {
  std::unique_lock<std::mutex> lock(lock_);
  arrived(run.session());
  Member me{run};
  waiting_.push_back(&me);
  if (waiting_.front() != &me) {
    waiting_.front()->called.notify_one();  // it may be waiting for this one
  }
  const Leaving leaving{*this, me};
  std::optional<Time> since;  // it could go
  while (!me.done) {
    if (me.taken || waiting_.front() != &me || running_ >= lanes) {
      since.reset();
      me.called.wait(lock);
      continue;
    }
    const auto now = Clock::now();
    if (!since) {
      since = now;
    }
    forget(now);
    const auto most = share(lanes);
    const auto until = going_at(*since);
    if (waiting_.size() >= std::max<size_t>(most, options_.fewest) || now >= until) {
      lead(lock, std::max<size_t>(most, options_.fewest));
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
    // Being late once says less than being early.
    const auto latest = in_seconds(gap);
    its.gap += (its.gap == 0 ? 1 : latest < its.gap ? 0.5 : 0.2) * (latest - its.gap);
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

// Runs the first so many, this thread's own among them.
void Batcher::Group::lead(std::unique_lock<std::mutex>& lock, size_t most) {
  const auto count = std::min({waiting_.size(), most, most_members});
  const std::vector<Member*> members(waiting_.begin(), waiting_.begin() + static_cast<ptrdiff_t>(count));
  waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<ptrdiff_t>(count));
  std::vector<Session::Run*> runs;
  for (auto* member : members) {
    member->taken = true;
    runs.push_back(&member->run);
  }
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
  } catch (...) {
    for (auto& error : errors) {
      error = error ? error : std::current_exception();
    }
  }
  lock.lock();
  const auto now = Clock::now();
  --running_;
  usual_ = usual_ == 0 ? in_seconds(now - start) : 0.7 * usual_ + 0.3 * in_seconds(now - start);
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
    run.alone();
    return;
  }
  const auto lanes =
      options_.lanes > 0 ? options_.lanes : run.device().is_cpu() ? std::max<int64_t>(cores() / at::get_num_threads(), 1) : 1;
  group->run(run, lanes);
}

}  // namespace genie_local
