#include "problem.h"

#include <algorithm>
#include <limits>

namespace genie {

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

  // Everything at once fits everywhere: no placement can run out of memory.
  double total = 0;
  for (int64_t bytes : size) total += static_cast<double>(bytes);
  tight = std::any_of(capacity.begin(), capacity.end(),
                      [total](int64_t has) { return total > static_cast<double>(has); });
}

// --- time ------------------------------------------------------------------------------------------

Clock::Clock(const Problem& problem)
    : begin(problem.steps),
      end(problem.steps),
      cause(problem.steps),
      before(problem.steps),
      p_(problem),
      slots_(static_cast<size_t>(problem.values) * problem.devices),
      head_of_(problem.values),
      tail_of_(problem.values),
      home_(problem.values),
      queue_(problem.devices),
      front_(problem.devices),
      list_(problem.devices),
      at_(problem.devices),
      free_(problem.devices),
      out_(problem.devices),
      in_(problem.devices),
      out_by_(problem.devices),
      in_by_(problem.devices) {}

// The value is there: what is to be sent of it waits for its turn.
void Clock::send(int value, int at, double ready) {
  for (int move = head_of_[value]; move >= 0; move = next_of_[move]) {
    if (moves[move].from != at) continue;
    ready_[move] = ready;
    if (p_.ports) {
      queue_[at].push_back(move);
    } else {
      Move& its = moves[move];
      its.begin = ready;
      its.end = ready + p_.transfer(value, at, its.to);
      its.cause = kMaking;
      Slot& there = slot(value, its.to);
      there.arrival = its.end;
      there.arrived = epoch_;
      there.move = move;
    }
  }
}

void Clock::run(const std::vector<int>& place, Outcome& outcome) {
  const int devices = p_.devices;
  ++epoch_;
  outcome.busy.assign(devices, 0.0);
  outcome.sent.assign(devices, 0.0);
  outcome.received.assign(devices, 0.0);
  outcome.moved = 0.0;
  moves.clear();
  next_of_.clear();
  for (int device = 0; device < devices; ++device) {
    queue_[device].clear();
    list_[device].clear();
    front_[device] = at_[device] = 0;
    free_[device] = out_[device] = in_[device] = 0.0;
    out_by_[device] = in_by_[device] = -1;
  }
  std::fill(head_of_.begin(), head_of_.end(), -1);

  // What is sent: each value once to each device that uses it and does not have it.
  for (int value = 0; value < p_.values; ++value)
    home_[value] = p_.maker[value] >= 0 ? place[p_.maker[value]] : p_.home[value];
  for (int number = 0; number < p_.steps; ++number) {
    const int step = p_.order.empty() ? number : p_.order[number];
    const int here = place[step];
    list_[here].push_back(step);
    for (int value : p_.operands.of(step)) {
      int& home = home_[value];
      if (home < 0) home = here;
      if (home == here) continue;
      Slot& there = slot(value, here);
      if (there.wanted == epoch_) continue;
      there.wanted = epoch_;
      const int move = static_cast<int>(moves.size());
      moves.push_back({value, home, here, step, kNever, kNever, -1, false});
      next_of_.push_back(-1);
      if (head_of_[value] < 0)
        head_of_[value] = move;
      else
        next_of_[tail_of_[value]] = move;
      tail_of_[value] = move;
    }
  }
  ready_.resize(moves.size());
  for (int move = 0; move < static_cast<int>(moves.size()); ++move) {
    const int value = moves[move].value;
    if (p_.maker[value] >= 0) continue;
    ready_[move] = 0.0;
    if (p_.ports)
      queue_[moves[move].from].push_back(move);
    else if (head_of_[value] == move)
      send(value, moves[move].from, 0.0);
  }

  const auto advance = [&](int device) {
    const std::vector<int>& list = list_[device];
    size_t& at = at_[device];
    while (at < list.size()) {
      const int step = list[at];
      double from = free_[device];
      int why = at > 0 ? kMaking : -1;
      for (int value : p_.operands.of(step)) {
        if (home_[value] == device) continue;  // made here before, or an input that lives here
        const Slot& there = slot(value, device);
        if (there.arrived != epoch_) return;
        if (there.arrival > from) {
          from = there.arrival;
          why = there.move;
        }
      }
      const double took = p_.cost(device, step);
      begin[step] = from;
      end[step] = free_[device] = from + took;
      cause[step] = why;
      before[step] = at > 0 ? list[at - 1] : -1;
      outcome.busy[device] += took;
      for (int value : p_.outputs.of(step))
        if (head_of_[value] >= 0) send(value, device, end[step]);
      ++at;
    }
  };

  for (int device = 0; device < devices; ++device) advance(device);
  for (;;) {
    if (!p_.ports) {
      // Arrivals are known as soon as values are made: go on while anybody can.
      size_t before_ = 0, after = 0;
      for (int device = 0; device < devices; ++device) before_ += at_[device];
      for (int device = 0; device < devices; ++device) advance(device);
      for (int device = 0; device < devices; ++device) after += at_[device];
      if (before_ == after) break;
      continue;
    }
    int next = -1;
    double soonest = kNever;
    for (int device = 0; device < devices; ++device) {
      if (front_[device] == queue_[device].size()) continue;
      const int move = queue_[device][front_[device]];
      const double from = std::max({ready_[move], out_[device], in_[moves[move].to]});
      if (from < soonest) {
        soonest = from;
        next = device;
      }
    }
    if (next < 0) break;
    const int move = queue_[next][front_[next]++];
    Move& its = moves[move];
    const double took = p_.transfer(its.value, its.from, its.to);
    its.begin = soonest;
    its.end = soonest + took;
    its.cause = kMaking;
    if (out_[next] > ready_[move] && out_[next] >= in_[its.to]) {
      its.cause = out_by_[next];
      its.at_sender = true;
    } else if (in_[its.to] > ready_[move]) {
      its.cause = in_by_[its.to];
    }
    out_[next] = in_[its.to] = its.end;
    out_by_[next] = in_by_[its.to] = move;
    outcome.sent[next] += took;
    outcome.received[its.to] += took;
    Slot& there = slot(its.value, its.to);
    there.arrival = its.end;
    there.arrived = epoch_;
    there.move = move;
    advance(its.to);
  }
  outcome.makespan = 0.0;
  last = -1;
  for (int device = 0; device < devices; ++device) {
    if (!list_[device].empty() && (last < 0 || free_[device] > outcome.makespan)) {
      outcome.makespan = free_[device];
      last = list_[device].back();
    }
  }
  for (const Move& move : moves) outcome.moved += static_cast<double>(p_.size[move.value]);
}

