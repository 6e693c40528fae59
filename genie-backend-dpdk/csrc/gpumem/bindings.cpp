#include "bindings.h"

#include <string>

#include "../unlocked.h"
#include "ports.h"

namespace py = pybind11;

namespace genie::gpumem {

namespace {

using Device = std::shared_ptr<GpuDevice>;

void copy(const Buffer& buffer, std::byte* to, const std::byte* from) {
    Memory& memory = buffer.memory->device().memory();
    memory.copy(to, from, buffer.bytes);
    if (!memory.finish()) throw std::runtime_error(memory.name() + " did not copy");
}

void write(const Buffer& buffer, const py::buffer& data) {
    const py::buffer_info info = whole(data);
    if (static_cast<std::size_t>(info.size * info.itemsize) != buffer.bytes)
        throw std::out_of_range("the data are of another size than the buffer");
    const auto* from = static_cast<const std::byte*>(info.ptr);
    unlocked([&] { copy(buffer, buffer.at(), from); });
}

py::bytes read(const Buffer& buffer) {
    std::string data(buffer.bytes, '\0');
    unlocked([&] { copy(buffer, reinterpret_cast<std::byte*>(data.data()), buffer.at()); });
    return py::bytes(data);
}

py::dict counted() {
    const auto counters = registrations().counters();
    py::dict told;
    told["regions"] = counters.regions;
    told["bytes"] = counters.bytes;
    told["leased"] = counters.leased;
    told["made"] = counters.made;
    told["found"] = counters.found;
    told["evicted"] = counters.evicted;
    return told;
}

}  // namespace

Buffer Buffer::part(std::size_t from, std::size_t count) const {
    if (from > bytes || count > bytes - from) throw std::out_of_range("beyond the buffer's end");
    return {memory, offset + from, count};
}

py::buffer_info whole(const py::buffer& data, bool writable) {
    py::buffer_info info = data.request(writable);
    if (!PyBuffer_IsContiguous(info.view(), 'C')) throw py::type_error("memory with gaps, or in another order, is no buffer");
    return info;
}

void bind(py::module_& module) {
    py::register_exception<Unavailable>(module, "Unavailable", PyExc_RuntimeError);

    py::class_<GpuDevice, Device>(module, "GpuDevice")
        .def_property_readonly("name", &GpuDevice::name)
        .def_property_readonly("number", &GpuDevice::id)
        .def_property_readonly("bytes", [](GpuDevice& device) { return device.memory().total(); })
        .def_property_readonly("readable", [](GpuDevice& device) { return device.memory().readable(); })
        .def("allocate", [](GpuDevice& device, std::size_t bytes) {
            return unlocked([&] { return Buffer{device.allocate(bytes), 0, bytes}; });
        }, py::arg("bytes"));

    py::class_<Buffer>(module, "Buffer")
        .def("__len__", [](const Buffer& buffer) { return buffer.bytes; })
        .def_property_readonly("address", [](const Buffer& buffer) { return reinterpret_cast<std::uintptr_t>(buffer.at()); })
        .def("part", &Buffer::part, py::arg("offset"), py::arg("bytes"))
        .def("write", &write, py::arg("data"))
        .def("read", &read);

    module.def("soft_device", [](std::size_t bytes, bool guarded) {
        return unlocked([&] { return GpuDevice::make(soft_memory(bytes, guarded)); });
    }, py::arg("bytes"), py::arg("guarded"));
    module.def("cuda_device", [](int ordinal) {
        return unlocked([&] { return GpuDevice::make(cuda_memory(ordinal)); });
    }, py::arg("ordinal"));
    // Says why there is none, without DPDK.
    module.def("find_cuda", [](int ordinal) {
        return unlocked([&] { return cuda_memory(ordinal)->total(); });
    }, py::arg("ordinal"));
    module.def("registrations", &counted);
}

}  // namespace genie::gpumem
