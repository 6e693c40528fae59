// Simulated annealing over placements: most proposals look at what the end is waiting for.

#include <algorithm>
#include <cmath>

#include "search.h"

namespace genie {

// What any attempt costs, and any idea that is not tried, in steps evaluated.
constexpr int64_t kAttempt = 64, kProposal = 24;

Judge::Judge(const Problem& problem, const Objective& objective, int64_t budget)
    : left(budget),
      p_(problem),
      objective_(objective),
      clock_(problem),
      ledger_(problem),
      place_(problem.steps),
      lists_(problem.devices) {}

Score Judge::operator()(const Placement& units, double limit) {
  for (int step = 0; step < p_.steps; ++step) place_[step] = units[p_.unit[step]];
  left -= p_.steps;
  ++judged;
  const bool latency = objective_.kind == Objective::kLatency;
  outcome_.overflow = 0.0;
  was_.clear();
  steps_.clear();
  if (!clock_.run(place_, outcome_, latency ? limit : kNever)) {
    clock_.forget();
    return {0.0, 0.0, kNever, 0.0};
  }
  keep();
  return finished(limit);
}

Score Judge::finished(double limit) {
  Score found = objective_.score(outcome_);
  if (!p_.tight || found.scalar() > limit) return found;
  ledger_.run(place_, outcome_);
  found.overflow = outcome_.overflow;
  return found;
}

void Judge::keep() {
  clock_.keep();
  if (!p_.order.empty()) return;
  if (was_.empty() || was_.size() > 16) {
    for (auto& list : lists_) list.clear();
    for (int step = 0; step < p_.steps; ++step) lists_[place_[step]].push_back(step);
  } else {
    const auto at = [](std::vector<int>& list, int step) { return std::lower_bound(list.begin(), list.end(), step); };
    for (const auto& [step, device] : was_) {
      std::vector<int>&from = lists_[device], &to = lists_[place_[step]];
      from.erase(at(from, step));
      to.insert(at(to, step), step);
    }
  }
  was_.clear();
}

void Judge::forget() {
  clock_.forget();
  for (const auto& [step, device] : was_) place_[step] = device;
  was_.clear();
}

// When the first thing begins that the changed steps, where they were or where they are now, have to do with.
double Judge::unaffected() const {
  double soonest = kNever;
  for (int step : steps_) {
    const int before = clock_.spans[step].before;
    if (before < 0) return 0.0;
    soonest = std::min(soonest, clock_.spans[before].end);
    const std::vector<int>& there = lists_[place_[step]];
    const auto after = std::lower_bound(there.begin(), there.end(), step);
    if (after == there.begin()) return 0.0;
    soonest = std::min(soonest, clock_.spans[*(after - 1)].end);
    for (int value : p_.operands.of(step)) {
      if (p_.maker[value] >= 0)
        soonest = std::min(soonest, clock_.spans[p_.maker[value]].end);
      else if (p_.home[value] >= 0 || p_.users.of(value).size() > 1)
        return 0.0;  // it is sent from the start
    }
  }
  return soonest;
}

Score Judge::attempt(const Placement& units, const std::vector<std::pair<int, int>>& changed, double limit) {
  was_.clear();
  steps_.clear();
  for (const auto& [unit, device] : changed)
    for (int step : p_.members.of(unit)) {
      was_.emplace_back(step, place_[step]);
      place_[step] = units[unit];
      steps_.push_back(step);
    }
  ++judged;
  outcome_.overflow = 0.0;
  const bool latency = objective_.kind == Objective::kLatency;
  const double from = latency && p_.ports && p_.order.empty() ? unaffected() : 0.0;
  const bool ended = from > 0.0 ? clock_.rerun(place_, steps_, from, outcome_, limit)
                                : clock_.run(place_, outcome_, latency ? limit : kNever);
  left -= kAttempt + p_.steps / 8 + clock_.work() / 2;
  if (!ended) return {0.0, 0.0, kNever, 0.0};
  return finished(limit);
}

namespace {

// The chain of steps and transfers that the last step to end waited for.
struct Critical {
  std::vector<int> steps;
  std::vector<std::pair<int, int>> moves;  // (maker's step or -1, the step that needs it)

