// The extension's Python face.
#include "adopt.h"
#include "describe.h"
#include "device.h"
#include "modules.h"
#include "record.h"
#include "rules.h"
#include "scope.h"
#include "source.h"
#include "step.h"
#include "trace.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/python_variable.h>

#include <array>
#include <cstring>

namespace py = pybind11;

namespace genie {

namespace {

at::Tensor tensor_of(py::handle object) {
  TORCH_CHECK_TYPE(THPVariable_Check(object.ptr()), "genie: a tensor is needed");
  return THPVariable_Unpack(object.ptr());
}

std::vector<at::Tensor> tensors_of(const py::list& list) {
  std::vector<at::Tensor> tensors;
  for (const auto& item : list) {
    tensors.push_back(tensor_of(item));
  }
  return tensors;
}

py::object to_object(const at::Tensor& tensor) {
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor));
}

py::list to_list(const std::vector<at::Tensor>& tensors) {
  py::list list;
  for (const auto& tensor : tensors) {
    list.append(to_object(tensor));
  }
  return list;
}

py::tuple as_tuple(const Stream::Sent& sent) {
  const auto& plan = sent.known.plan;
  return py::make_tuple(sent.known.graph, plan->outputs, plan->inputs, sent.words, sent.reshaped);
}

std::vector<uint32_t> living(const Segment& segment) {
  std::vector<uint32_t> outputs;
  for (const auto& [index, value] : segment.made) {
    if (value.use_count() > 1) {
      outputs.push_back(index);
    }
  }
  return outputs;
}

py::dict stats() {
  Lock lock;
  py::dict result;
  result["total_ops"] = counters.operators;
  result["segments"] = counters.segments;
  result["streams"] = stream_count();
  result["plan_hits"] = counters.plan_hits;
  result["plan_misses"] = counters.plan_misses;
  result["syncs"] = counters.syncs;
  result["shape_hits"] = counters.memo_hits;
  result["shape_misses"] = counters.memo_misses;
  result["asked_node"] = counters.asked_node;
  result["overhead_ns"] = counters.record_ns;
  result["overhead_ns_per_op"] = counters.record_ns / std::max<uint64_t>(counters.operators, 1);
  return result;
}

} // namespace

