// The placement search for Python: arrays in, a placement out. What is passed is checked: no index leaves its array.

#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <tuple>

#include "problem.h"
#include "search.h"

namespace py = pybind11;

namespace genie {
namespace {

template <class T>
std::vector<T> read(const py::buffer& buffer, size_t count, const char* what) {
  const py::buffer_info info = buffer.request();
  if (info.itemsize != static_cast<py::ssize_t>(sizeof(T)) || info.ndim != 1 ||
      static_cast<size_t>(info.size) != count || (info.strides[0] != info.itemsize && info.size > 1))
    throw std::invalid_argument(std::string(what) + ": an array of " + std::to_string(count) + " numbers of " +
                                std::to_string(sizeof(T)) + " bytes was expected");
  const T* data = static_cast<const T*>(info.ptr);
  return std::vector<T>(data, data + count);
}

void within(const std::vector<int>& items, int from, int to, const char* what) {
  for (int item : items)
    if (item < from || item >= to) throw std::invalid_argument(std::string(what) + ": " + std::to_string(item) + " is no index");
}

Lists lists(const py::buffer& start, const py::buffer& items, int count, int to, const char* what) {
  Lists made;
  made.start = read<int>(start, static_cast<size_t>(count) + 1, what);
  for (int at = 0; at < count; ++at)
    if (made.start[at] > made.start[at + 1]) throw std::invalid_argument(std::string(what) + ": starts must not fall");
  if (made.start[0] != 0) throw std::invalid_argument(std::string(what) + ": the first start must be 0");
  made.items = read<int>(items, static_cast<size_t>(made.start[count]), what);
  within(made.items, 0, to, what);
  return made;
}

std::shared_ptr<Problem> make(int steps, int devices, int values, const py::buffer& seconds, const py::buffer& operand_start,
                              const py::buffer& operands, const py::buffer& output_start, const py::buffer& outputs,
                              const py::buffer& parent, const py::buffer& size, const py::buffer& home,
                              const py::buffer& last, const py::buffer& latency, const py::buffer& bandwidth,
                              const py::buffer& capacity, const py::buffer& unit, int units, const py::buffer& allowed,
                              const py::buffer& block, bool ports) {
  if (steps < 0 || devices < 1 || values < 0 || units < 0) throw std::invalid_argument("a count is negative");
  auto made = std::make_shared<Problem>();
  Problem& p = *made;
  const auto n = static_cast<size_t>(steps), d = static_cast<size_t>(devices), v = static_cast<size_t>(values);
  p.steps = steps;
  p.devices = devices;
  p.values = values;
  p.units = units;
  p.ports = ports;
  p.seconds = read<double>(seconds, n * d, "seconds");
  p.operands = lists(operand_start, operands, steps, values, "operands");
  p.outputs = lists(output_start, outputs, steps, values, "outputs");
  p.parent = read<int>(parent, v, "parent");
  within(p.parent, -1, values, "parent");
  p.size = read<int64_t>(size, v, "size");
  p.home = read<int>(home, v, "home");
  within(p.home, kMade, devices, "home");
  p.last = read<int>(last, v, "last");
  within(p.last, 0, steps + 1, "last");
  p.latency = read<double>(latency, d * d, "latency");
  p.bandwidth = read<double>(bandwidth, d * d, "bandwidth");
  p.capacity = read<int64_t>(capacity, d, "capacity");
  p.unit = read<int>(unit, n, "unit");
  within(p.unit, 0, units, "unit");
  p.allowed = read<uint8_t>(allowed, static_cast<size_t>(units) * d, "allowed");
  p.block = read<int>(block, n, "block");
  for (int64_t bytes : p.size)
    if (bytes < 0) throw std::invalid_argument("size: bytes are negative");
  std::vector<uint8_t> made_by(v, 0);
  for (int value = 0; value < values; ++value) made_by[value] = p.home[value] != kMade;
  for (int step = 0; step < steps; ++step) {
    for (int value : p.operands.of(step))
      if (!made_by[value]) throw std::invalid_argument("operands: step " + std::to_string(step) + " uses what is not made yet");
    for (int value : p.outputs.of(step)) {
      if (made_by[value]) throw std::invalid_argument("outputs: value " + std::to_string(value) + " is made twice");
      made_by[value] = 1;
    }
  }
  p.prepare();
  for (int unit_ = 0; unit_ < units; ++unit_) {
    const auto its = p.allowed.begin() + static_cast<size_t>(unit_) * d;
    if (std::find(its, its + devices, 1) == its + devices)
      throw std::invalid_argument("allowed: unit " + std::to_string(unit_) + " may run nowhere");
  }
  return made;
}

Objective objective(const std::string& kind, std::vector<double> price, std::vector<double> handling, double thrift,
                    double latency_cap, double cost_cap, double handover, const py::object& user, size_t devices) {
  Objective made;
  if (price.size() != devices) throw std::invalid_argument("price: one number per device was expected");
  if (handling.empty()) handling.assign(devices, 0.0);
  if (handling.size() != devices) throw std::invalid_argument("handling: one number per device was expected");
  made.handling = std::move(handling);
  made.thrift = thrift;
  made.price = std::move(price);
  made.latency_cap = latency_cap;
  made.cost_cap = cost_cap;
  made.handover = handover;
  if (!user.is_none()) {
    made.kind = Objective::kUser;
    made.user = [user](const Outcome& outcome) {
      return user(outcome.makespan, outcome.busy).cast<std::pair<double, double>>();
    };
  } else if (kind == "min_latency") {
    made.kind = Objective::kLatency;
  } else if (kind == "min_cost") {
    made.kind = Objective::kCost;
  } else if (kind == "max_throughput") {
    made.kind = Objective::kThroughput;
  } else {
    throw std::invalid_argument("there is no objective " + kind);
  }
  return made;
}

py::dict told(const Outcome& outcome) {
  py::dict found;
  found["makespan"] = outcome.makespan;
  found["busy"] = outcome.busy;
  found["sent"] = outcome.sent;
  found["received"] = outcome.received;
  found["moved"] = outcome.moved;
  found["overflow"] = outcome.overflow;
  found["peak"] = outcome.peak;
  return found;
}

std::vector<int> placed(const Problem& p, const py::buffer& place) {
  std::vector<int> found = read<int>(place, static_cast<size_t>(p.steps), "place");
  within(found, 0, p.devices, "place");
  return found;
}

py::dict evaluate(Problem& p, const py::buffer& place, const py::object& order, bool traced) {
  const std::vector<int> where = placed(p, place);
  p.order.clear();
  if (!order.is_none()) {
    p.order = read<int>(py::cast<py::buffer>(order), static_cast<size_t>(p.steps), "order");
    within(p.order, 0, p.steps, "order");
    std::vector<int> at(p.steps, -1);
    for (int number = 0; number < p.steps; ++number) at[p.order[number]] = number;
    for (int step = 0; step < p.steps; ++step) {
      if (at[step] < 0) throw std::invalid_argument("order: a step is missing");
      for (int value : p.operands.of(step))
        if (p.maker[value] >= 0 && at[p.maker[value]] > at[step]) throw std::invalid_argument("order: a step is too soon");
    }
  }
  Outcome outcome;
  Clock clock(p);
  Ledger ledger(p);
  clock.run(where, outcome);
  ledger.run(where, outcome);
  py::dict found = told(outcome);
  if (traced) {
    clock.keep();
    std::vector<double> begin, end;
    for (const Span& span : clock.spans) {
      begin.push_back(span.begin);
      end.push_back(span.end);
    }
    found["begin"] = begin;
    found["end"] = end;
    // In the order of need, as plans list them: by step, and of one step by operand.
    std::vector<std::tuple<int, int, const Move*>> sorted;
    for (const Move& move : clock.moves) {
      const auto operands = p.operands.of(move.before);
      const auto at = std::find(operands.begin(), operands.end(), move.value) - operands.begin();
      sorted.emplace_back(move.before, static_cast<int>(at), &move);
    }
    std::sort(sorted.begin(), sorted.end());
    py::list moves;
    for (const auto& [step, at, its] : sorted) {
      const Move& move = *its;
      moves.append(py::make_tuple(move.value, move.from, move.to, move.before, move.begin, move.end));
    }
    found["moves"] = moves;
  }
  p.order.clear();
  return found;
}

py::dict run(Problem& p, const std::string& kind, std::vector<double> price, std::vector<double> handling,
             double thrift, double latency_cap, double cost_cap, double handover, const py::object& user, int64_t budget, uint64_t seed,
             bool reorder) {
  const Objective goal = objective(kind, std::move(price), std::move(handling), thrift, latency_cap, cost_cap, handover, user,
                                   static_cast<size_t>(p.devices));
  p.order.clear();
  Found found;
  if (goal.kind == Objective::kUser) {
    found = search(p, goal, budget, seed, reorder);
  } else {
    py::gil_scoped_release released;
    found = search(p, goal, budget, seed, reorder);
  }
  p.order.clear();
  std::vector<int> place(p.steps);
  for (int step = 0; step < p.steps; ++step) place[step] = found.best.units[p.unit[step]];
  py::dict made;
  made["place"] = place;
  made["order"] = found.order;
  made["rule"] = std::string(found.best.rule);
  made["feasible"] = found.feasible;
  made["proven"] = found.proven;
  made["judged"] = found.judged;
  made["score"] = found.best.score.value;
  made["violation"] = found.best.score.violation;
  made["overflow"] = found.best.score.overflow;
  return made;
}

}  // namespace
}  // namespace genie

