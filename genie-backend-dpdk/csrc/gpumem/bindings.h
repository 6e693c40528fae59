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

// What `data` has in one piece. Throws pybind11::type_error where it has gaps, as a memoryview's `cast` does.
pybind11::buffer_info whole(const pybind11::buffer& data, bool writable = false);

void bind(pybind11::module_& module);

}  // namespace genie::gpumem
