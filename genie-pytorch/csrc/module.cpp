// The extension's Python face.
#include "adopt.h"
#include "describe.h"
#include "device.h"
#include "record.h"
#include "rules.h"
#include "source.h"
#include "trace.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>

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

py::list to_list(const std::vector<at::Tensor>& tensors) {
  py::list list;
  for (const auto& tensor : tensors) {
    list.append(py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor)));
  }
  return list;
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
      .def("replay", [](Trace& trace, const py::list& inputs) { return to_list(trace.replay(tensors_of(inputs))); });
  m.def(
      "begin_trace",
      [](int device, const py::list& inputs) { begin_trace(static_cast<int16_t>(device), tensors_of(inputs)); },
      py::arg("device"),
      py::arg("inputs") = py::list());
  m.def("end_trace", [](int device, const py::list& inputs, const py::list& outputs) {
    return end_trace(static_cast<int16_t>(device), tensors_of(inputs), tensors_of(outputs));
  });
  m.def("abandon_trace", [](int device) { abandon_trace(static_cast<int16_t>(device)); });
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
  m.def("reset", &reset, "Forget plans and pending work: the sessions behind them end.");
  m.def("set_host_like", [](int device, bool like) { set_host_like(static_cast<int16_t>(device), like); });
  m.def("source_named", &source_named);
  m.def("set_origin", &set_origin, "Overrides what the frames say on this thread: module and source, or 0.");
  m.def("follow_modules", [](py::object code, py::object learn) { follow_modules(code.ptr(), learn.ptr()); });
  m.def("forget_module", &forget_module);
  m.def("current_module", &current_module);
  m.def("source_text", &source_text);
  m.def("current_source", &current_source);
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
  // What this thread has recorded and not sent, as data.
  m.def("pending", [](int device) {
    Lock lock;
    auto& stream = stream_for(static_cast<int16_t>(device), nullptr);
    return describe_segment(stream.segment, living(stream.segment));
  });
  // What this thread has sent since its last look: [(plan id, words)].
  m.def("history", [](int device) {
    Lock lock;
    auto& stream = stream_for(static_cast<int16_t>(device), nullptr);
    py::list result;
    for (const auto& sent : stream.history) {
      result.append(py::make_tuple(sent.plan->id, sent.plan->outputs, sent.plan->inputs, sent.words));
    }
    return result;
  });
  // A region whose whole history is kept, whatever is looked at on the way.
  m.def("start_history", [](int device) {
    Lock lock;
    auto& stream = stream_for(static_cast<int16_t>(device), nullptr);
    flush(stream);
    stream.history.clear();
    stream.looked = false;
    stream.keep = true;
  });
  m.def("end_history", [](int device) {
    Lock lock;
    auto& stream = stream_for(static_cast<int16_t>(device), nullptr);
    flush(stream);
    stream.keep = false;
    stream.looked = true;
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
