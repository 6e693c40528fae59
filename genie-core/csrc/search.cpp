#include <algorithm>
#include <future>
#include <numeric>
#include <utility>

#include "search.h"

namespace genie {
namespace {

// Shares of the budget: for grains from coarse to fine, for blocks; the rest is for steps.
constexpr double kLevels = 0.1, kBlocks = 0.15;
constexpr double kNear = 1.3;      // of the best score: what blocks must reach to be annealed
constexpr double kFew = 5000.0;    // placements
constexpr int kMeetings = 4;
constexpr int64_t kWorthAThread = 5'000;  // steps evaluated

class Searcher {
 public:
  Searcher(const Problem& problem, const Objective& objective, int64_t budget, uint64_t seed)
      : p_(problem), objective_(objective), judge_(problem, objective, budget), budget_(budget), seed_(seed) {}

  Found run() {
    portfolio();
    if (!try_all()) improve();
    if (best_.score.overflow > 0 && !proven_) make_fit();
    prefer_single();
    Found found;
    found.best = best_;
    found.single = single_.score;
    found.feasible = best_.score.overflow == 0;
    found.proven = proven_;
    found.judged = judge_.judged;
    return found;
  }

 private:
  // Every placement, where they are few.
  bool try_all() {
    double count = 1.0;
    for (int unit = 0; unit < p_.units && count <= kFew; ++unit) {
      int ways = 0;
      for (int device = 0; device < p_.devices; ++device) ways += p_.may(unit, device);
      count *= ways;
    }
    if (count > kFew || count * p_.steps > static_cast<double>(judge_.left)) return false;
    Placement units(p_.units, 0);
    for (int unit = 0; unit < p_.units; ++unit)
      while (!p_.may(unit, units[unit])) ++units[unit];
    for (int unit = 0; unit < p_.units;) {
      const Score score = judge_(units, best_.score.overflow > 0 ? kNever : best_.score.scalar());
      if (score.better(best_.score)) best_ = {units, score, "the best of all placements"};
      // The next one, as one counts.
      for (unit = 0; unit < p_.units; ++unit) {
        do ++units[unit];
        while (units[unit] < p_.devices && !p_.may(unit, units[unit]));
        if (units[unit] < p_.devices) break;
        units[unit] = 0;
        while (!p_.may(unit, units[unit])) ++units[unit];
      }
    }
    proven_ = true;
    return true;
  }

  void offer(Placement units, const char* rule) {
    if (units.empty() && p_.units > 0) return;
    const Score score = judge_(units);
    keep({std::move(units), score, rule});
  }

  void keep(Candidate candidate) {
    if (!any_ || candidate.score.better(best_.score)) {
      best_ = candidate;
      any_ = true;
    }
    pool_.push_back(std::move(candidate));
  }

  void portfolio() {
    for (int device = 0; device < p_.devices; ++device) {
      Placement units = single(p_, device);
      const Score score = judge_(units);
      if (device == 0 || score.better(single_.score)) single_ = {units, score, "one device"};
      keep({std::move(units), score, "one device"});
    }
    const bool large = p_.steps > 4000;
    if (p_.devices > 1) {
      offer(greedy(p_, false, 0.0), "earliest finish, operator by operator");
      if (!large || p_.devices <= 16) offer(greedy(p_, true, 0.5), "earliest finish with foresight, operator by operator");
      for (Placement& units : components(p_)) offer(std::move(units), "independent parts on their own");
      const bool throughput = objective_.kind == Objective::kThroughput;
      for (Placement& units : cut_chains(p_, false, 96)) offer(std::move(units), "cut into a chain of stages");
      if (throughput)
        for (Placement& units : cut_chains(p_, true, 192)) offer(std::move(units), "cut into balanced stages");
      if (p_.order.empty()) {
        coarse(chains(p_), "earliest finish, chain by chain", true);
        coarse(runs(p_), "earliest finish, block by block", false);
        for (int count : {12, 32, 96})
          if (count < p_.steps / 2) coarse(windows(p_, count), "earliest finish, stretch by stretch", false);
      }
    }
  }

  void coarse(const std::vector<int>& label, const char* rule, bool keep_problem) {
    Coarse made = coarsen(p_, label);
    if (made.problem.steps < 2 || made.problem.steps >= p_.steps) return;
    for (const bool look : {false, true}) offer(made.refine(p_, greedy(made.problem, look, 0.5)), rule);
    if (keep_problem || made.problem.steps < 300) coarser_.push_back(std::move(made));
  }

  // A placement of the coarser problem that refines to (most of) this one.
  static Placement lift(const Coarse& made, const Problem& finer, const Placement& units) {
    Placement found(made.problem.units, -1);
    for (int step = 0; step < finer.steps; ++step) {
      int& its = found[made.problem.unit[made.step[step]]];
      if (its < 0) its = units[finer.unit[step]];
    }
    return found;
  }

