// The Python face: buffers in and out, errors by their genie.errors classes, the GIL released for all work.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include <ATen/Parallel.h>
#include <c10/core/CachingDeviceAllocator.h>

#include "batch.h"
#include "compiled_module.h"
#include "loader.h"
#include "names.h"
#include "session.h"
#include "snapshot_module.h"

namespace py = pybind11;

namespace genie_local {
namespace {

using NoGil = py::gil_scoped_release;

// A contiguous buffer of any Python object.
class View {
 public:
  View(const py::handle& object, bool writable) {
    if (PyObject_GetBuffer(object.ptr(), &view_, writable ? PyBUF_CONTIG : PyBUF_CONTIG_RO) != 0) {
      throw py::error_already_set();
    }
  }
  ~View() {
    PyBuffer_Release(&view_);
  }
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  const uint8_t* data() const {
    return static_cast<const uint8_t*>(view_.buf);
  }
  void* out() const {
    return view_.buf;
  }
  size_t size() const {
    return static_cast<size_t>(view_.len);
  }

 private:
  Py_buffer view_{};
};

Spec to_spec(const std::vector<int64_t>& shape, const std::string& dtype, std::vector<int64_t> stride = {}) {
  const auto type = dtype_named(dtype);
  if (!type) {
    throw Refused(Refusal::node, "no dtype is called '" + dtype + "'");
  }
  return {shape, *type, std::move(stride)};
}

py::tuple to_tuple(const std::vector<int64_t>& numbers) {
  py::tuple tuple(numbers.size());
  for (size_t i = 0; i < numbers.size(); ++i) {
    tuple[i] = numbers[i];
  }
  return tuple;
}

struct Allocation {
  at::Tensor host;
};

py::memoryview view_of(const py::object& owner) {
  return py::memoryview(owner);
}

const char* error_of(const Failure& failure) {
  if (failure.kind == "OutOfMemoryError") {
    return "OutOfMemory";
  }
  for (const auto* name : {"Cancelled", "ExecutionTimedOut"}) {
    if (failure.kind == name) {
      return name;
    }
  }
  return "RemoteOpError";
}

void raise(const Failure& failure) {
  const auto errors = py::module_::import("genie.errors");
  const auto type = errors.attr(error_of(failure));
  const auto error = type(
      failure.message,
      py::arg("op") = failure.op,
      py::arg("source") = failure.source,
      py::arg("device") = failure.device,
      py::arg("plan") = failure.plan,
      py::arg("step") = failure.step,
      py::arg("kind") = failure.kind);
  PyErr_SetObject(type.ptr(), error.ptr());
}

void raise(const Refused& refused) {
  const auto errors = py::module_::import("genie.errors");
  const char* name = "GenieError";
  switch (refused.kind) {
    case Refusal::plan:
      name = "PlanError";
      break;
    case Refusal::protocol:
      name = "ProtocolError";
      break;
    case Refusal::node:
      name = "NodeError";
      break;
    case Refusal::memory:
      raise(Failure{"OutOfMemoryError", refused.what()});
      return;
    case Refusal::closed:
      name = "SessionClosed";
      break;
  }
  PyErr_SetString(errors.attr(name).ptr(), refused.what());
}

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) {
      std::rethrow_exception(pointer);
    }
  } catch (const Refused& refused) {
    raise(refused);
  } catch (const Poisoned& poisoned) {
    raise(*poisoned.failure);
  }
}

py::tuple fetch(Session& session, int64_t handle) {
  Spec spec;
  Bytes bytes;
  {
    const NoGil no_gil;
    bytes = session.fetch(handle, spec);
  }
  const auto owner = bytes.data == nullptr ? py::object(py::bytes(bytes.copied)) : py::cast(std::move(bytes));
  return py::make_tuple(to_tuple(spec.shape), name_of(spec.dtype), view_of(owner));
}

py::tuple fetch_into(Session& session, int64_t handle, const py::handle& out) {
  const View view(out, true);
  Spec spec;
  {
    const NoGil no_gil;
    session.fetch_into(handle, spec, view.out(), view.size());
  }
  return py::make_tuple(to_tuple(spec.shape), name_of(spec.dtype));
}

