// Where to run what: candidates by rule, the best of them improved by annealing. Everything is judged at the level of
// steps by one evaluator, and counted: equal problems with equal budgets have equal answers.

#pragma once

#include <string>
#include <vector>

#include "problem.h"

namespace genie {

using Placement = std::vector<int>;  // unit → device

struct Candidate {
  Placement units;
  Score score;
  const char* rule = "";
};

// A problem, its evaluator, and how much of the budget is left (in steps evaluated).
class Judge {
 public:
  Judge(const Problem& problem, const Objective& objective, int64_t budget);
  // A placement whose score would be above `limit`, as a scalar, may be told from others by an infinite score alone.
  Score operator()(const Placement& units, double limit = kNever);

  // The same of a placement that differs in the `changed` units from the last one that was kept; what was asked last is
  // kept or forgotten before anything else is asked.
  Score attempt(const Placement& units, const std::vector<std::pair<int, int>>& changed, double limit);
  void keep();
  void forget();

  const Problem& problem() const { return p_; }
  const Objective& objective() const { return objective_; }
  const Clock& clock() const { return clock_; }
  const Outcome& outcome() const { return outcome_; }
  const std::vector<int>& place() const { return place_; }
  const std::vector<int>& list(int device) const { return lists_[device]; }
  int64_t left = 0;
  int64_t judged = 0;

 private:
  const Problem& p_;
  const Objective& objective_;
  Clock clock_;
  Ledger ledger_;
  Outcome outcome_;
  double unaffected() const;
  Score finished(double limit);

  std::vector<int> place_;
  std::vector<std::pair<int, int>> was_;   // (step, device) of what was asked last, before
  std::vector<int> steps_;                 // those steps
  std::vector<std::vector<int>> lists_;    // per device, its steps in order, of what is kept
};

// --- candidates (candidates.cpp) ---
// Units that may not be where they are, where they are fastest.
Placement admitted(const Problem& problem, Placement units);
Placement single(const Problem& problem, int device);
std::vector<Placement> components(const Problem& problem);
// Steps in order, each where it ends first; `look` adds what the way to the end still takes from there.
Placement greedy(const Problem& problem, bool look, double reserve);
std::vector<Placement> cut_chains(const Problem& problem, bool throughput, int most_cuts);
// The ranks of HEFT as an order of steps, for problems whose order is free.
std::vector<int> ranked(const Problem& problem);

// --- coarser problems (coarsen.cpp) ---
struct Coarse {
  Problem problem;
  std::vector<int> step;  // of the finer problem → of this one
  // A placement of this problem's units as one of the finer problem's.
  Placement refine(const Problem& finer, const Placement& units) const;
};
std::vector<int> chains(const Problem& problem);                 // step → label of its chain
std::vector<int> runs(const Problem& problem);                   // … of its run of one block
std::vector<int> windows(const Problem& problem, int count);     // … of its window between cheap cuts
// … of its pair: `parity` says whether pairs begin on even levels or on odd ones.
std::vector<int> pairs(const Problem& problem, int parity, double most_seconds);
Coarse coarsen(const Problem& problem, const std::vector<int>& label);

// --- annealing (anneal.cpp) ---
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 0x1234567ull) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  int below(int count) { return static_cast<int>(next() % static_cast<uint64_t>(count)); }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }

 private:
  uint64_t state_;
};
// Improves `best` in place with `budget` steps of evaluation: the part of an annealing between these shares of it.
void anneal(Judge& judge, Candidate& best, int64_t budget, uint64_t seed, double begun = 0.0, double done = 1.0);
// Also moves steps in the order, which must be given (problem.order); best.units as before.
void anneal_order(Problem& problem, const Objective& objective, Candidate& best, std::vector<int>& order,
                  int64_t budget, uint64_t seed);

// --- all of it (search.cpp) ---
struct Found {
  Candidate best;
  Score single;           // of the best candidate that has one device
  bool feasible = false;  // memory suffices
  bool proven = false;    // if not: every placement was tried
  int64_t judged = 0;
  std::vector<int> order; // where it was free
};
Found search(Problem& problem, const Objective& objective, int64_t budget, uint64_t seed, bool reorder);
// Every placement, pruned by memory that is needed for good, until one fits. Tries at most `most` whole ones.
bool fit(Judge& judge, int64_t most, Candidate& found, bool& proven);

}  // namespace genie
