#include "snapshot_module.h"

#include <pybind11/stl.h>

#include "names.h"

namespace genie_local {
namespace {

namespace py = pybind11;

template <class Value>
Value at(const py::handle& row, size_t column) {
  return py::reinterpret_borrow<py::tuple>(row)[column].cast<Value>();
}

}  // namespace

py::tuple to_tuple(const MemoryState& memory) {
  return py::make_tuple(memory.id, memory.bytes, memory.version, memory.host);
}

py::tuple to_tuple(const Snapshot& snapshot) {
  py::list memories;
  for (const auto& memory : snapshot.memories) {
    memories.append(to_tuple(memory));
  }
  py::list values;
  for (const auto& value : snapshot.values) {
    values.append(py::make_tuple(
        value.handle,
        value.memory,
        py::tuple(py::cast(value.spec.shape)),
        name_of(value.spec.dtype),
        py::tuple(py::cast(value.spec.stride)),
        value.offset,
        value.conjugate,
        value.negative,
        value.wrapped));
  }
  py::list generators;
  for (const auto& generator : snapshot.generators) {
    generators.append(py::make_tuple(generator.number, py::bytes(generator.state), generator.host));
  }
  py::list failures;
  for (const auto& [handle, failure] : snapshot.failures) {
    failures.append(py::make_tuple(
        handle,
        failure->kind,
        failure->message,
        failure->op,
        failure->source,
        failure->device,
        failure->plan,
        failure->step));
  }
  return py::make_tuple(memories, values, generators, py::cast(snapshot.seeds), failures);
}

Snapshot to_snapshot(const py::tuple& given) {
  Snapshot made;
  for (const auto& row : given[0]) {
    made.memories.push_back({at<int64_t>(row, 0), at<int64_t>(row, 1), at<int64_t>(row, 2), at<bool>(row, 3)});
  }
  for (const auto& row : given[1]) {
    const auto name = at<std::string>(row, 3);
    const auto dtype = dtype_named(name);
    if (!dtype) {
      throw Refused(Refusal::node, "no dtype is called '" + name + "'");
    }
    made.values.push_back(
        {at<int64_t>(row, 0),
         at<int64_t>(row, 1),
         {at<std::vector<int64_t>>(row, 2), *dtype, at<std::vector<int64_t>>(row, 4)},
         at<int64_t>(row, 5),
         at<bool>(row, 6),
         at<bool>(row, 7),
         at<bool>(row, 8)});
  }
  for (const auto& row : given[2]) {
    made.generators.push_back({at<int64_t>(row, 0), at<bool>(row, 2), std::string(at<py::bytes>(row, 1))});
  }
  made.seeds = given[3].cast<std::map<int64_t, uint64_t>>();
  for (const auto& row : given[4]) {
    made.failures.emplace_back(
        at<int64_t>(row, 0),
        std::make_shared<const Failure>(Failure{
            at<std::string>(row, 1),
            at<std::string>(row, 2),
            at<std::string>(row, 3),
            at<std::string>(row, 4),
            at<std::string>(row, 5),
            at<int64_t>(row, 6),
            at<int64_t>(row, 7)}));
  }
  return made;
}

}  // namespace genie_local