  void improve() {
    if (p_.devices < 2 || p_.units == 0) return;
    const int64_t all = judge_.left;
    if (all <= 0) return;
    // Coarser problems first: a whole block moves in one go, and an evaluation costs less.
    if (p_.order.empty()) {
      const auto part = [all](double of) { return static_cast<int64_t>(of * static_cast<double>(all)); };
      levels(part(kLevels), seed_ + 1000);
      const int64_t share = part(kBlocks);
      std::stable_sort(coarser_.begin(), coarser_.end(),
                       [](const Coarse& a, const Coarse& b) { return a.problem.steps < b.problem.steps; });
      for (size_t at = 0; at < coarser_.size(); ++at) {
        const Coarse& made = coarser_[at];
        const int64_t mine = share / static_cast<int64_t>(coarser_.size());
        Judge judge(made.problem, objective_, mine);
        Candidate candidate{lift(made, p_, best_.units), {}, "annealed"};
        candidate.score = judge(candidate.units);
        // Where blocks can't come near what is there already, it is no graph of blocks.
        if (candidate.score.scalar() > kNear * best_.score.scalar()) continue;
        anneal(judge, candidate, mine, seed_ + at);
        judge_.left -= mine;
        offer(made.refine(p_, candidate.units), "annealed, block by block");
      }
    }
    // Then steps: two searches side by side, which go on from the better one's best now and then. What is found does
    // not depend on which is done first.
    const int64_t part = judge_.left / kMeetings;
    const bool two = objective_.kind != Objective::kUser && part > kWorthAThread;
    Judge beside(p_, objective_, judge_.left);
    for (int meeting = 0; meeting < kMeetings; ++meeting) {
      const double begun = static_cast<double>(meeting) / kMeetings, done = static_cast<double>(meeting + 1) / kMeetings;
      Candidate candidate = best_, second = best_;
      std::future<void> other;
      if (two)
        other = std::async(std::launch::async, [&] { anneal(beside, second, part, seed_ + 31 + meeting, begun, done); });
      anneal(judge_, candidate, part, seed_ + 17 + 100 * meeting, begun, done);
      if (two) {
        other.get();
        settle(std::move(second));
      }
      settle(std::move(candidate));
    }
    judge_.judged += beside.judged;
  }

  void settle(Candidate candidate) {
    if (!candidate.score.better(best_.score)) return;
    candidate.rule = "annealed";
    best_ = std::move(candidate);
  }

  // Every further device is one more to be told and waited for: what gains less than that is not worth it.
  void prefer_single() {
    if (objective_.kind != Objective::kLatency || objective_.handover <= 0 || p_.units == 0) return;
    if (single_.score.overflow > best_.score.overflow || single_.score.violation > best_.score.violation) return;
    std::vector<uint8_t> used(p_.devices, 0);
    for (int device : best_.units) used[device] = 1;
    const double more = static_cast<double>(std::count(used.begin(), used.end(), 1) - 1);
    if (best_.score.value > single_.score.value - more * objective_.handover) best_ = single_;
  }

  // Pairs of pairs of steps, until few are left; placed there, and annealed at every grain on the way back.
  void levels(int64_t budget, uint64_t seed) {
    std::vector<Coarse> grains;
    Placement kept = best_.units;
    double total = 0.0;
    for (int step = 0; step < p_.steps; ++step) total += p_.cost(0, step);
    const double most = total / (8.0 * p_.devices);
    for (int round = 0, stuck = 0; round < 24 && stuck < 2; ++round) {
      const Problem& finer = grains.empty() ? p_ : grains.back().problem;
      if (finer.steps <= 6 * p_.devices) break;
      Coarse made = coarsen(finer, pairs(finer, round % 2, most));
      if (made.problem.steps < 2) break;
      if (made.problem.steps > 0.97 * finer.steps) {
        ++stuck;
        continue;
      }
      stuck = 0;
      kept = lift(made, finer, kept);
      grains.push_back(std::move(made));
    }
    if (grains.empty()) return;
    const int64_t mine = budget / static_cast<int64_t>(grains.size());
    const auto finer = [&](size_t at) -> const Problem& { return at == 0 ? p_ : grains[at - 1].problem; };
    Placement now;
    for (size_t at = grains.size(); at-- > 0;) {
      const Problem& problem = grains[at].problem;
      Judge judge(problem, objective_, mine);
      Candidate candidate;
      bool any = false;
      const auto try_ = [&](Placement units) {
        const Score score = judge(units);
        if (!any || score.better(candidate.score)) candidate = {std::move(units), score, ""};
        any = true;
      };
      if (at + 1 == grains.size()) {
        try_(kept);
        for (const bool look : {false, true}) try_(greedy(problem, look, 0.5));
      } else {
        try_(std::move(now));
      }
      anneal(judge, candidate, mine, seed + at);
      judge_.left -= mine;
      // Where coarse steps can't come near what is there already, finer ones start better from that.
      if (candidate.score.scalar() > kNear * best_.score.scalar()) return;
      now = grains[at].refine(finer(at), candidate.units);
    }
    Candidate candidate{now, judge_(now), "annealed, from coarse to fine"};
    keep(std::move(candidate));
  }