py::dict counters(Session& session) {
  Counters counted;
  {
    const NoGil no_gil;
    counted = session.counters();
  }
  py::dict named;
  named["values"] = counted.values;
  named["plans"] = counted.plans;
  named["executions"] = counted.executions;
  named["steps"] = counted.steps;
  named["failed_steps"] = counted.failed_steps;
  named["skipped_steps"] = counted.skipped_steps;
  named["uploaded_bytes"] = counted.uploaded;
  named["fetched_bytes"] = counted.fetched;
  named["memory_bytes"] = counted.memory;
  named["peak_memory_bytes"] = counted.peak_memory;
  named["timed_executions"] = counted.timed;
  named["kept_bytes"] = counted.kept;
  named["away_bytes"] = counted.away;
  for (size_t kind = 0; kind < kinds; ++kind) {
    named[(std::string(name_of(static_cast<Kind>(kind))) + "_bytes").c_str()] = counted.by_kind[kind];
  }
  named["batched_executions"] = counted.batched_executions;
  named["batched_members"] = counted.batched_members;
  named["batched_steps"] = counted.batched_steps;
  named["largest_batch"] = counted.largest_batch;
  named["stopped_executions"] = counted.stopped_executions;
  return named;
}

py::object as_buffer(Bytes&& bytes) {
  return bytes.data == nullptr ? py::object(py::bytes(bytes.copied)) : py::object(view_of(py::cast(std::move(bytes))));
}

// What the next iteration emits; None when there is none.
py::object iterate(Session& session, Loop& loop) {
  std::vector<Bytes> emitted;
  bool ran = false;
  {
    const NoGil no_gil;
    ran = session.iterate(loop, emitted);
  }
  if (!ran) {
    return py::none();
  }
  py::tuple values(emitted.size());
  for (size_t i = 0; i < emitted.size(); ++i) {
    values[i] = as_buffer(std::move(emitted[i]));
  }
  return values;
}

py::tuple to_tuple(const TimedTensor& tensor) {
  return py::make_tuple(name_of(tensor.dtype), to_tuple(tensor.shape), tensor.contiguous);
}

py::tuple to_tuple(const std::vector<TimedTensor>& tensors) {
  py::tuple made(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    made[i] = to_tuple(tensors[i]);
  }
  return made;
}

// Rows as tuples: target, phase, operands, results, count, mean, least, variance, typical.
py::list take_timings(Session& session) {
  std::vector<TimingRow> rows;
  {
    const NoGil no_gil;
    rows = session.take_timings();
  }
  py::list made;
  for (const auto& row : rows) {
    made.append(py::make_tuple(
        row.target,
        row.phase,
        to_tuple(row.operands),
        to_tuple(row.results),
        row.count,
        row.mean,
        row.least,
        row.variance,
        row.typical));
  }
  return made;
}

// A buffer's memory, kept by a reference to it.
Source source_of(const py::object& buffer, size_t size) {
  auto view = std::make_unique<View>(buffer, false);
  if (view->size() != size) {
    throw Refused(Refusal::node, "a value of " + std::to_string(size) + " bytes is not the same as " +
                  std::to_string(view->size()));
  }
  const auto* data = view->data();
  return {data, std::shared_ptr<void>(view.release(), [](void* held) {
            const py::gil_scoped_acquire gil;
            delete static_cast<View*>(held);
          })};
}

py::dict budget_stats(Budget& budget) {
  py::dict named;
  named["limit"] = budget.limit;
  named["live"] = budget.live.load();
  named["peak"] = budget.peak.load();
  named["contents"] = budget.contents.load();
  named["swap_limit"] = budget.swap ? budget.swap->limit() : 0;
  named["swap_used"] = budget.swap ? budget.swap->used() : 0;
  const std::pair<const char*, const Traffic*> moved[] = {
      {"evicted", &budget.evicted},
      {"restored", &budget.restored},
      {"swapped_out", &budget.swapped_out},
      {"swapped_in", &budget.swapped_in}};
  for (const auto& [name, traffic] : moved) {
    named[name] = traffic->count.load();
    named[(std::string(name) + "_bytes").c_str()] = traffic->bytes.load();
    named[(std::string(name) + "_ns").c_str()] = traffic->nanoseconds.load();
  }
  return named;
}

