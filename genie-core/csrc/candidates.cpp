#include <algorithm>
#include <limits>
#include <numeric>

#include "search.h"

namespace genie {
namespace {


int step_at(const Problem& p, int number) { return p.order.empty() ? number : p.order[number]; }

// What a unit takes on a device, all its steps.
std::vector<double> unit_seconds(const Problem& p) {
  std::vector<double> total(static_cast<size_t>(p.units) * p.devices, 0.0);
  for (int step = 0; step < p.steps; ++step)
    for (int device = 0; device < p.devices; ++device)
      total[static_cast<size_t>(p.unit[step]) * p.devices + device] += p.cost(device, step);
  return total;
}

// From each step on each device, the least way to the end: the children's devices are free to choose (the optimistic
// cost table of Arabnejad and Barbosa, "List Scheduling Algorithm for Heterogeneous Systems by an Optimistic Cost
// Table", 2014). Transfers are taken at their real links.
std::vector<double> way_to_end(const Problem& p) {
  const int devices = p.devices;
  std::vector<double> way(static_cast<size_t>(p.steps) * devices, 0.0);
  std::vector<double> onward(devices);
  for (int number = p.steps - 1; number >= 0; --number) {
    const int step = step_at(p, number);
    for (int value : p.outputs.of(step)) {
      for (int user : p.users.of(value)) {
        for (int to = 0; to < devices; ++to)
          onward[to] = p.may(p.unit[user], to) ? way[static_cast<size_t>(user) * devices + to] + p.cost(to, user) : kNever;
        for (int from = 0; from < devices; ++from) {
          double least = onward[from];
          for (int to = 0; to < devices; ++to)
            if (to != from && onward[to] < least) least = std::min(least, onward[to] + p.transfer(value, from, to));
          double& its = way[static_cast<size_t>(step) * devices + from];
          its = std::max(its, least);
        }
      }
    }
  }
  return way;
}

// Results that come and go: bytes of them that live at once at each step, on one device. And those that stay: bytes
// that each step adds for good.
struct Results {
  std::vector<double> passing, staying;
};

Results results(const Problem& p) {
  Results found{std::vector<double>(p.steps, 0.0), std::vector<double>(p.steps, 0.0)};
  std::vector<double>& live = found.passing;
  std::vector<int> root(p.values), sharers(p.values, 0);
  std::vector<uint8_t> stays(p.values, 0);
  std::iota(root.begin(), root.end(), 0);
  for (int step = 0; step < p.steps; ++step)
    for (int value : p.outputs.of(step)) {
      if (p.parent[value] >= 0) root[value] = root[p.parent[value]];
      if (p.last[value] >= p.steps) stays[root[value]] = 1;
    }
  double held = 0;
  for (int step = 0; step < p.steps; ++step) {
    for (int value : p.outputs.of(step)) {
      if (root[value] == value) (stays[value] ? found.staying[step] : held) += static_cast<double>(p.size[value]);
      ++sharers[root[value]];
    }
    live[step] = held;
    for (int value : p.released.of(step)) {
      if (p.maker[root[value]] < 0 || stays[root[value]]) continue;
      if (--sharers[root[value]] == 0) held -= static_cast<double>(p.size[root[value]]);
    }
  }
  return found;
}

}  // namespace

Placement admitted(const Problem& p, Placement units) {
  std::vector<double> total;
  for (int unit = 0; unit < p.units; ++unit) {
    if (p.may(unit, units[unit])) continue;
    if (total.empty()) total = unit_seconds(p);
    double least = kNever;
    for (int other = 0; other < p.devices; ++other) {
      const double took = total[static_cast<size_t>(unit) * p.devices + other];
      if (p.may(unit, other) && took < least) {
        least = took;
        units[unit] = other;
      }
    }
  }
  return units;
}

Placement single(const Problem& p, int device) { return admitted(p, Placement(p.units, device)); }

std::vector<Placement> components(const Problem& p) {
  std::vector<int> parent(p.units);
  std::iota(parent.begin(), parent.end(), 0);
  const auto find = [&](int unit) {
    while (parent[unit] != unit) unit = parent[unit] = parent[parent[unit]];
    return unit;
  };
  for (int step = 0; step < p.steps; ++step)
    for (int value : p.operands.of(step))
      if (p.maker[value] >= 0) parent[find(p.unit[step])] = find(p.unit[p.maker[value]]);
  std::vector<int> number(p.units, -1);
  int count = 0;
  for (int unit = 0; unit < p.units; ++unit)
    if (find(unit) == unit) number[unit] = count++;
  if (count < 2 || count > p.steps) return {};
  std::vector<double> took(static_cast<size_t>(count) * p.devices, 0.0);
  std::vector<uint8_t> allowed(static_cast<size_t>(count) * p.devices, 1);
  std::vector<double> bytes(count, 0.0);
  const std::vector<double> total = unit_seconds(p);
  for (int unit = 0; unit < p.units; ++unit) {
    const size_t its = number[find(unit)];
    for (int device = 0; device < p.devices; ++device) {
      took[its * p.devices + device] += total[static_cast<size_t>(unit) * p.devices + device];
      allowed[its * p.devices + device] &= p.may(unit, device);
    }
  }
  for (int value = 0; value < p.values; ++value)
    if (p.maker[value] < 0 && !p.users.of(value).empty())
      bytes[number[find(p.unit[p.users.of(value).front()])]] += static_cast<double>(p.size[value]);
  // The longest first, each where all of them end first; once by time alone, once where there is room.
  std::vector<int> by_time(count);
  std::iota(by_time.begin(), by_time.end(), 0);
  std::stable_sort(by_time.begin(), by_time.end(), [&](int a, int b) {
    return took[static_cast<size_t>(a) * p.devices] > took[static_cast<size_t>(b) * p.devices];
  });
  std::vector<Placement> found;
  for (const bool roomy : {false, true}) {
    if (roomy && !p.tight) break;
    std::vector<double> busy(p.devices, 0.0), held(p.devices, 0.0);
    std::vector<int> chosen(count, 0);
    for (int its : by_time) {
      double least = kNever;
      for (int device = 0; device < p.devices; ++device) {
        const size_t key = static_cast<size_t>(its) * p.devices + device;
        if (!allowed[key]) continue;
        double until = busy[device] + took[key];
        if (roomy && held[device] + bytes[its] > static_cast<double>(p.capacity[device])) until += 1e9;
        if (until < least) {
          least = until;
          chosen[its] = device;
        }
      }
      busy[chosen[its]] += took[static_cast<size_t>(its) * p.devices + chosen[its]];
      held[chosen[its]] += bytes[its];
    }
    Placement units(p.units);
    for (int unit = 0; unit < p.units; ++unit) units[unit] = chosen[number[find(unit)]];
    found.push_back(admitted(p, std::move(units)));
  }
  return found;
}

Placement greedy(const Problem& p, bool look, double reserve) {
  const int devices = p.devices;
  Placement units(p.units, -1);
  const std::vector<double> total = unit_seconds(p);
  const std::vector<double> way = look ? way_to_end(p) : std::vector<double>();
  std::vector<double> free(devices, 0.0), out(devices, 0.0), in(devices, 0.0), held(devices, 0.0);
  struct There {
    double at = kNever;
  };
  std::vector<There> there(static_cast<size_t>(p.values) * devices);
  std::vector<int> home(p.values, -1);
  double most = 0.0;
  if (reserve > 0 && p.tight)
    for (double live : results(p).passing) most = std::max(most, live);
  for (int value = 0; value < p.values; ++value) {
    if (p.maker[value] < 0 && p.home[value] >= 0) {
      home[value] = p.home[value];
      there[static_cast<size_t>(value) * devices + home[value]].at = 0.0;
      held[home[value]] += static_cast<double>(p.size[value]);
    }
  }
  struct Way {
    double start, fresh;
  };
  const auto reach = [&](int step, int device) {
    Way found{free[device], 0.0};
    double sends = in[device];
    for (int value : p.operands.of(step)) {
      const There& its = there[static_cast<size_t>(value) * devices + device];
      if (its.at != kNever) {
        found.start = std::max(found.start, its.at);
        continue;
      }
      if (p.maker[value] < 0) found.fresh += static_cast<double>(p.size[value]);
      if (home[value] < 0) continue;
      const int from = home[value];
      const double made = there[static_cast<size_t>(value) * devices + from].at;
      double begin = made;
      if (p.ports) begin = std::max({made, out[from], sends});
      const double end = begin + p.transfer(value, from, device);
      sends = end;
      found.start = std::max(found.start, end);
    }
    return found;
  };
  for (int number = 0; number < p.steps; ++number) {
    const int step = step_at(p, number);
    const int unit = p.unit[step];
    if (units[unit] < 0) {
      double least = kNever;
      int least_device = -1;
      const auto rest = p.members.of(unit).size() > 1;
      for (int device = 0; device < devices; ++device) {
        if (!p.may(unit, device)) continue;
        const Way found = reach(step, device);
        double until = found.start + (rest ? total[static_cast<size_t>(unit) * devices + device] : p.cost(device, step));
        if (look) until += way[static_cast<size_t>(step) * devices + device];
        if (p.tight && held[device] + found.fresh + reserve * most > static_cast<double>(p.capacity[device]))
          until += 1e6 + (held[device] + found.fresh) / static_cast<double>(std::max<int64_t>(p.capacity[device], 1));
        if (until < least) {
          least = until;
          least_device = device;
        }
      }
      units[unit] = least_device < 0 ? 0 : least_device;
    }
    const int device = units[unit];
    double start = free[device];
    for (int value : p.operands.of(step)) {
      There& its = there[static_cast<size_t>(value) * devices + device];
      if (its.at == kNever) {
        if (p.maker[value] < 0) held[device] += static_cast<double>(p.size[value]);
        if (home[value] < 0) {
          home[value] = device;
          its.at = 0.0;
        } else {
          const int from = home[value];
          double begin = there[static_cast<size_t>(value) * devices + from].at;
          if (p.ports) begin = std::max({begin, out[from], in[device]});
          its.at = begin + p.transfer(value, from, device);
          if (p.ports) out[from] = in[device] = its.at;
        }
      }
      start = std::max(start, its.at);
    }
    free[device] = start + p.cost(device, step);
    for (int value : p.outputs.of(step)) {
      home[value] = device;
      there[static_cast<size_t>(value) * devices + device].at = free[device];
      if (p.last[value] >= p.steps && p.parent[value] < 0) held[device] += static_cast<double>(p.size[value]);
    }
  }
  return units;
}

std::vector<int> ranked(const Problem& p) {
  std::vector<double> rank(p.steps, 0.0), mean(p.steps, 0.0);
  for (int step = 0; step < p.steps; ++step) {
    for (int device = 0; device < p.devices; ++device) mean[step] += p.cost(device, step);
    mean[step] /= p.devices;
  }
  for (int number = p.steps - 1; number >= 0; --number) {
    const int step = step_at(p, number);
    double most = 0.0;
    for (int value : p.outputs.of(step)) {
      double way = 0.0;
      int pairs = 0;
      for (int from = 0; from < p.devices; ++from)
        for (int to = 0; to < p.devices; ++to)
          if (from != to) {
            way += p.transfer(value, from, to);
            ++pairs;
          }
      if (pairs) way /= pairs;
      for (int user : p.users.of(value)) most = std::max(most, rank[user] + way);
    }
    rank[step] = mean[step] + most;
  }
  std::vector<int> before(p.steps), found(p.steps);
  for (int number = 0; number < p.steps; ++number) found[number] = step_at(p, number);
  std::vector<int> number_of(p.steps);
  for (int number = 0; number < p.steps; ++number) number_of[found[number]] = number;
  std::stable_sort(found.begin(), found.end(), [&](int a, int b) {
    if (rank[a] != rank[b]) return rank[a] > rank[b];
    return number_of[a] < number_of[b];
  });
  return found;
}

std::vector<Placement> cut_chains(const Problem& p, bool throughput, int most_cuts) {
  if (p.steps < 2 || !p.order.empty()) return {};
  const int devices = p.devices;
  // Bytes of results that cross each gap: made before, used after.
  std::vector<double> crossing(p.steps + 1, 0.0);
  for (int value = 0; value < p.values; ++value) {
    if (p.maker[value] < 0 || p.users.of(value).empty()) continue;
    crossing[p.maker[value] + 1] += static_cast<double>(p.size[value]);
    crossing[p.users.of(value).back() + 1] -= static_cast<double>(p.size[value]);
  }
  for (int gap = 1; gap <= p.steps; ++gap) crossing[gap] += crossing[gap - 1];
  // The cheapest gap of each share of the work.
  std::vector<double> work(p.steps + 1, 0.0);
  for (int step = 0; step < p.steps; ++step) work[step + 1] = work[step] + p.cost(0, step);
  std::vector<int> cuts{0};
  for (int share = 0, gap = 1; share < most_cuts && gap < p.steps; ++share) {
    const double until = work[p.steps] * (share + 1) / most_cuts;
    int least = -1;
    for (; gap < p.steps && (work[gap] < until || least < 0); ++gap)
      if (least < 0 || crossing[gap] < crossing[least]) least = gap;
    if (least > cuts.back()) cuts.push_back(least);
  }
  cuts.push_back(p.steps);
  const int pieces = static_cast<int>(cuts.size());
  // Bytes a segment needs: its inputs once, and the most that lives at once in it.
  std::vector<double> need(static_cast<size_t>(pieces) * pieces, 0.0);
  if (p.tight) {
    const Results made = results(p);
    std::vector<int> stamp(p.values, -1);
    for (int from = 0; from + 1 < pieces; ++from) {
      double inputs = 0.0, most = 0.0;
      for (int to = from + 1; to < pieces; ++to) {
        for (int step = cuts[to - 1]; step < cuts[to]; ++step) {
          most = std::max(most, made.passing[step]);
          inputs += made.staying[step];
          for (int value : p.operands.of(step))
            if (p.maker[value] < 0 && stamp[value] != from) {
              stamp[value] = from;
              inputs += static_cast<double>(p.size[value]);
            }
        }
        need[static_cast<size_t>(from) * pieces + to] = inputs + most;
      }
    }
  }
  std::vector<std::vector<double>> done(devices, std::vector<double>(p.steps + 1, 0.0));
  for (int device = 0; device < devices; ++device)
    for (int step = 0; step < p.steps; ++step) done[device][step + 1] = done[device][step] + p.cost(device, step);

  std::vector<std::vector<int>> orders(4, std::vector<int>(devices));
  for (auto& order : orders) std::iota(order.begin(), order.end(), 0);
  std::stable_sort(orders[1].begin(), orders[1].end(),
                   [&](int a, int b) { return done[a][p.steps] < done[b][p.steps]; });
  std::stable_sort(orders[2].begin(), orders[2].end(), [&](int a, int b) { return p.capacity[a] > p.capacity[b]; });
  orders[3].assign(orders[1].rbegin(), orders[1].rend());
  std::vector<Placement> found;
  for (size_t which = 0; which < orders.size(); ++which) {
    if (std::find(orders.begin(), orders.begin() + which, orders[which]) != orders.begin() + which) continue;
    const std::vector<int>& order = orders[which];
    // best[k][c]: the first c pieces done by the first k devices, the last of them on device `on`.
    struct Cell {
      double cost = kNever;
      int from = -1, used = -1;  // the cut before, and how many devices had been considered then
    };
    std::vector<Cell> best(static_cast<size_t>(devices + 1) * pieces);
    best[0].cost = 0.0;
    for (int k = 1; k <= devices; ++k) {
      const int device = order[k - 1];
      for (int to = 1; to < pieces; ++to) {
        Cell& cell = best[static_cast<size_t>(k) * pieces + to];
        for (int from = 0; from < to; ++from) {
          if (p.tight && need[static_cast<size_t>(from) * pieces + to] > static_cast<double>(p.capacity[device])) continue;
          const double took = done[device][cuts[to]] - done[device][cuts[from]];
          for (int used = from == 0 ? 0 : 1; used < (from == 0 ? 1 : k); ++used) {
            const Cell& until = best[static_cast<size_t>(used) * pieces + from];
            if (until.cost == kNever) continue;
            double sent = 0.0;
            if (used > 0) {
              const size_t link = static_cast<size_t>(order[used - 1]) * devices + device;
              sent = p.latency[link] + crossing[cuts[from]] / p.bandwidth[link];
            }
            const double cost = throughput ? std::max({until.cost, took, sent}) : until.cost + took + sent;
            if (cost < cell.cost) cell = {cost, from, used};
          }
        }
      }
    }
    int k = -1;
    for (int each = 1; each <= devices; ++each)
      if (best[static_cast<size_t>(each) * pieces + pieces - 1].cost != kNever &&
          (k < 0 || best[static_cast<size_t>(each) * pieces + pieces - 1].cost <
                        best[static_cast<size_t>(k) * pieces + pieces - 1].cost))
        k = each;
    if (k < 0) continue;
    Placement units(p.units, -1);
    for (int to = pieces - 1; to > 0;) {
      const Cell& cell = best[static_cast<size_t>(k) * pieces + to];
      for (int step = cuts[cell.from]; step < cuts[to]; ++step) units[p.unit[step]] = order[k - 1];
      to = cell.from;
      k = cell.used;
    }
    found.push_back(admitted(p, std::move(units)));
  }
  return found;
}

}  // namespace genie
