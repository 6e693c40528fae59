// A segment as plain Python data, for the lowering to a genie graph.
#pragma once

#include "stream.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace genie {

// A dict: values [(dtype, shape, stride)], inputs [(value, donated, handle)], nodes [(name, overload, args, outputs, mutates,
// aliases, module, source)], outputs [value], operators in order. Arguments: None, bool, int, float, str, and
// tuples ("value", i) ("list", items) ("const", kind, payload) ("scalar", dtype, number, wrapped).
pybind11::dict describe_segment(const Segment& segment, const std::vector<uint32_t>& outputs);

void set_port(pybind11::object object);

} // namespace genie
