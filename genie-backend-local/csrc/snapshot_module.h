// Snapshots as tuples, for Python.
#pragma once

#include <pybind11/pybind11.h>

#include "snapshot.h"

namespace genie_local {

pybind11::tuple to_tuple(const MemoryState& memory);
// memories, values, generators, seeds, failures; each row has the fields of its struct, in order.
pybind11::tuple to_tuple(const Snapshot& snapshot);
Snapshot to_snapshot(const pybind11::tuple& given);

}  // namespace genie_local