  void trace(const Judge& judge) {
    const Clock& clock = judge.clock();
    const Problem& p = judge.problem();
    steps.clear();
    moves.clear();
    for (int step = clock.last; step >= 0;) {
      steps.push_back(step);
      const int why = clock.spans[step].cause;
      if (why == -1) break;
      if (why == kMaking) {
        step = clock.spans[step].before;
        continue;
      }
      int move = why;
      while (move >= 0) {
        const Move& its = clock.moves[move];
        moves.emplace_back(p.maker[its.value], its.before);
        if (its.cause == kMaking) {
          step = p.maker[its.value];
          break;
        }
        move = its.cause;
        step = -1;
      }
    }
  }
};

// An idea that looks so many times worse than what may be accepted is left untried that often.
constexpr double kDoubt = 1.5, kDoubted = 0.8;
constexpr double kMany = 4.0;  // ideas at once
constexpr int kIdeas = 14;  // at most so many are looked at for one that is tried

class Annealer {
 public:
  Annealer(Judge& judge, uint64_t seed) : judge_(judge), p_(judge.problem()), random_(seed), place_(judge.place()), known_(judge.problem().order.empty()) {}

  void run(Candidate& best, int64_t budget, double begun, double done) {
    if (p_.units == 0 || p_.devices < 2) return;
    const int64_t until = judge_.left - budget;
    Placement now = best.units;
    Score current = judge_(now);
    remember();
    const double scale = std::max(current.scalar(), 1e-300);
    // The more often each step can be tried, the hotter: there is time to cool down.
    const double whole = static_cast<double>(budget) / (done - begun);
    const double tries = whole / (static_cast<double>(p_.steps) * p_.steps);
    const double heat = (known_ ? 4.0 : 1.0) * std::min(0.05, 0.001 * std::pow(std::max(0.3, tries), 0.6));
    const double hot = heat * scale, cold = 0.005 * hot;
    double best_scalar = best.score.scalar();
    int since = 0;
    while (judge_.left - p_.steps >= until && judge_.left - p_.steps >= 0) {
      const double ran = 1.0 - static_cast<double>(judge_.left - until) / static_cast<double>(std::max<int64_t>(budget, 1));
      const double gone = begun + (done - begun) * ran;
      const double temperature = hot * std::pow(cold / hot, gone);
      propose(now);
      if (changed_.empty()) {
        judge_.left -= kProposal;
        continue;
      }
      // What may be accepted is drawn first: most proposals are found too bad before they are at their end.
      const double limit = current.scalar() - temperature * std::log(1.0 - random_.uniform());
      // Most that look worse than that are; some are tried all the same, for it is but an estimate.
      if (known_ && late_ > kDoubt * (limit - current.scalar()) && random_.uniform() < kDoubted) {
        judge_.left -= kProposal;
        undo(now);
        continue;
      }
      const Score score = judge_.attempt(now, changed_, limit);
      if (score.scalar() <= limit) {
        judge_.keep();
        many_ = std::min(many_ * 1.3, kMany);
        current = score;
        remember();
        if (score.better(best.score)) {
          best.units = now;
          best.score = score;
          best_scalar = score.scalar();
          since = 0;
        }
      } else {
        judge_.forget();
        many_ = std::max(many_ * 0.85, 1.0);
        undo(now);
      }
      // Far from the best for long: go back to it.
      if (++since > 400 && current.scalar() > best_scalar * 1.02) {
        now = best.units;
        current = judge_(now);
        remember();
        since = 0;
      }
    }
  }

 private:
  void remember() {
    busy_ = judge_.outcome().busy;
    if (judge_.objective().kind == Objective::kThroughput) {
      hot_ = 0;
      double most = -1.0;
      for (int device = 0; device < p_.devices; ++device) {
        const Outcome& its = judge_.outcome();
        const double load = std::max({its.busy[device], its.sent[device], its.received[device]});
        if (load > most) {
          most = load;
          hot_ = device;
        }
      }
    } else {
      critical_.trace(judge_);
      survey();
    }
  }

  void survey() {
    last_ = judge_.outcome().makespan;
    judge_.clock().ways_to_end(place_, onward_, onward_sent_);
  }

