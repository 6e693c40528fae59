// Loading of compiled programs, for Python.
#pragma once

#include <pybind11/pybind11.h>

#include "session.h"

namespace genie_local {

// Shape, dtype, and the dtype that carries it, of each.
using Faces = std::vector<std::tuple<std::vector<int64_t>, std::string, std::string>>;

// See NativeSession.load_compiled in native.py.
void load_compiled(
    Session& session,
    int64_t plan,
    const std::string& name,
    pybind11::object program,
    int64_t bytes,
    const std::vector<bool>& donated,
    const std::vector<int32_t>& takes,
    const Faces& operands,
    const Faces& results,
    std::vector<uint64_t> parameters);

}  // namespace genie_local