// --- memory ----------------------------------------------------------------------------------------

Ledger::Ledger(const Problem& problem) : p_(problem), first_(problem.values), held_(problem.devices) {}

int Ledger::find(int value, int device) const {
  for (int at = first_[value]; at >= 0; at = holdings_[at].next)
    if (holdings_[at].device == device) return holdings_[at].allocation;
  return -1;
}

void Ledger::hold(int value, int device, int allocation) {
  if (allocation < 0) {
    allocation = static_cast<int>(bytes_.size());
    bytes_.push_back(p_.size[value]);
    sharers_.push_back(0);
    where_.push_back(device);
    held_[device] += p_.size[value];
  }
  ++sharers_[allocation];
  holdings_.push_back({device, allocation, first_[value]});
  first_[value] = static_cast<int>(holdings_.size()) - 1;
}

void Ledger::run(const std::vector<int>& place, Outcome& outcome) {
  std::fill(first_.begin(), first_.end(), -1);
  std::fill(held_.begin(), held_.end(), 0);
  holdings_.clear();
  bytes_.clear();
  sharers_.clear();
  where_.clear();
  const int usual = p_.steps ? place[0] : 0;
  for (int value = 0; value < p_.values; ++value) {
    if (p_.maker[value] >= 0) continue;
    int home = p_.home[value];
    if (home < 0) home = p_.users.of(value).empty() ? usual : place[p_.users.of(value).front()];
    hold(value, home, -1);
  }
  outcome.peak = held_;
  for (int step = 0; step < p_.steps; ++step) {
    const int here = place[step];
    for (int value : p_.operands.of(step))
      if (find(value, here) < 0) hold(value, here, -1);
    for (int value : p_.outputs.of(step))
      hold(value, here, p_.parent[value] >= 0 ? find(p_.parent[value], here) : -1);
    for (int device = 0; device < p_.devices; ++device)
      outcome.peak[device] = std::max(outcome.peak[device], held_[device]);
    for (int value : p_.released.of(step)) {
      for (int at = first_[value]; at >= 0; at = holdings_[at].next) {
        const int allocation = holdings_[at].allocation;
        if (--sharers_[allocation] == 0) held_[where_[allocation]] -= bytes_[allocation];
      }
      first_[value] = -1;
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
      break;
    case kCost:
      found.value = cost;
      break;
    case kThroughput:
      for (size_t device = 0; device < outcome.busy.size(); ++device)
        found.value = std::max({found.value, outcome.busy[device], outcome.sent[device], outcome.received[device]});
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
