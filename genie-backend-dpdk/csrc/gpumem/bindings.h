// What Python sees of devices' memory.
#pragma once

#include <pybind11/pybind11.h>

#include "gpudev.h"

namespace genie::gpumem {

// A part of an allocation, which it keeps.
struct Buffer {
    std::shared_ptr<Allocation> memory;
    std::size_t offset = 0, bytes = 0;

    std::byte* at() const { return memory->at() + offset; }
    Buffer part(std::size_t from, std::size_t count) const;  // throws std::out_of_range
};

void bind(pybind11::module_& module);

}  // namespace genie::gpumem