PYBIND11_MODULE(GENIE_MODULE, m) {
  register_operators();
  py::class_<Trace, std::shared_ptr<Trace>>(m, "Trace", "A program recorded whole, to be run again on other tensors.")
      .def("replay", [](Trace& trace, const py::list& inputs, bool look) {
        return to_list(trace.replay(tensors_of(inputs), look));
      });
  m.def(
      "begin_trace",
      [](int device, const py::list& inputs) { begin_trace(static_cast<int16_t>(device), tensors_of(inputs)); },
      py::arg("device"),
      py::arg("inputs") = py::list());
  m.def("end_trace", [](int device, const py::list& inputs, const py::list& outputs) {
    return end_trace(static_cast<int16_t>(device), tensors_of(inputs), tensors_of(outputs));
  });
  m.def("abandon_trace", [](int device) { abandon_trace(static_cast<int16_t>(device)); });
  py::class_<Step, std::shared_ptr<Step>>(m, "Step", "One step of a loop, as it was sent.")
      .def_property_readonly("plan", [](const Step& step) { return step.known().plan->id; })
      .def_property_readonly("graph", [](const Step& step) { return step.known().graph; })
      .def_property_readonly("inputs", [](const Step& step) { return step.donated().size(); })
      .def_property_readonly("outputs", [](const Step& step) { return step.known().plan->outputs.size(); })
      .def_property_readonly("words", &Step::words)
      .def_property_readonly("donated", &Step::donated);
  m.def("begin_step", [](int device) { begin_step(static_cast<int16_t>(device)); });
  m.def("end_step", [](int device) { return end_step(static_cast<int16_t>(device)); });
  m.def("abandon_step", [](int device) { abandon_step(static_cast<int16_t>(device)); });
  m.def("begin_rehearsal", [](int device) { begin_rehearsal(static_cast<int16_t>(device)); });
  m.def("end_rehearsal", [](int device, const Step& like) {
    return end_rehearsal(static_cast<int16_t>(device), like);
  });
  m.def("stand_in", [](py::handle like, uint64_t handle, const std::vector<int64_t>& sizes) {
    return to_object(stand_in(tensor_of(like), handle, sizes));
  });
  m.def("give_up", [](py::handle tensor) { give_up(tensor_of(tensor)); });
  py::class_<Repetition>(m, "Repetition", "A step's plan about to be repeated on the node.")
      .def(py::init<const Step&, std::vector<uint64_t>>())
      .def_property_readonly("bindings", [](const Repetition& its) { return py::bytes(its.bindings()); })
      .def("begun", &Repetition::begun)
      .def("output", [](const Repetition& its, size_t k, py::handle like, const std::vector<int64_t>& sizes) {
        return to_object(its.output(k, tensor_of(like), sizes));
      });
  m.def("check_geometry", [](bool on) { check_geometry = on; }, "Debugging: compare every output with the node's.");
  m.def("register_device", &register_device, "Number of device indices PyTorch sees.");
  m.def("set_port", &set_port);
  m.def("set_device", [](int index) { set_current_device(static_cast<c10::DeviceIndex>(index)); });
  m.def("current_device", [] { return static_cast<int>(current_device()); });
  m.def("flush", [](int device) {
    Lock lock;
    flush_all(static_cast<int16_t>(device));
  });
  m.def("stats", &stats);
  m.def("captured", [] {
    Lock lock;
    return counters.captured;
  });
  m.def("reset", &reset, "Forget plans and pending work: the sessions behind them end.");
  m.def("set_host_like", [](int device, bool like) { set_host_like(static_cast<int16_t>(device), like); });
  m.def(
      "set_spread",
      [](int device, bool spread) { set_spread(static_cast<int16_t>(device), spread); },
      "Whether the device stands for several.");
  m.def("source_named", &source_named);
  m.def(
      "set_origin",
      [](uint32_t module, uint32_t source, uint32_t mark) {
        set_module(module, mark);
        set_source(source);
      },
      "Overrides what the frames say on this thread: module, source, and the modules' mark, or 0.");
  m.def("follow_modules", [](py::object code, py::object learn) { follow_modules(code.ptr(), learn.ptr()); });
  m.def("forget_module", &forget_module);
  m.def("follow_optimizers", [](py::object step, py::object learn) { follow_optimizers(step.ptr(), learn.ptr()); });
  m.def("follow_marks", [](py::object now, py::object combine) { follow_marks(now.ptr(), combine.ptr()); });
  m.def("set_mark", &set_mark, "What the user says of this thread's operators from now on, in its present context.");
  m.def("current_scope", [] {
    return current_origin(torch::autograd::get_current_graph_task_id() != -1).scope;
  }, "The mark in force here << 1 | whether this is a backward pass.");
  m.def("mark_module", &mark_module);
  m.def("mark_value", [](py::handle object, const py::function& change) {
    const auto tensor = tensor_of(object);
    TORCH_CHECK_VALUE(on_device(tensor), "genie: the tensor is on ", tensor.device(), ", not remote_accelerator");
    Lock lock;
    touch(stream_for(static_cast<int16_t>(tensor.device().index()), nullptr), tensor);
    auto* value = value_of(tensor);
    mark_value(*value, change(value->mark).cast<uint32_t>());
  }, "The mark of a tensor's value becomes what the function makes of it.");
  m.def("marked_values", [](int device) {
    Lock lock;
    return marked_values(static_cast<int16_t>(device));
  });
  // The marks of these tensors' values, to tell calls of a compiled program apart; nothing if no value is marked.
  m.def("marks_of", [](const py::list& list) {
    std::vector<uint32_t> marks;
    if (any_value_marked()) {
      for (const auto& tensor : tensors_of(list)) {
        const Value* value = on_device(tensor) ? value_of(tensor) : nullptr;
        marks.push_back(value == nullptr ? 0 : value->mark);
      }
    }
    return py::tuple(py::cast(marks));
  });
  m.def("source_text", &source_text);
  m.def("current_source", [] { return current_source(); });
  m.def("ignore_sources_under", &ignore_sources_under);
  m.def("is_user_file", &is_user_file);
  m.def("enter_capture", [] { return ++capture_depth(); });
  m.def("leave_capture", [] { return --capture_depth(); });
  m.def("capture_depth", [] { return capture_depth(); });
  // The value behind a tensor: (device, handle); handle 0 while its segment is pending.
  m.def("handle_of", [](py::handle object) {
    const auto tensor = tensor_of(object);
    TORCH_CHECK_VALUE(on_device(tensor), "genie: the tensor is on ", tensor.device(), ", not remote_accelerator");
    Lock lock;
    auto& stream = stream_for(static_cast<int16_t>(tensor.device().index()), nullptr);
    touch(stream, tensor);
    auto* value = value_of(tensor);
    if (value->pending) {
      flush(*value->maker);
    }
    return py::make_tuple(static_cast<int>(value->device), value->handle);
  });
  // A host tensor's version, where its elements are, and a few of their bytes: writes around the version (`.data`)
  // hardly leave these as they were.
  m.def("host_state", [](py::handle object) {
    const auto tensor = tensor_of(object);
    TORCH_CHECK_VALUE(tensor.device().is_cpu(), "genie: the tensor is on ", tensor.device(), ", not on the host");
    constexpr size_t kSample = 16;
    struct {
      int64_t version;
      uintptr_t address;
      std::array<std::array<char, kSample>, 3> samples;
    } state{};
    const auto* data = static_cast<const char*>(tensor.const_data_ptr());
    state.version = tensor.is_inference() ? 0 : static_cast<int64_t>(tensor._version());
    state.address = reinterpret_cast<uintptr_t>(data);
    const size_t length = tensor.nbytes();
    if (length >= kSample && tensor.is_contiguous()) {
      const std::array<size_t, 3> offsets{0, (length - kSample) / 2, length - kSample};
      for (size_t i = 0; i < offsets.size(); ++i) {
        std::memcpy(state.samples[i].data(), data + offsets[i], kSample);
      }
    }
    return py::bytes(reinterpret_cast<const char*>(&state), sizeof(state));
  });
  // What this thread has recorded and not sent, as data.
  m.def("pending", [](int device) {
    Lock lock;
    auto& stream = stream_for(static_cast<int16_t>(device), nullptr);
    stream.segment.looked_at = stream.looked_at;
    for (auto& leaf : stream.segment.leaves) {
      leaf.donated = leaf.value.use_count() == 1; // as it would be if the segment were closed now
    }
    return describe_segment(stream.segment, living(stream.segment));
  });
  // What this thread has sent since its last look: [(graph, outputs, number of inputs, words, geometry of values that
  // is not the graph's: index, rank, sizes, strides, …)].
  m.def("history", [](int device) {
    Lock lock;
    auto& stream = stream_for(static_cast<int16_t>(device), nullptr);
    py::list result;
    for (const auto& sent : stream.history) {
      result.append(as_tuple(sent));
    }
    return result;
  });
  m.def("is_alive", [](int device, uint64_t handle) { return is_alive(static_cast<int16_t>(device), handle); });
  // One execution before those, the latest first; None when it is not remembered.
  m.def("earlier", [](int device, size_t position) -> py::object {
    Lock lock;
    const auto& stream = stream_for(static_cast<int16_t>(device), nullptr);
    if (position >= stream.earlier.size()) {
      return py::none();
    }
    return as_tuple(stream.earlier[stream.earlier.size() - 1 - position]);
  });
  // How a value this thread's history begins with came to be: 1 the program gave it since it looked last, 2 an operator
  // made it, 0 neither or unknown.
  m.def("whence", [](int device, uint64_t handle) {
    Lock lock;
    const auto& stream = stream_for(static_cast<int16_t>(device), nullptr);
    const auto from = whence(static_cast<int16_t>(device), handle);
    return static_cast<int>(from == From::kUploaded && handle <= stream.viewed_from ? From::kUnknown : from);
  });
  // A region whose whole history is kept, whatever is looked at on the way.
  m.def("start_history", [](int device) {
    Lock lock;
    auto& stream = stream_for(static_cast<int16_t>(device), nullptr);
    flush(stream);
    begin_history(stream);
    stream.end_history();
    stream.keep = true;
  });
  m.def("end_history", [](int device) {
    Lock lock;
    auto& stream = stream_for(static_cast<int16_t>(device), nullptr);
    flush(stream);
    stream.keep = false;
    stream.look();
  });
  // (device, handle, index in this thread's pending segment): what is known of a tensor without asking anybody.
  m.def("peek", [](py::handle object) -> py::tuple {
    const auto tensor = tensor_of(object);
    const Value* value = on_device(tensor) ? value_of(tensor) : nullptr;
    if (value == nullptr) {
      return py::make_tuple(-1, 0, -1);
    }
    Lock lock;
    const auto& stream = stream_for(value->device, nullptr);
    const bool pending = value->home() == &stream && value->segment == stream.segment.serial;
    return py::make_tuple(
        static_cast<int>(value->device), value->handle, pending ? static_cast<int64_t>(value->index) : -1);
  });
}

} // namespace genie
