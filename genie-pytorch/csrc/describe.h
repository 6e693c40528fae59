// A segment as plain Python data, for the lowering to a genie graph.
#pragma once

#include "stream.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace genie {

// A dict: values [(dtype, shape, stride)], inputs [(value, donated, handle, from)], nodes [(name, overload, args, outputs,
// mutates, aliases, module, source, scope)], outputs [value], marks [(value, mark)], operators in order. Arguments:
// None, bool, int, float, str, and tuples ("value", i) ("list", items) ("const", kind, payload)
// ("scalar", dtype, number, wrapped). `from`: what the program gave since its last look is
// kUploaded, what was made before it kMade.
pybind11::dict describe_segment(const Segment& segment, const std::vector<uint32_t>& outputs);

void set_port(pybind11::object object);

} // namespace genie