  void make_fit() {
    judge_.left = budget_;
    Candidate found;
    if (!fit(judge_, std::max<int64_t>(2000, budget_ / std::max(1, p_.steps)), found, proven_)) return;
    found.rule = "the first that fits";
    judge_.left = budget_ / 2;
    best_ = found;
    anneal(judge_, best_, judge_.left, seed_ + 99);
  }

  const Problem& p_;
  const Objective& objective_;
  Judge judge_;
  int64_t budget_;
  uint64_t seed_;
  bool any_ = false, proven_ = false;
  Candidate best_;
  Candidate single_;
  std::vector<Candidate> pool_;
  std::vector<Coarse> coarser_;
};

}  // namespace

bool fit(Judge& judge, int64_t most, Candidate& found, bool& proven) {
  const Problem& p = judge.problem();
  proven = true;
  // Bytes that a unit keeps for good wherever it runs: inputs that are not given away, each once per device.
  std::vector<std::vector<int>> keeps(p.units);
  std::vector<double> weight(p.units, 0.0);
  for (int value = 0; value < p.values; ++value) {
    if (p.maker[value] >= 0 || p.last[value] < p.steps) continue;
    for (int user : p.users.of(value)) {
      std::vector<int>& its = keeps[p.unit[user]];
      if (its.empty() || its.back() != value) {
        its.push_back(value);
        weight[p.unit[user]] += static_cast<double>(p.size[value]);
      }
    }
  }
  std::vector<int> sequence(p.units);
  std::iota(sequence.begin(), sequence.end(), 0);
  std::stable_sort(sequence.begin(), sequence.end(), [&](int a, int b) { return weight[a] > weight[b]; });
  std::vector<int> uses(static_cast<size_t>(p.values) * p.devices, 0);
  std::vector<int64_t> held(p.devices, 0);
  for (int value = 0; value < p.values; ++value)
    if (p.maker[value] < 0 && p.home[value] >= 0 && p.last[value] >= p.steps) {
      held[p.home[value]] += p.size[value];
      ++uses[static_cast<size_t>(value) * p.devices + p.home[value]];
    }
  Placement units(p.units, -1);
  int64_t nodes = 0, wholes = 0;
  const auto put = [&](int unit, int device, int sign) {
    for (int value : keeps[unit]) {
      int& count = uses[static_cast<size_t>(value) * p.devices + device];
      if (sign > 0 && count++ == 0) held[device] += p.size[value];
      if (sign < 0 && --count == 0) held[device] -= p.size[value];
    }
  };
  // Depth first with a stack of its own: graphs are deeper than a thread's stack.
  int depth = 0;
  while (depth >= 0) {
    if (depth == p.units) {
      if (++wholes > most) break;
      const Score score = judge(units);
      if (score.overflow == 0) {
        found.units = units;
        found.score = score;
        return true;
      }
      --depth;
      if (depth < 0) break;
    }
    const int unit = sequence[depth];
    int device = units[unit];
    if (device >= 0) put(unit, device, -1);
    for (++device; device < p.devices; ++device) {
      if (!p.may(unit, device)) continue;
      put(unit, device, +1);
      if (held[device] <= p.capacity[device]) break;
      put(unit, device, -1);
    }
    if (++nodes > 200 * most) break;
    if (device < p.devices) {
      units[unit] = device;
      ++depth;
    } else {
      units[unit] = -1;
      --depth;
    }
  }
  proven = depth < 0;
  return false;
}

Found search(Problem& problem, const Objective& objective, int64_t budget, uint64_t seed, bool reorder) {
  if (!reorder) return Searcher(problem, objective, budget, seed).run();
  // The order is free: by rank, and as it was; the better of both is annealed with its order.
  std::vector<int> given = problem.order;
  if (given.empty()) {
    given.resize(problem.steps);
    std::iota(given.begin(), given.end(), 0);
  }
  problem.order = given;
  std::vector<std::vector<int>> orders{ranked(problem), given};
  Found best;
  for (size_t at = 0; at < orders.size(); ++at) {
    problem.order = orders[at];
    Found found = Searcher(problem, objective, budget / 8, seed + at).run();
    if (at == 0 || found.best.score.better(best.best.score)) {
      const int64_t judged = best.judged + found.judged;
      best = std::move(found);
      best.order = orders[at];
      best.judged = judged;
    }
  }
  const int starts = 3;
  const Candidate origin = best.best;
  const std::vector<int> origin_order = best.order;
  for (int start = 0; start < starts; ++start) {
    Candidate candidate = start == starts - 1 ? best.best : origin;
    std::vector<int> order = start == starts - 1 ? best.order : origin_order;
    anneal_order(problem, objective, candidate, order, budget / 4, seed + 31 * start);
    if (candidate.score.better(best.best.score)) {
      best.best = candidate;
      best.best.rule = "annealed";
      best.order = order;
    }
  }
  return best;
}

}  // namespace genie