  bool set(Placement& units, int unit, int device) {
    if (units[unit] == device || !p_.may(unit, device)) return false;
    for (const auto& [already, was] : changed_)
      if (already == unit) return false;
    changed_.emplace_back(unit, units[unit]);
    units[unit] = device;
    return true;
  }

  void undo(Placement& units) {
    for (const auto& [unit, device] : changed_) units[unit] = device;
  }

  int step_of_interest() {
    if (judge_.objective().kind == Objective::kThroughput) {
      for (int tries = 0; tries < 8; ++tries) {
        const int step = random_.below(p_.steps);
        if (place_[step] == hot_) return step;
      }
    } else if (!critical_.steps.empty() && random_.below(4) != 0) {
      return critical_.steps[random_.below(static_cast<int>(critical_.steps.size()))];
    }
    return random_.below(p_.steps);
  }

  // A device near the step's neighbours, or the least busy, or any.
  int device_for(int step) {
    const int kind = random_.below(8);
    if (kind < 4) {
      const auto operands = p_.operands.of(step);
      const auto outputs = p_.outputs.of(step);
      if (kind < 2 && !operands.empty()) {
        const int value = operands[random_.below(static_cast<int>(operands.size()))];
        if (p_.maker[value] >= 0) return place_[p_.maker[value]];
        if (p_.home[value] >= 0) return p_.home[value];
        const auto users = p_.users.of(value);
        return place_[users[random_.below(static_cast<int>(users.size()))]];
      }
      if (!outputs.empty()) {
        const int value = outputs[random_.below(static_cast<int>(outputs.size()))];
        const auto users = p_.users.of(value);
        if (!users.empty()) return place_[users[random_.below(static_cast<int>(users.size()))]];
      }
    }
    if (kind < 6) return static_cast<int>(std::min_element(busy_.begin(), busy_.end()) - busy_.begin());
    return random_.below(p_.devices);
  }

  // When a value would arrive that is not sent now, between the transfers as they are; and whom that puts off.
  double sent(int value, int from, int to, double made, double& late) const {
    const double took = p_.transfer(value, from, to);
    if (!p_.ports) return made + took;
    const Clock& clock = judge_.clock();
    const std::vector<int>&out = clock.sent_by(from), &in = clock.received_by(to);
    double begin = made;
    const auto behind = std::partition_point(out.begin(), out.end(), [&](int move) { return clock.moves[move].ready <= made; });
    if (behind != out.begin()) begin = std::max(begin, clock.moves[*(behind - 1)].end);
    const auto next = std::partition_point(in.begin(), in.end(), [&](int move) { return clock.moves[move].begin <= begin; });
    if (next != in.begin()) begin = std::max(begin, clock.moves[*(next - 1)].end);
    const double arrival = begin + took;
    if (behind != out.end()) late = std::max(late, arrival + onward_sent_[*behind] - last_);
    if (next != in.end()) late = std::max(late, arrival + onward_sent_[*next] - last_);
    return arrival;
  }

  // How much later than now the end may come when a step runs elsewhere, from the times of the schedule as it is: when
  // it could run there, who waits for what it makes, and whom it puts off there. Only an estimate: the rest stands still.
  double lateness(int step, int device) const {
    const Clock& clock = judge_.clock();
    const std::vector<Span>& spans = clock.spans;
    const std::vector<int>& there = judge_.list(device);
    const auto after = std::lower_bound(there.begin(), there.end(), step);
    double start = after == there.begin() ? 0.0 : spans[*(after - 1)].end;
    double late = -last_;
    for (int value : p_.operands.of(step)) {
      const int maker = p_.maker[value];
      if (maker < 0) {
        if (p_.home[value] >= 0 && p_.home[value] != device)
          start = std::max(start, p_.transfer(value, p_.home[value], device));
        continue;
      }
      const int from = place_[maker];
      double arrival = spans[maker].end;
      if (from != device) {
        const int move = clock.brings(value, device);
        if (move >= 0) {
          arrival = std::max(arrival, clock.moves[move].end);
        } else {
          arrival = sent(value, from, device, arrival, late);
        }
      }
      start = std::max(start, arrival);
    }
    const double finish = start + p_.cost(device, step);
    late = std::max(late, finish - last_);
    if (after != there.end()) late = std::max(late, finish + onward_[*after] - last_);
    for (int value : p_.outputs.of(step))
      for (int user : p_.users.of(value)) {
        const int to = place_[user];
        double arrival = finish;
        if (to != device) arrival = sent(value, device, to, finish, late);
        late = std::max(late, arrival + onward_[user] - last_);
      }
    return late;
  }

