// Coarser problems: steps of one label become one step. Labels are such that this makes no cycles.

#include <algorithm>
#include <functional>
#include <numeric>
#include <queue>

#include "search.h"

namespace genie {

// A step that is alone in using what one other makes, and uses nothing else that is made, goes on with it.
std::vector<int> chains(const Problem& p) {
  std::vector<int> label(p.steps);
  std::iota(label.begin(), label.end(), 0);
  std::vector<int> only_user(p.steps, -1);  // -1: none yet; -2: several
  for (int step = 0; step < p.steps; ++step)
    for (int value : p.outputs.of(step))
      for (int user : p.users.of(value)) {
        int& only = only_user[step];
        only = only == -1 || only == user ? user : -2;
      }
  for (int step = 0; step < p.steps; ++step) {
    int from = -1;
    for (int value : p.operands.of(step)) {
      const int maker = p.maker[value];
      if (maker >= 0) from = from == -1 || from == maker ? maker : -2;
    }
    if (from < 0 || only_user[from] != step) continue;
    const int a = p.unit[from], b = p.unit[step];
    if (a != b) {
      // Hard groups stay as they are; single steps join when they may run on the same devices.
      if (p.members.of(a).size() > 1 || p.members.of(b).size() > 1) continue;
      if (!std::equal(p.allowed.begin() + static_cast<size_t>(a) * p.devices,
                      p.allowed.begin() + static_cast<size_t>(a + 1) * p.devices,
                      p.allowed.begin() + static_cast<size_t>(b) * p.devices))
        continue;
    }
    label[step] = label[from];
  }
  return label;
}

// Steps that follow each other with one label: between two of them in order there is no other, so no cycle.
std::vector<int> runs(const Problem& p) {
  std::vector<int> label(p.steps);
  for (int step = 0, run = -1; step < p.steps; ++step) {
    if (step == 0 || p.block[step] != p.block[step - 1]) ++run;
    label[step] = run;
  }
  return label;
}

std::vector<int> windows(const Problem& p, int count) {
  std::vector<double> crossing(p.steps + 1, 0.0);
  for (int value = 0; value < p.values; ++value) {
    if (p.maker[value] < 0 || p.users.of(value).empty()) continue;
    crossing[p.maker[value] + 1] += static_cast<double>(p.size[value]);
    crossing[p.users.of(value).back() + 1] -= static_cast<double>(p.size[value]);
  }
  for (int gap = 1; gap <= p.steps; ++gap) crossing[gap] += crossing[gap - 1];
  const int wide = std::max(1, p.steps / std::max(1, count));
  std::vector<int> label(p.steps);
  for (int from = 0, number = 0; from < p.steps; ++number) {
    const int soonest = from + std::max(1, wide / 2), latest = std::min(p.steps, from + wide + wide / 2);
    int to = std::min(p.steps, soonest);
    for (int gap = to; gap <= latest; ++gap)
      if (gap == p.steps || crossing[gap] < crossing[to]) {
        to = gap;
        if (gap == p.steps) break;
      }
    for (int step = from; step < to; ++step) label[step] = number;
    from = to;
  }
  return label;
}

namespace {

// Numbers the parts in an order that keeps dependencies, the earlier first step first. False if they make a cycle.
bool number_parts(const Problem& p, const std::vector<int>& label, std::vector<int>& found, int& count) {
  std::vector<int> part(p.steps, -1);
  std::vector<int> of(p.steps);
  int parts = 0;
  for (int step = 0; step < p.steps; ++step) {
    if (part[label[step]] < 0) part[label[step]] = parts++;
    of[step] = part[label[step]];
  }
  std::vector<std::pair<int, int>> edges;
  for (int step = 0; step < p.steps; ++step)
    for (int value : p.operands.of(step))
      if (p.maker[value] >= 0 && of[p.maker[value]] != of[step]) edges.emplace_back(of[p.maker[value]], of[step]);
  std::sort(edges.begin(), edges.end());
  edges.erase(std::unique(edges.begin(), edges.end()), edges.end());
  std::vector<int> needs(parts, 0), start(parts + 1, 0), number(parts, -1);
  for (const auto& [from, to] : edges) {
    ++needs[to];
    ++start[from + 1];
  }
  for (int at = 0; at < parts; ++at) start[at + 1] += start[at];
  std::priority_queue<int, std::vector<int>, std::greater<int>> ready;
  for (int at = 0; at < parts; ++at)
    if (needs[at] == 0) ready.push(at);
  count = 0;
  while (!ready.empty()) {
    const int at = ready.top();
    ready.pop();
    number[at] = count++;
    for (int edge = start[at]; edge < start[at + 1]; ++edge)
      if (--needs[edges[edge].second] == 0) ready.push(edges[edge].second);
  }
  found.resize(p.steps);
  for (int step = 0; step < p.steps; ++step) found[step] = number[of[step]];
  return count == parts;
}

}  // namespace

// Pairs of a step and one that uses what it makes, the longest transfers first. Levels are longest paths from the
// start. Both are on neighbouring levels, so there is no other way between them; and of two pairs on the same levels
// no way leads from the first to the second and back, since one that is entered from another pair is not left to one.
// (After Herrmann et al., "Multilevel algorithms for acyclic partitioning of directed acyclic graphs", 2019.)
std::vector<int> pairs(const Problem& p, int parity, double most_seconds) {
  std::vector<int> level(p.steps, 0), label(p.steps);
  std::iota(label.begin(), label.end(), 0);
  double latency = 0.0, per_byte = 0.0;
  for (int from = 0; from < p.devices; ++from)
    for (int to = 0; to < p.devices; ++to)
      if (from != to) {
        latency += p.latency[static_cast<size_t>(from) * p.devices + to];
        per_byte += 1.0 / p.bandwidth[static_cast<size_t>(from) * p.devices + to];
      }
  const int links = std::max(1, p.devices * (p.devices - 1));
  std::vector<double> took(p.steps, 0.0);
  for (int step = 0; step < p.steps; ++step) {
    for (int device = 0; device < p.devices; ++device) took[step] += p.cost(device, step) / p.devices;
    for (int value : p.operands.of(step))
      if (p.maker[value] >= 0) level[step] = std::max(level[step], level[p.maker[value]] + 1);
  }
  struct Edge {
    double gain;
    int from, to;
  };
  std::vector<Edge> edges;
  for (int step = 0; step < p.steps; ++step) {
    for (int value : p.operands.of(step)) {
      const int maker = p.maker[value];
      if (maker < 0 || level[maker] + 1 != level[step] || level[maker] % 2 != parity) continue;
      if (took[maker] + took[step] > most_seconds) continue;
      const int a = p.unit[maker], b = p.unit[step];
      if (a != b && !std::equal(p.allowed.begin() + static_cast<size_t>(a) * p.devices,
                                p.allowed.begin() + static_cast<size_t>(a + 1) * p.devices,
                                p.allowed.begin() + static_cast<size_t>(b) * p.devices))
        continue;
      // What several use may have to travel anyhow.
      const double way = (latency + static_cast<double>(p.size[value]) * per_byte) / links;
      edges.push_back({way / static_cast<double>(p.users.of(value).size()), maker, step});
    }
  }
  std::stable_sort(edges.begin(), edges.end(), [](const Edge& a, const Edge& b) { return a.gain > b.gain; });
  std::vector<uint8_t> paired(p.steps, 0);
  for (const Edge& edge : edges) {
    if (paired[edge.from] || paired[edge.to]) continue;
    bool left = false, entered = false;
    for (int value : p.outputs.of(edge.from))
      for (int user : p.users.of(value)) left = left || (user != edge.to && paired[user] && level[user] == level[edge.to]);
    for (int value : p.operands.of(edge.to)) {
      const int maker = p.maker[value];
      entered = entered || (maker >= 0 && maker != edge.from && paired[maker] && level[maker] == level[edge.from]);
    }
    if (left && entered) continue;
    paired[edge.from] = paired[edge.to] = 1;
    label[edge.to] = edge.from;
  }
  return label;
}

Coarse coarsen(const Problem& p, const std::vector<int>& label) {
  Coarse made;
  Problem& q = made.problem;
  if (!number_parts(p, label, made.step, q.steps)) return {};
  q.devices = p.devices;
  q.values = p.values;
  q.latency = p.latency;
  q.bandwidth = p.bandwidth;
  q.capacity = p.capacity;
  q.ports = p.ports;
  q.size = p.size;
  q.parent = p.parent;
  q.home = p.home;
  q.seconds.assign(static_cast<size_t>(q.devices) * q.steps, 0.0);
  for (int device = 0; device < p.devices; ++device)
    for (int step = 0; step < p.steps; ++step)
      q.seconds[static_cast<size_t>(device) * q.steps + made.step[step]] += p.cost(device, step);
  // Units: those of the finer problem, joined where a coarse step has several.
  std::vector<int> parent(p.units);
  std::iota(parent.begin(), parent.end(), 0);
  const auto find = [&](int unit) {
    while (parent[unit] != unit) unit = parent[unit] = parent[parent[unit]];
    return unit;
  };
  std::vector<int> first(q.steps, -1);
  for (int step = 0; step < p.steps; ++step) {
    int& its = first[made.step[step]];
    if (its < 0)
      its = p.unit[step];
    else
      parent[find(p.unit[step])] = find(its);
  }
  std::vector<int> unit_number(p.units, -1);
  q.unit.resize(q.steps);
  for (int step = 0; step < q.steps; ++step) {
    int& its = unit_number[find(first[step])];
    if (its < 0) its = q.units++;
    q.unit[step] = its;
  }
  q.allowed.assign(static_cast<size_t>(q.units) * q.devices, 1);
  for (int unit = 0; unit < p.units; ++unit) {
    if (p.members.of(unit).empty()) continue;
    for (int device = 0; device < q.devices; ++device)
      q.allowed[static_cast<size_t>(unit_number[find(unit)]) * q.devices + device] &= p.may(unit, device);
  }
  for (int unit = 0; unit < q.units; ++unit) {
    // Where one coarse step may run nowhere as a whole, it may anywhere: refining brings its parts where they may.
    const auto its = q.allowed.begin() + static_cast<size_t>(unit) * q.devices;
    if (std::find(its, its + q.devices, 1) == its + q.devices) std::fill(its, its + q.devices, 1);
  }
  // What coarse steps take from each other, and what outlives them.
  std::vector<std::vector<int>> parts(q.steps);
  for (int step = 0; step < p.steps; ++step) parts[made.step[step]].push_back(step);
  std::vector<int> stamp(p.values, -1);
  q.last.resize(p.values);
  for (int value = 0; value < p.values; ++value) {
    q.last[value] = p.last[value] >= p.steps ? q.steps : made.step[p.last[value]];
    const int maker = p.maker[value];
    if (maker < 0) continue;
    // What a coarse step makes and uses up is not there before or after it.
    bool inside = p.last[value] < p.steps;
    for (int user : p.users.of(value)) {
      inside = inside && made.step[user] == made.step[maker];
      if (p.last[value] < p.steps) q.last[value] = std::max(q.last[value], made.step[user]);
    }
    if (inside) q.size[value] = 0;
  }
  for (int step = 0; step < q.steps; ++step) {
    for (int part : parts[step]) {
      for (int value : p.operands.of(part)) {
        if (stamp[value] == step || (p.maker[value] >= 0 && made.step[p.maker[value]] == step)) continue;
        stamp[value] = step;
        q.operands.items.push_back(value);
      }
      for (int value : p.outputs.of(part)) q.outputs.items.push_back(value);
    }
    q.operands.close();
    q.outputs.close();
  }
  q.block.assign(q.steps, -1);
  q.prepare();
  q.tight = p.tight;
  return made;
}

Placement Coarse::refine(const Problem& finer, const Placement& units) const {
  Placement found(finer.units, 0);
  std::vector<uint8_t> set(finer.units, 0);
  for (int step_ = 0; step_ < finer.steps; ++step_) {
    const int unit = finer.unit[step_];
    if (set[unit]) continue;
    set[unit] = 1;
    found[unit] = units[problem.unit[step[step_]]];
  }
  return admitted(finer, std::move(found));
}

}  // namespace genie