PYBIND11_MODULE(_search, module) {
  using namespace genie;
  module.doc() = "Placement search.";
  py::class_<Problem, std::shared_ptr<Problem>>(module, "Problem")
      .def(py::init(&make), py::kw_only(), py::arg("steps"), py::arg("devices"), py::arg("values"), py::arg("seconds"),
           py::arg("operand_start"), py::arg("operands"), py::arg("output_start"), py::arg("outputs"),
           py::arg("parent"), py::arg("size"), py::arg("home"), py::arg("last"), py::arg("latency"),
           py::arg("bandwidth"), py::arg("capacity"), py::arg("unit"), py::arg("units"), py::arg("allowed"),
           py::arg("block"), py::arg("ports") = true)
      .def("evaluate", &evaluate, py::arg("place"), py::kw_only(), py::arg("order") = py::none(),
           py::arg("traced") = false)
      .def("search", &run, py::kw_only(), py::arg("objective"), py::arg("price"),
           py::arg("handling") = std::vector<double>(), py::arg("thrift") = 0.0, py::arg("latency_cap") = 0.0, py::arg("cost_cap") = 0.0, py::arg("handover") = 0.0, py::arg("user") = py::none(),
           py::arg("budget"), py::arg("seed") = 0, py::arg("reorder") = false);
}
