#include "port.h"

#include "describe.h"
#include "stream.h"

#include <pybind11/pybind11.h>
#include <torch/csrc/Exceptions.h>

namespace py = pybind11;

namespace genie {

namespace {

// Leaked on purpose: tensors outlive the interpreter's modules.
py::object* engine_port = nullptr;

// Calls out with the GIL held; Python's exceptions travel through PyTorch as its own do.
template <typename F>
auto call(F&& f) {
  py::gil_scoped_acquire gil;
  if (engine_port == nullptr) {
    TORCH_CHECK(false, "genie: remote_accelerator is not connected; import genie_pytorch first");
  }
  try {
    return f(*engine_port);
  } catch (py::error_already_set& error) {
    error.restore();
    python_error raised;
    raised.persist();
    throw std::move(raised);
  }
}

py::tuple ints(c10::ArrayRef<int64_t> list) {
  py::tuple result(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    result[i] = py::int_(list[i]);
  }
  return result;
}

} // namespace

void set_port(py::object object) {
  delete engine_port;
  engine_port = object.is_none() ? nullptr : new py::object(std::move(object));
}

namespace port {

std::pair<int64_t, int64_t> prepare(int16_t device, const Segment& segment, const std::vector<uint32_t>& outputs, bool whole) {
  return call([&](py::object& port) {
    return port.attr("prepare")(device, describe_segment(segment, outputs), py::bool_(whole))
        .cast<std::pair<int64_t, int64_t>>();
  });
}

void execute(int16_t device, int64_t plan, const std::string& bindings, bool look) {
  call([&](py::object& port) { port.attr("execute")(device, plan, py::bytes(bindings), py::bool_(look)); });
}

void execute_words(int16_t device, int64_t plan, const std::vector<uint64_t>& words, bool look) {
  call([&](py::object& port) {
    const py::bytes bytes(reinterpret_cast<const char*>(words.data()), words.size() * sizeof(uint64_t));
    port.attr("execute_words")(device, plan, bytes, py::bool_(look));
  });
}

void upload(int16_t device, uint64_t handle, const Spec& spec, const void* data, size_t nbytes, bool weight) {
  call([&](py::object& port) {
    port.attr("upload")(
        device,
        handle,
        ints(spec.sizes),
        static_cast<int>(spec.dtype),
        py::memoryview::from_memory(data, static_cast<py::ssize_t>(nbytes)),
        weight);
  });
}

void fetch(int16_t device, uint64_t handle, void* data, size_t nbytes) {
  call([&](py::object& port) {
    port.attr("fetch")(device, handle, py::memoryview::from_memory(data, static_cast<py::ssize_t>(nbytes)));
  });
}

Spec describe(int16_t device, uint64_t handle) {
  return call([&](py::object& port) {
    const auto [dtype, shape, stride] =
        port.attr("describe")(device, handle).cast<std::tuple<int, std::vector<int64_t>, std::vector<int64_t>>>();
    Spec spec;
    spec.dtype = static_cast<at::ScalarType>(dtype);
    spec.sizes.assign(shape.begin(), shape.end());
    spec.strides.assign(stride.begin(), stride.end());
    return spec;
  });
}

void free(int16_t device, const std::vector<uint64_t>& handles) {
  call([&](py::object& port) {
    py::list list;
    for (const auto handle : handles) {
      list.append(py::int_(handle));
    }
    port.attr("free")(device, list);
  });
}

void seed(int16_t device, uint32_t generator, uint64_t seed) {
  call([&](py::object& port) { port.attr("seed")(device, generator, seed); });
}

std::string generator_state(int16_t device, uint32_t generator) {
  return call([&](py::object& port) {
    return port.attr("generator_state")(device, generator).cast<std::string>();
  });
}

void set_generator_state(int16_t device, uint32_t generator, const std::string& state) {
  call([&](py::object& port) { port.attr("set_generator_state")(device, generator, py::bytes(state)); });
}

void synchronize(int16_t device) {
  call([&](py::object& port) { port.attr("synchronize")(device); });
}

void looked(int16_t device, const std::string& what) {
  ++counters.syncs;
  (void)device;
  (void)what;
}

void warn_mixed(const std::string& op) {
  call([&](py::object& port) { port.attr("warn_mixed")(op); });
}

void refuse(const std::string& op, const std::string& reason) {
  call([&](py::object& port) { port.attr("refuse")(op, reason); });
  TORCH_INTERNAL_ASSERT(false, "genie: a refusal was not raised");
}

void ended(int16_t device) {
  call([&](py::object& port) { port.attr("ended")(device); });
  TORCH_INTERNAL_ASSERT(false, "genie: the end of a session was not raised");
}

int default_device() {
  return call([](py::object& port) { return port.attr("default_device")().cast<int>(); });
}

bool connected(int16_t device) {
  return call([&](py::object& port) { return port.attr("connected")(device).cast<bool>(); });
}

} // namespace port

} // namespace genie