  struct Idea {
    int step = -1, device = -1;
    bool backwards = false;
    double late = kNever;
  };

  // Of some ideas the one that looks best.
  Idea idea() {
    Idea best;
    const bool guided = judge_.objective().kind == Objective::kLatency;
    const int ideas = guided ? 1 + random_.below(kIdeas) : 1;
    for (int count = 0; count < ideas; ++count) {
      Idea its;
      if (!critical_.moves.empty() && random_.below(3) == 0) {
        // Do without a transfer that the end waits for.
        const auto [from, to] = critical_.moves[random_.below(static_cast<int>(critical_.moves.size()))];
        if (from < 0) continue;
        its.backwards = random_.below(2) == 0;
        its.step = its.backwards ? from : to;
        its.device = place_[its.backwards ? to : from];
      } else {
        its.step = step_of_interest();
        its.device = device_for(its.step);
      }
      if (its.device == place_[its.step] || !p_.may(p_.unit[its.step], its.device)) continue;
      its.late = ideas > 1 ? lateness(its.step, its.device) : 0.0;
      if (its.late < best.late) best = its;
    }
    return best;
  }

  void propose(Placement& units) {
    changed_.clear();
    const auto [step, device, backwards, late] = idea();
    if (step < 0) return;
    late_ = late;
    const int kind = random_.below(16);
    if (kind < 8) {
      set(units, p_.unit[step], device);
    } else if (kind < 12) {
      if (backwards)
        spread_back(units, step, device, 2 + random_.below(12));
      else
        spread(units, step, device, 2 + random_.below(12));
    } else if (kind < 15) {
      stretch(units, step, device);
    } else {
      exchange(units, step, device);
    }
    // More of them at once, while that goes well.
    for (double more = known_ ? many_ : 1.0; more >= 2; more -= 1) {
      judge_.left -= kProposal;
      const Idea its = idea();
      if (its.late < 0) set(units, p_.unit[its.step], its.device);
    }
  }

  // The step and what follows from it where it was, breadth first.
  void spread(Placement& units, int step, int device, int most) {
    const int was = place_[step];
    frontier_.assign(1, step);
    for (size_t at = 0; at < frontier_.size() && static_cast<int>(at) < most; ++at) {
      set(units, p_.unit[frontier_[at]], device);
      for (int value : p_.outputs.of(frontier_[at]))
        for (int user : p_.users.of(value))
          if (place_[user] == was && static_cast<int>(frontier_.size()) < most) frontier_.push_back(user);
    }
  }

  void spread_back(Placement& units, int step, int device, int most) {
    const int was = place_[step];
    frontier_.assign(1, step);
    for (size_t at = 0; at < frontier_.size() && static_cast<int>(at) < most; ++at) {
      set(units, p_.unit[frontier_[at]], device);
      for (int value : p_.operands.of(frontier_[at])) {
        const int maker = p_.maker[value];
        if (maker >= 0 && place_[maker] == was && static_cast<int>(frontier_.size()) < most) frontier_.push_back(maker);
      }
    }
  }

  // Neighbours in order that are where the step is.
  void stretch(Placement& units, int step, int device) {
    const int was = place_[step];
    const int most = std::max(2, p_.steps / 4);
    const int length = 1 + static_cast<int>(std::exp(random_.uniform() * std::log(static_cast<double>(most))));
    int first = step, last = step;
    const int back = random_.below(length);
    for (int count = 0; count < back && first > 0 && place_[first - 1] == was; ++count) --first;
    for (int count = back; count < length && last + 1 < p_.steps && place_[last + 1] == was; ++count) ++last;
    for (int at = first; at <= last; ++at) {
      const int unit = p_.unit[at];
      if (units[unit] != device && p_.may(unit, device)) {
        changed_.emplace_back(unit, units[unit]);
        units[unit] = device;
      }
    }
  }

