#include "problem.h"

#include <algorithm>
#include <limits>

namespace genie {

constexpr size_t kKinds = 8;  // of links, that what sending takes is written down for

void Problem::prepare() {
  maker.assign(values, -1);
  for (int step = 0; step < steps; ++step)
    for (int value : outputs.of(step)) maker[value] = step;

  std::vector<int> count(values + 1, 0);
  for (int value : operands.items) ++count[value];
  users = Lists{};
  users.start.assign(values + 1, 0);
  for (int value = 0; value < values; ++value) users.start[value + 1] = users.start[value] + count[value];
  users.items.resize(operands.items.size());
  std::vector<int> filled(users.start.begin(), users.start.end());
  for (int step = 0; step < steps; ++step)
    for (int value : operands.of(step)) users.items[filled[value]++] = step;

  entries.clear();
  for (int number = 0; number < steps; ++number) {
    const int step = order.empty() ? number : order[number];
    for (int value : operands.of(step))
      if (maker[value] < 0) entries.emplace_back(step, value);
  }

  const auto gather = [](const std::vector<int>& key, int keys) {
    Lists found;
    found.start.assign(keys + 1, 0);
    for (int k : key)
      if (k < keys) ++found.start[k + 1];
    for (int k = 0; k < keys; ++k) found.start[k + 1] += found.start[k];
    found.items.resize(found.start[keys]);
    std::vector<int> next(found.start.begin(), found.start.end() - 1);
    for (size_t at = 0; at < key.size(); ++at)
      if (key[at] < keys) found.items[next[key[at]]++] = static_cast<int>(at);
    return found;
  };
  members = gather(unit, units);
  released = gather(last, steps);

  // What sending each value takes: of links there are mostly few kinds, and this is asked often.
  link_kind.assign(static_cast<size_t>(devices) * devices, 0);
  std::vector<size_t> kinds;
  for (size_t link = 0; link < link_kind.size() && kinds.size() <= kKinds; ++link) {
    size_t kind = 0;
    while (kind < kinds.size() && (latency[kinds[kind]] != latency[link] || bandwidth[kinds[kind]] != bandwidth[link]))
      ++kind;
    if (kind == kinds.size()) kinds.push_back(link);
    link_kind[link] = static_cast<int>(kind);
  }
  sending.clear();
  if (kinds.size() > kKinds)
    link_kind.clear();
  else
    for (const size_t link : kinds)
      for (int value = 0; value < values; ++value)
        sending.push_back(latency[link] + static_cast<double>(size[value]) / bandwidth[link]);

  // From the start of each step to the end of all, at the least.
  onward.assign(steps, 0.0);
  for (int number = steps - 1; number >= 0; --number) {
    const int step = order.empty() ? number : order[number];
    double least = kNever;
    for (int device = 0; device < devices; ++device) least = std::min(least, cost(device, step));
    double most = 0.0;
    for (int value : outputs.of(step))
      for (int user : users.of(value)) most = std::max(most, onward[user]);
    onward[step] = least + most;
  }

  // Everything at once fits everywhere: no placement can run out of memory.
  double total = 0;
  for (int64_t bytes : size) total += static_cast<double>(bytes);
  tight = std::any_of(capacity.begin(), capacity.end(),
                      [total](int64_t has) { return total > static_cast<double>(has); });
}

// --- time ------------------------------------------------------------------------------------------

Clock::Clock(const Problem& problem)
    : spans(problem.steps),
      p_(problem),
      slots_(static_cast<size_t>(problem.values) * problem.devices),
      home_(problem.values),
      devices_(problem.devices),
      next_step_(problem.steps),
      fresh_(problem.steps),
      lines_(problem.devices),
      arrivals_(problem.devices),
      fresh_lines_(problem.devices),
      fresh_arrivals_(problem.devices) {}

void Clock::queue(int value, int from, int to, int before, double ready) {
  const int move = static_cast<int>(moves.size());
  std::vector<int>& line = fresh_lines_[from];
  if (p_.ports) {
    moves.push_back({value, from, to, before, ready, kNever, kNever, -1, 0.0});
    line.push_back(move);
    Device& sender = devices_[from];
    if (sender.front + 1 == line.size()) {
      sender.ready = ready;
      sender.to = to;
    }
    return;
  }
  const double until = ready + p_.transfer(value, from, to);
  moves.push_back({value, from, to, before, ready, ready, until, kMaking, 0.0});
  line.push_back(move);
  Slot& there = slot(value, to);
  there.arrival = until;
  there.arrived = epoch_;
  there.move = move;
}

// The value is made: it waits for its turn to be sent to each device that uses it, in the order of need.
void Clock::send(int value, int from, double ready) {
  const int* place = place_->data();
  for (int user : p_.users.of(value)) {
    const int to = place[user];
    if (to == from) continue;
    Slot& there = slot(value, to);
    if (there.sent == epoch_) continue;
    there.sent = epoch_;
    queue(value, from, to, user, ready);
  }
}

// Runs the device's steps until one waits for a transfer. False when it can't end within the limit.
bool Clock::advance(int number, double limit, Outcome&) {
  Device& device = devices_[number];
  const double* seconds = p_.seconds.data() + static_cast<size_t>(number) * p_.steps;
  const int* home = home_.data();
  double now = device.free, rest = device.rest;
  int step = device.step, previous = device.previous;
  for (; step >= 0; step = next_step_[step]) {
    double from = now;
    int why = previous >= 0 ? kMaking : -1;
    bool ready = true;
    for (int value : p_.operands.of(step)) {
      if (home[value] == number) continue;  // made here before, or an input that lives here
      const Slot& there = slot(value, number);
      double arrival = there.arrival;
      int move = there.move;
      if (there.arrived != epoch_) {
        move = there.kept;
        if (move < 0 || moves[move].begin >= from_) {
          ready = false;
          break;
        }
        arrival = moves[move].end;
      }
      if (arrival > from) {
        from = arrival;
        why = move;
      }
    }
    if (!ready) break;
    if (from + rest > limit || from + p_.onward[step] > limit) return false;
    const double took = seconds[step];
    rest -= took;
    now = from + took;
    fresh_[step] = {from, now, why, previous};
    fresh_events_.push_back(step);
    ++ran;
    previous = step;
    for (int value : p_.outputs.of(step)) send(value, number, now);
  }
  device.step = step;
  device.previous = previous;
  device.free = now;
  device.rest = rest;
  return true;
}

void Clock::show_front(Device& device, int number) {
  const std::vector<int>& line = fresh_lines_[number];
  if (device.front < line.size()) {
    device.ready = moves[line[device.front]].ready;
    device.to = moves[line[device.front]].to;
  } else {
    device.ready = kNever;
    device.to = 0;
  }
}

void Clock::start(const std::vector<int>& place, Outcome& outcome) {
  ++epoch_;
  place_ = &place;
  moves.resize(kept_moves_);
  fresh_events_.clear();
  ran = 0;
  homes_before_.clear();
  std::fill(devices_.begin(), devices_.end(), Device{});
  for (auto& line : fresh_lines_) line.clear();
  for (auto& line : fresh_arrivals_) line.clear();
  outcome.busy.assign(p_.devices, 0.0);
  outcome.sent.assign(p_.devices, 0.0);
  outcome.received.assign(p_.devices, 0.0);
}

bool Clock::run(const std::vector<int>& place, Outcome& outcome, double limit) {
  start(place, outcome);
  from_ = -1.0;
  for (int value = 0; value < p_.values; ++value)
    home_[value] = p_.maker[value] >= 0 ? place[p_.maker[value]] : p_.home[value];
  for (int number = p_.steps - 1; number >= 0; --number) {
    const int step = p_.order.empty() ? number : p_.order[number];
    Device& its = devices_[place[step]];
    its.rest += p_.cost(place[step], step);
    next_step_[step] = its.step;
    its.step = step;
  }
  for (int step = 0; step < p_.steps; ++step) outcome.busy[place[step]] += p_.cost(place[step], step);
  if (limit != kNever) {
    // What a device still has to do puts off its end, whatever it waits for.
    limit *= 1 + 1e-9;
    for (const Device& device : devices_)
      if (device.rest > limit) return false;
  }
  // Inputs are where they start; elsewhere they are sent to in the order of need.
  for (const auto& [step, value] : p_.entries) {
    int& home = home_[value];
    const int here = place[step];
    if (home < 0) home = here;
    if (home == here) continue;
    Slot& there = slot(value, here);
    if (there.sent == epoch_) continue;
    there.sent = epoch_;
    queue(value, home, here, step, 0.0);
  }
  return finish(limit, outcome);
}

void Clock::set_home(int value, int device) {
  homes_before_.emplace_back(value, home_[value]);
  home_[value] = device;
}

bool Clock::rerun(const std::vector<int>& place, std::span<const int> changed, double from, Outcome& outcome,
                  double limit) {
  start(place, outcome);
  from_ = from;
  for (int step : changed) {
    for (int value : p_.outputs.of(step)) set_home(value, place[step]);
    for (int value : p_.operands.of(step))
      if (p_.maker[value] < 0) set_home(value, place[step]);
  }
  for (int step = p_.steps - 1; step >= 0; --step) {
    const int here = place[step];
    Device& its = devices_[here];
    const double took = p_.cost(here, step);
    outcome.busy[here] += took;
    if (spans[step].begin < from) {
      if (its.previous < 0) its.previous = step;  // the last one
      continue;
    }
    its.rest += took;
    next_step_[step] = its.step;
    its.step = step;
  }
  limit *= 1 + 1e-9;
  const auto begun = [&](const std::vector<int>& line) {
    return static_cast<size_t>(std::lower_bound(line.begin(), line.end(), from,
                                                [&](int move, double time) { return moves[move].begin < time; }) -
                               line.begin());
  };
  for (int device = 0; device < p_.devices; ++device) {
    Device& its = devices_[device];
    its.sent = begun(lines_[device]);
    its.received = begun(arrivals_[device]);
    if (its.sent > 0) {
      its.out_by = lines_[device][its.sent - 1];
      its.out = moves[its.out_by].end;
      its.until = moves[its.out_by].until;
    }
    if (its.received > 0) {
      its.in_by = arrivals_[device][its.received - 1];
      its.in = moves[its.in_by].end;
    }
    its.free = its.previous >= 0 ? spans[its.previous].end : 0.0;
    if (its.free + its.rest > limit) return false;
    // What was ready before waits still; what is made just then may go elsewhere now.
    for (size_t at = its.sent; at < lines_[device].size(); ++at) {
      const Move move = moves[lines_[device][at]];
      const int maker = p_.maker[move.value];
      if (maker >= 0 && (spans[maker].begin >= from || spans[maker].end >= from)) break;
      queue(move.value, device, move.to, move.before, move.ready);
    }
    if (its.previous >= 0 && its.free >= from)
      for (int value : p_.outputs.of(its.previous)) send(value, device, its.free);
  }
  return finish(limit, outcome);
}

bool Clock::finish(double limit, Outcome& outcome) {
  const int devices = p_.devices;
  for (int device = 0; device < devices; ++device)
    if (!advance(device, limit, outcome)) return false;
  for (bool going = true; !p_.ports && going;) {
    // Arrivals are known as soon as values are made: go on while anybody can.
    going = false;
    for (int device = 0; device < devices; ++device) {
      const int at = devices_[device].step;
      if (!advance(device, limit, outcome)) return false;
      going = going || devices_[device].step != at;
    }
  }
  while (p_.ports) {
    int next = -1;
    double soonest = kNever;
    for (int device = 0; device < devices; ++device) {
      const Device& its = devices_[device];
      const double from = std::max(std::max(its.ready, its.out), devices_[its.to].in);
      if (from < soonest) {
        soonest = from;
        next = device;
      }
    }
    if (next < 0) break;
    Device& sender = devices_[next];
    const int move = fresh_lines_[next][sender.front];
    Move& its = moves[move];
    const int to = its.to;
    Device& receiver = devices_[to];
    const double took = p_.transfer(its.value, next, to);
    its.begin = soonest;
    its.end = soonest + took;
    its.cause = kMaking;
    if (sender.out > its.ready && sender.out >= receiver.in)
      its.cause = sender.out_by;
    else if (receiver.in > its.ready)
      its.cause = receiver.in_by;
    sender.out = receiver.in = its.end;
    sender.out_by = receiver.in_by = move;
    sender.until += static_cast<double>(p_.size[its.value]);
    its.until = sender.until;
    outcome.sent[next] += took;
    outcome.received[to] += took;
    fresh_arrivals_[to].push_back(move);
    fresh_events_.push_back(~move);
    Slot& there = slot(its.value, to);
    there.arrival = its.end;
    there.arrived = epoch_;
    there.move = move;
    ++sender.front;
    show_front(sender, next);
    if (!advance(to, limit, outcome)) return false;
  }
  outcome.makespan = 0.0;
  outcome.moved = 0.0;
  fresh_last_ = -1;
  for (const Device& device : devices_) {
    outcome.moved += device.until;
    if (device.previous >= 0 && (fresh_last_ < 0 || device.free > outcome.makespan)) {
      outcome.makespan = device.free;
      fresh_last_ = device.previous;
    }
  }
  return true;
}

void Clock::keep() {
  std::erase_if(events, [this](int event) { return (event >= 0 ? spans[event] : Span{moves[~event].begin}).begin >= from_; });
  events.insert(events.end(), fresh_events_.begin(), fresh_events_.end());
  for (int event : fresh_events_)
    if (event >= 0) spans[event] = fresh_[event];
  last = fresh_last_;
  for (int device = 0; device < p_.devices; ++device) {
    std::vector<int>& line = lines_[device];
    const Device& its = devices_[device];
    for (size_t at = its.sent; at < line.size(); ++at) slot(moves[line[at]].value, moves[line[at]].to).kept = -1;
    line.resize(its.sent);
    arrivals_[device].resize(its.received);
  }
  for (int device = 0; device < p_.devices; ++device) {
    for (int move : fresh_lines_[device]) slot(moves[move].value, moves[move].to).kept = move;
    lines_[device].insert(lines_[device].end(), fresh_lines_[device].begin(), fresh_lines_[device].end());
    arrivals_[device].insert(arrivals_[device].end(), fresh_arrivals_[device].begin(), fresh_arrivals_[device].end());
  }
  kept_moves_ = moves.size();
  if (from_ < 0)
    home_kept_ = home_;
  else
    for (const auto& [value, home] : homes_before_) home_kept_[value] = home_[value];
  homes_before_.clear();
  if (kept_moves_ > 4096 + 8 * static_cast<size_t>(p_.values)) compact();
}

void Clock::forget() {
  moves.resize(kept_moves_);
  if (from_ < 0 && !home_kept_.empty()) home_ = home_kept_;
  for (size_t at = homes_before_.size(); at-- > 0;) home_[homes_before_[at].first] = homes_before_[at].second;
  homes_before_.clear();
}

void Clock::ways_to_end(const std::vector<int>& place, std::vector<double>& steps,
                        std::vector<double>& transfers) const {
  steps.resize(p_.steps);
  transfers.resize(moves.size());
  struct Ways {
    double step = 0.0, out = 0.0, in = 0.0;
  };
  std::vector<Ways> next(p_.devices);
  for (size_t at = events.size(); at-- > 0;) {
    const int event = events[at];
    if (event < 0) {
      const Move& its = moves[~event];
      const double most = std::max({next[its.from].out, next[its.to].in, steps[its.before]});
      next[its.from].out = next[its.to].in = transfers[~event] = most + its.end - its.begin;
      continue;
    }
    const int here = place[event];
    double most = next[here].step;
    for (int value : p_.outputs.of(event))
      for (int user : p_.users.of(value)) {
        if (place[user] == here) continue;  // it comes later on this device
        if (p_.ports)
          most = std::max(most, transfers[brings(value, place[user])]);
        else
          most = std::max(most, steps[user] + p_.transfer(value, here, place[user]));
      }
    next[here].step = steps[event] = most + p_.cost(here, event);
  }
}

// Numbers the transfers anew, without those that are no more.
void Clock::compact() {
  std::vector<int> number(moves.size(), -1);
  std::vector<Move> left;
  for (std::vector<int>& line : lines_)
    for (int& move : line) {
      number[move] = static_cast<int>(left.size());
      left.push_back(moves[move]);
      move = number[move];
    }
  for (std::vector<int>& line : arrivals_)
    for (int& move : line) move = number[move];
  for (int& event : events)
    if (event < 0) event = ~number[~event];
  for (Move& move : left) {
    if (move.cause >= 0) move.cause = number[move.cause];
    slot(move.value, move.to).kept = static_cast<int>(&move - left.data());
  }
  for (Span& span : spans)
    if (span.cause >= 0) span.cause = number[span.cause];
  moves = std::move(left);
  kept_moves_ = moves.size();
}

// --- memory ----------------------------------------------------------------------------------------

Ledger::Ledger(const Problem& problem)
    : p_(problem), home_(problem.values), main_(problem.values), copies_(problem.values), held_(problem.devices) {}

int Ledger::find(int value, int device) const {
  if (home_[value] == device) return main_[value];
  for (int at = copies_[value]; at >= 0; at = holdings_[at].next)
    if (holdings_[at].device == device) return holdings_[at].allocation;
  return -1;
}

int Ledger::allocate(int value, int device) {
  allocations_.push_back({p_.size[value], device, 1});
  held_[device] += p_.size[value];
  return static_cast<int>(allocations_.size()) - 1;
}

void Ledger::run(const std::vector<int>& place, Outcome& outcome) {
  std::fill(copies_.begin(), copies_.end(), -1);
  std::fill(held_.begin(), held_.end(), 0);
  holdings_.clear();
  allocations_.clear();
  const int usual = p_.steps ? place[0] : 0;
  for (int value = 0; value < p_.values; ++value) {
    if (p_.maker[value] >= 0) continue;
    int home = p_.home[value];
    if (home < 0) home = p_.users.of(value).empty() ? usual : place[p_.users.of(value).front()];
    home_[value] = home;
    main_[value] = allocate(value, home);
  }
  outcome.peak = held_;
  const auto drop = [&](int allocation) {
    Allocation& its = allocations_[allocation];
    if (--its.sharers == 0) held_[its.device] -= its.bytes;
  };
  for (int step = 0; step < p_.steps; ++step) {
    const int here = place[step];
    for (int value : p_.operands.of(step)) {
      if (home_[value] == here || find(value, here) >= 0) continue;
      holdings_.push_back({here, allocate(value, here), copies_[value]});
      copies_[value] = static_cast<int>(holdings_.size()) - 1;
    }
    for (int value : p_.outputs.of(step)) {
      const int shared = p_.parent[value] >= 0 ? find(p_.parent[value], here) : -1;
      if (shared >= 0) ++allocations_[shared].sharers;
      home_[value] = here;
      main_[value] = shared >= 0 ? shared : allocate(value, here);
    }
    outcome.peak[here] = std::max(outcome.peak[here], held_[here]);
    for (int value : p_.released.of(step)) {
      drop(main_[value]);
      for (int at = copies_[value]; at >= 0; at = holdings_[at].next) drop(holdings_[at].allocation);
    }
  }
  outcome.overflow = 0.0;
  for (int device = 0; device < p_.devices; ++device) {
    const int64_t over = outcome.peak[device] - p_.capacity[device];
    if (over > 0)
      outcome.overflow += static_cast<double>(over) / static_cast<double>(std::max<int64_t>(p_.capacity[device], 1));
  }
}

// --- scores ----------------------------------------------------------------------------------------

Score Objective::score(const Outcome& outcome) const {
  Score found;
  found.overflow = outcome.overflow;
  found.moved = outcome.moved;
  double cost = 0.0;
  for (size_t device = 0; device < price.size(); ++device) cost += outcome.busy[device] * price[device];
  if (latency_cap > 0 && outcome.makespan > latency_cap) found.violation += outcome.makespan / latency_cap - 1;
  if (cost_cap > 0 && cost > cost_cap) found.violation += cost / cost_cap - 1;
  switch (kind) {
    case kLatency:
      found.value = outcome.makespan;
      for (const double sent : outcome.sent) found.value += thrift * sent;
      break;
    case kCost:
      found.value = cost;
      break;
    case kThroughput:
      for (size_t device = 0; device < outcome.busy.size(); ++device) {
        const double sent = outcome.sent[device], received = outcome.received[device];
        const double work = outcome.busy[device] + handling[device] * (sent + received);
        found.value = std::max({found.value, work, sent, received});
      }
      break;
    case kUser: {
      const auto [value, violation] = user(outcome);
      found.value = value;
      found.violation += violation;
      break;
    }
  }
  return found;
}

}  // namespace genie