// What the allocator of a device that is not the host says: allocated and reserved bytes, and the most there were.
py::dict allocator_stats(const std::string& name) {
  const c10::Device device(name);
  py::dict named;
  if (device.is_cpu()) {
    return named;
  }
  const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(std::max<c10::DeviceIndex>(device.index(), 0));
  const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  named["allocated"] = stats.allocated_bytes[all].current;
  named["allocated_peak"] = stats.allocated_bytes[all].peak;
  named["reserved"] = stats.reserved_bytes[all].current;
  named["reserved_peak"] = stats.reserved_bytes[all].peak;
  return named;
}

void bind_memory(py::module_& module) {
  py::class_<Swap, SwapPtr>(module, "Swap")
      .def(py::init<int64_t, std::string>(), py::arg("bytes"), py::arg("directory") = "");
  py::class_<Budget, BudgetPtr>(module, "Budget")
      .def(py::init<int64_t, SwapPtr>(), py::arg("bytes"), py::arg("swap") = SwapPtr())
      .def(
          "reclaim",
          [](Budget& budget, int64_t bytes) { return budget.reclaim(bytes, nullptr).bytes; },
          py::call_guard<NoGil>())
      .def("put_idle_out", &Budget::put_idle_out, py::call_guard<NoGil>())
      .def("stats", &budget_stats);
  py::class_<SharedValue>(module, "SharedValue")
      .def_property_readonly("shape", [](const SharedValue& value) { return to_tuple(value.spec.shape); })
      .def_property_readonly("dtype", [](const SharedValue& value) { return name_of(value.spec.dtype); })
      .def_property_readonly("nbytes", [](const SharedValue& value) { return value.storage_size; })
      .def(
          "back",
          [](const SharedValue& value, const py::object& buffer) {
            auto source = source_of(buffer, value.storage_size);
            const NoGil no_gil;
            back(value.bytes, std::move(source));
          })
      .def("forsake", [](const SharedValue& value) { return forsake(value.bytes); }, py::call_guard<NoGil>())
      .def_property_readonly("held", [](const SharedValue& value) { return value.bytes->attached > 0; })
      .def_property_readonly("away", [](const SharedValue& value) {
        const NoGil no_gil;
        const std::lock_guard<std::mutex> lock(value.bytes->lock);
        return value.bytes->data.get() == nullptr;
      });
}

