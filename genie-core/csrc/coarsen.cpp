// Coarser problems: steps of one label become one step. Labels are such that this makes no cycles.

#include <algorithm>
#include <numeric>

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

Coarse coarsen(const Problem& p, const std::vector<int>& label) {
  Coarse made;
  Problem& q = made.problem;
  // Numbered by their first steps, which is an order that keeps dependencies.
  std::vector<int> number(p.steps, -1);
  made.step.resize(p.steps);
  for (int step = 0; step < p.steps; ++step) {
    if (number[label[step]] < 0) number[label[step]] = q.steps++;
    made.step[step] = number[label[step]];
  }
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