  // Two steps change places.
  void exchange(Placement& units, int step, int device) {
    const int was = place_[step];
    for (int tries = 0; tries < 8; ++tries) {
      const int other = random_.below(p_.steps);
      if (place_[other] != device || device == was) continue;
      set(units, p_.unit[step], device);
      set(units, p_.unit[other], was);
      return;
    }
  }

  Judge& judge_;
  const Problem& p_;
  Random random_;
  Critical critical_;
  std::vector<std::pair<int, int>> changed_;
  std::vector<int> frontier_;
  std::vector<double> busy_, onward_sent_;
  const std::vector<int>& place_;
  std::vector<double> onward_;           // from the start of each step to the end, with everything where it is
  double last_ = 0.0;                    // when the end comes
  double late_ = 0.0;                    // how much later it may come after what is proposed
  const bool known_;                     // whether estimates know what devices do when
  double many_ = 1.0;                    // ideas that are tried together
  int hot_ = 0;
};

}  // namespace

void anneal(Judge& judge, Candidate& best, int64_t budget, uint64_t seed, double begun, double done) {
  Annealer(judge, seed).run(best, std::min(budget, judge.left), begun, done);
}

void anneal_order(Problem& p, const Objective& objective, Candidate& best, std::vector<int>& order, int64_t budget,
                  uint64_t seed) {
  if (p.steps < 2) return;
  Random random(seed);
  p.order = order;
  Judge judge(p, objective, budget);
  Placement now = best.units;
  Score current = judge(now);
  best.score = current;
  Critical critical;
  critical.trace(judge);
  std::vector<int> at(p.steps);
  for (int number = 0; number < p.steps; ++number) at[p.order[number]] = number;
  const double hot = 0.03 * std::max(current.scalar(), 1e-300), cold = 0.003 * hot;
  const auto shift = [&](int from, int to) {
    const int step = p.order[from];
    if (from < to)
      std::move(p.order.begin() + from + 1, p.order.begin() + to + 1, p.order.begin() + from);
    else
      std::move_backward(p.order.begin() + to, p.order.begin() + from, p.order.begin() + from + 1);
    p.order[to] = step;
    for (int number = std::min(from, to); number <= std::max(from, to); ++number) at[p.order[number]] = number;
  };
  while (judge.left > 0) {
    const double gone = 1.0 - static_cast<double>(judge.left) / static_cast<double>(budget);
    const double temperature = hot * std::pow(cold / hot, gone);
    const bool chosen = !critical.steps.empty() && random.below(3) != 0;
    const int step = chosen ? critical.steps[random.below(static_cast<int>(critical.steps.size()))] : random.below(p.steps);
    const int unit = p.unit[step];
    int from = -1, to = -1, was = now[unit];
    const int kind = random.below(4);
    if (kind != 0) {
      // Within what it needs and what needs it.
      int first = 0, last = p.steps - 1;
      for (int value : p.operands.of(step))
        if (p.maker[value] >= 0) first = std::max(first, at[p.maker[value]] + 1);
      for (int value : p.outputs.of(step))
        for (int user : p.users.of(value)) last = std::min(last, at[user] - 1);
      if (last > first) {
        from = at[step];
        to = first + random.below(last - first + 1);
        if (to == from)
          from = -1;
        else
          shift(from, to);
      }
    }
    if (kind != 1 && p.devices > 1) {
      const int device = random.below(p.devices);
      if (p.may(unit, device)) now[unit] = device;
    }
    if (from < 0 && now[unit] == was) {
      judge.left -= 1;
      continue;
    }
    const double limit = current.scalar() - temperature * std::log(1.0 - random.uniform());
    const Score score = judge(now, limit);
    if (score.scalar() <= limit) {
      current = score;
      critical.trace(judge);
      if (score.better(best.score)) {
        best.units = now;
        best.score = score;
        order = p.order;
      }
    } else {
      now[unit] = was;
      if (from >= 0) shift(to, from);
    }
  }
  p.order = order;
}

}  // namespace genie