void bind_session(py::module_& module) {
  py::class_<Loop, std::shared_ptr<Loop>>(module, "Loop").def_property_readonly("over", &Loop::over);
  bind_memory(module);
  py::class_<Account, AccountPtr>(module, "Account")
      .def(py::init<std::string, int64_t>(), py::arg("tenant"), py::arg("limit"))
      .def("set_limit", &Account::set_limit)
      .def_property_readonly("live", &Account::live)
      .def_property_readonly("swapped", &Account::swapped);
  py::class_<Flow, FlowPtr>(module, "Flow")
      .def("set_weight", &Flow::set_weight, py::call_guard<NoGil>())
      .def_property_readonly("seconds", &Flow::seconds);
  py::class_<Turnstile, std::shared_ptr<Turnstile>>(module, "Turnstile")
      .def(py::init<int64_t>(), py::arg("lanes"))
      .def(
          "flow",
          [](std::shared_ptr<Turnstile> turnstile, double weight, FlowPtr parent) {
            return std::make_shared<Flow>(std::move(turnstile), std::move(parent), weight);
          },
          py::arg("weight"),
          py::arg("parent") = FlowPtr());
  py::class_<Batcher, BatcherPtr>(module, "Batcher")
      .def(
          py::init([](bool exact, int64_t lanes, int64_t fewest, double patience) {
            return std::make_shared<Batcher>(BatchOptions{exact, lanes, fewest, patience});
          }),
          py::kw_only(),
          py::arg("exact"),
          py::arg("lanes"),
          py::arg("fewest"),
          py::arg("patience"));
  py::class_<Session>(module, "Session")
      .def(
          py::init([](const std::string& device,
                      const std::string& name,
                      int64_t memory_limit,
                      BudgetPtr budget,
                      BatcherPtr batcher,
                      FlowPtr flow,
                      AccountPtr account,
                      std::string label) {
            return std::make_unique<Session>(
                c10::Device(device),
                name,
                memory_limit,
                std::move(budget),
                std::move(batcher),
                std::move(flow),
                std::move(account),
                std::move(label));
          }),
          py::arg("device"),
          py::arg("name"),
          py::arg("memory_limit"),
          py::arg("budget") = BudgetPtr(),
          py::arg("batcher") = BatcherPtr(),
          py::arg("flow") = FlowPtr(),
          py::arg("account") = AccountPtr(),
          py::arg("label") = std::string())
      .def(
          "load",
          [](Session& session, int64_t id, const py::object& graph) {
            auto plan = load_plan(graph, session.device());
            const NoGil no_gil;
            session.load(id, std::move(plan));
          })
      .def(
          "load_compiled", &load_compiled, py::arg("plan"), py::kw_only(), py::arg("name"), py::arg("program"),
          py::arg("bytes"), py::arg("donated"), py::arg("takes"), py::arg("operands"), py::arg("results"),
          py::arg("parameters"))
      .def(
          "execute",
          [](Session& session, int64_t plan, const py::object& bindings) {
            const View view(bindings, false);
            const NoGil no_gil;
            session.execute(plan, view.data(), view.size());
          })
      .def(
          "loop",
          [](Session& session,
             int64_t plan,
             const py::object& bindings,
             LoopSpec::Pairs carries,
             LoopSpec::Pairs strides,
             std::vector<int64_t> emit,
             int64_t stop,
             int64_t times) {
            const View view(bindings, false);
            LoopSpec spec{std::move(carries), std::move(strides), std::move(emit), stop};
            const NoGil no_gil;
            return session.loop(plan, view.data(), view.size(), std::move(spec), times);
          })
      .def("iterate", &iterate)
      .def(
          "upload",
          [](Session& session,
             int64_t handle,
             const std::vector<int64_t>& shape,
             const std::string& dtype,
             const py::object& data,
             std::vector<int64_t> stride) {
            const auto spec = to_spec(shape, dtype, std::move(stride));
            const View view(data, false);
            const NoGil no_gil;
            session.upload(handle, spec, view.data(), view.size());
          },
          py::arg("handle"),
          py::arg("shape"),
          py::arg("dtype"),
          py::arg("data"),
          py::arg("stride") = std::vector<int64_t>())
      .def(
          "allocate",
          [](Session& session, const std::vector<int64_t>& shape, const std::string& dtype) {
            const auto spec = to_spec(shape, dtype);
            const NoGil no_gil;
            return Allocation{session.allocate(spec)};
          })
      .def(
          "commit",
          [](Session& session, int64_t handle, const Allocation& allocation) {
            const NoGil no_gil;
            session.commit(handle, allocation.host);
          })
      .def(
          "poison",
          [](Session& session,
             int64_t handle,
             std::string kind,
             std::string message,
             std::string op,
             std::string source,
             std::string device,
             int64_t plan,
             int64_t step) {
            const NoGil no_gil;
            session.poison(
                handle,
                Failure{
                    std::move(kind), std::move(message), std::move(op), std::move(source), std::move(device), plan, step});
          },
          py::arg("handle"),
          py::kw_only(),
          py::arg("kind"),
          py::arg("message"),
          py::arg("op"),
          py::arg("source"),
          py::arg("device"),
          py::arg("plan"),
          py::arg("step"))
      .def(
          "describe",
          [](Session& session, int64_t handle) {
            Spec spec;
            {
              const NoGil no_gil;
              spec = session.describe(handle);
            }
            return py::make_tuple(to_tuple(spec.shape), name_of(spec.dtype), to_tuple(spec.stride));
          })
      .def("fetch", &fetch)
      .def("fetch_into", &fetch_into)
      .def("free", &Session::free, py::call_guard<NoGil>())
      .def("share", py::overload_cast<int64_t>(&Session::share), py::call_guard<NoGil>())
      .def("share_content", &Session::share_content, py::call_guard<NoGil>())
      .def("adopt", &Session::adopt, py::call_guard<NoGil>())
      .def("seed", &Session::seed, py::call_guard<NoGil>())
      .def(
          "generator_state",
          [](Session& session, int64_t generator) {
            std::string state;
            {
              const NoGil no_gil;
              state = session.generator_state(generator);
            }
            return py::bytes(state);
          })
      .def(
          "set_generator_state",
          [](Session& session, int64_t generator, const py::object& state) {
            const View view(state, false);
            const NoGil no_gil;
            session.set_generator_state(generator, view.data(), view.size());
          })
      .def(
          "snapshot",
          [](Session& session) {
            Snapshot made;
            {
              const NoGil no_gil;
              made = session.snapshot();
            }
            return to_tuple(made);
          })
      .def(
          "read_memory",
          [](Session& session, int64_t id, int64_t version, int64_t offset, int64_t size) {
            Bytes bytes;
            {
              const NoGil no_gil;
              bytes = session.read_memory(id, version, offset, size);
            }
            return as_buffer(std::move(bytes));
          })
      .def(
          "memory_of",
          [](Session& session, int64_t handle) {
            MemoryState memory;
            {
              const NoGil no_gil;
              memory = session.memory_of(handle);
            }
            return to_tuple(memory);
          })
      .def(
          "restore",
          [](Session& session, const py::tuple& given, const std::map<int64_t, int64_t>& staged) {
            const auto snapshot = to_snapshot(given);
            const NoGil no_gil;
            session.restore(snapshot, staged);
          })
      .def("prefetch", &Session::prefetch, py::call_guard<NoGil>())
      .def("away", &Session::away)
      .def("name", &Session::name, py::call_guard<NoGil>())
      .def("synchronize", &Session::synchronize, py::call_guard<NoGil>())
      .def("cancel", &Session::cancel)
      .def("resume", &Session::resume)
      .def("limit_executions", &Session::limit_executions)
      .def("counters", &counters)
      .def("take_timings", &take_timings)
      .def("set_timing", &Session::set_timing, py::call_guard<NoGil>())
      .def("take_warnings", &Session::take_warnings, py::call_guard<NoGil>())
      .def("close", &Session::close, py::call_guard<NoGil>());
}

}  // namespace
}  // namespace genie_local

PYBIND11_MODULE(GENIE_MODULE, module) {
  using namespace genie_local;
  py::register_exception_translator(&translate);
  module.attr("torch_version") = TORCH_VERSION;

  py::class_<Bytes>(module, "Bytes", py::buffer_protocol()).def_buffer([](Bytes& bytes) {
    return py::buffer_info(
        static_cast<uint8_t*>(bytes.data), static_cast<py::ssize_t>(bytes.size), /*readonly=*/true);
  });
  py::class_<Allocation>(module, "Allocation", py::buffer_protocol()).def_buffer([](Allocation& allocation) {
    return py::buffer_info(
        static_cast<uint8_t*>(allocation.host.mutable_data_ptr()),
        static_cast<py::ssize_t>(allocation.host.nbytes()));
  });
  bind_session(module);

  py::class_<Prediction>(module, "Prediction")
      .def(py::init<size_t, const std::vector<uint64_t>&>())
      .def("decode", [](Prediction& prediction, const py::object& data) {
        const View view(data, false);
        prediction.decode(view.data(), view.size());
        return py::make_tuple(py::cast(prediction.words()), py::cast(prediction.changed()));
      });
  module.def("set_threads", [](int threads) { at::set_num_threads(threads); });
  module.def("allocator_stats", &allocator_stats);
  module.def("forget_blocks", &forget_blocks, py::call_guard<NoGil>());
  module.def("threads", [] { return at::get_num_threads(); });
}
