#include "frames.h"

#include "modules.h"
#include "scope.h"
#include "source.h"

#include <algorithm>
#include <atomic>
#include <iterator>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

namespace genie {

namespace {

thread_local uint32_t module_id = 0;
thread_local uint32_t module_mark = 0;

#ifdef GENIE_RAW_FRAMES

PyCodeObject* module_call = nullptr;
PyObject* learn_modules = nullptr;
PyCodeObject* optimizer_step = nullptr;
PyObject* learn_optimizers = nullptr;

std::shared_mutex guard;
std::unordered_map<PyObject*, uint32_t> numbers; // of modules and optimizers
std::unordered_map<PyObject*, uint32_t> marks;   // of modules
std::atomic<bool> any_marked{false};
// Moves when a module goes or is marked, so that no thread takes a new module at its address for the old one.
std::atomic<uint64_t> generation{1};

struct Seen {
  PyObject* object = nullptr;
  uint32_t id = 0;
  uint32_t mark = 0;
};
thread_local uint64_t seen_generation = 0;
thread_local Seen seen[256];

template <typename F>
uint32_t number_of(PyObject* object, F&& learn) {
  {
    std::shared_lock<std::shared_mutex> lock(guard);
    const auto found = numbers.find(object);
    if (found != numbers.end()) {
      return found->second;
    }
  }
  const auto gil = PyGILState_Ensure();
  PyObject* number = learn();
  const uint32_t id = number == nullptr ? 0 : static_cast<uint32_t>(PyLong_AsUnsignedLong(number));
  // A module whose name can't be told has none: recording must not fail for that.
  const bool interrupted = clear_error();
  Py_XDECREF(number);
  PyGILState_Release(gil);
  if (interrupted) {
    return 0;
  }
  std::unique_lock<std::shared_mutex> lock(guard);
  numbers[object] = id;
  return id;
}

uint32_t learn_module(Frame* frame) {
  return number_of(frame->localsplus[0], [frame]() -> PyObject* {
    PyObject* modules = PyList_New(0);
    if (modules == nullptr) {
      return nullptr;
    }
    for (auto* each = frame; each != nullptr; each = each->previous) {
      if (code_of(each) == module_call) {
        PyList_Append(modules, each->localsplus[0]);
      }
    }
    PyObject* number = PyObject_CallOneArg(learn_modules, modules);
    Py_DECREF(modules);
    return number;
  });
}

template <typename F>
const Seen& remembered(PyObject* object, F&& learn) {
  auto& slot = seen[(reinterpret_cast<uintptr_t>(object) >> 4) & 255];
  if (slot.object != object) {
    slot = Seen{object, learn(), 0};
    std::shared_lock<std::shared_mutex> lock(guard);
    const auto found = marks.find(object);
    slot.mark = found == marks.end() ? 0 : found->second;
  }
  return slot;
}

PyObject* arguments_of(Frame* step) {
  PyObject* arguments = step->localsplus[0];
  return arguments != nullptr && PyTuple_Check(arguments) && PyTuple_GET_SIZE(arguments) > 0 ? arguments : nullptr;
}

// The closure a step was given, borrowed from its frame; null when there is none.
PyObject* closure_of(Frame* step, PyObject* arguments) {
  PyObject* closure = nullptr;
  if (PyTuple_GET_SIZE(arguments) > 1) {
    closure = PyTuple_GET_ITEM(arguments, 1);
  } else if (PyObject* named = step->localsplus[1]; named != nullptr && PyDict_Check(named) && PyDict_GET_SIZE(named)) {
    const auto gil = PyGILState_Ensure();
    closure = PyDict_GetItemString(named, "closure");
    PyGILState_Release(gil);
  }
  return closure == Py_None ? nullptr : closure;
}

// Whether this thread is inside the closure of a step, which is the program's forward pass.
bool in_closure(Frame* top, Frame* step, PyObject* arguments) {
  PyObject* closure = closure_of(step, arguments);
  if (closure == nullptr) {
    return false;
  }
  if (PyMethod_Check(closure)) {
    closure = PyMethod_GET_FUNCTION(closure);
  }
  if (!PyFunction_Check(closure)) {
    return true; // what it runs can't be told: nothing is said then
  }
  auto* code = reinterpret_cast<PyCodeObject*>(PyFunction_GET_CODE(closure));
  for (auto* frame = top; frame != step; frame = frame->previous) {
    if (code_of(frame) == code) {
      return true;
    }
  }
  return false;
}

#endif

} // namespace

uint32_t current_module(PyThreadState* state, uint32_t& mark) {
  uint32_t id = module_id;
  mark = module_mark;
#ifdef GENIE_RAW_FRAMES
  const bool marked = any_marked.load(std::memory_order_relaxed);
  bool known = id != 0;
  if (module_call == nullptr || (known && !marked)) {
    return id;
  }
  const uint64_t now = generation.load(std::memory_order_acquire);
  if (seen_generation != now) {
    std::fill(std::begin(seen), std::end(seen), Seen{});
    seen_generation = now;
  }
  auto* top = top_frame(state);
  for (auto* frame = top; frame != nullptr; frame = frame->previous) {
    const auto* code = code_of(frame);
    if (code == module_call) {
      const auto& slot = remembered(frame->localsplus[0], [frame] { return learn_module(frame); });
      if (!known) {
        id = slot.id;
        known = true;
      }
      if (marked) {
        mark = combined(mark, slot.mark);
      }
    } else if (code == optimizer_step && !known) {
      PyObject* arguments = arguments_of(frame);
      if (arguments != nullptr && !in_closure(top, frame, arguments)) {
        PyObject* optimizer = PyTuple_GET_ITEM(arguments, 0);
        id = remembered(optimizer, [optimizer] {
               return number_of(optimizer, [optimizer] { return PyObject_CallOneArg(learn_optimizers, optimizer); });
             }).id;
        known = true;
      }
    }
    if (known && !marked) {
      break;
    }
  }
#else
  (void)state;
#endif
  return id;
}

void follow_modules(void* call, void* learn) {
#ifdef GENIE_RAW_FRAMES
  Py_XINCREF(static_cast<PyObject*>(learn));
  learn_modules = static_cast<PyObject*>(learn);
  Py_XINCREF(static_cast<PyObject*>(call));
  module_call = static_cast<PyCodeObject*>(call);
#else
  (void)call;
  (void)learn;
#endif
}

void follow_optimizers(void* step, void* learn) {
#ifdef GENIE_RAW_FRAMES
  Py_XINCREF(static_cast<PyObject*>(learn));
  learn_optimizers = static_cast<PyObject*>(learn);
  Py_XINCREF(static_cast<PyObject*>(step));
  optimizer_step = static_cast<PyCodeObject*>(step);
#else
  (void)step;
  (void)learn;
#endif
}

void forget_module(uintptr_t address) {
#ifdef GENIE_RAW_FRAMES
  std::unique_lock<std::shared_mutex> lock(guard);
  numbers.erase(reinterpret_cast<PyObject*>(address));
  generation.fetch_add(1, std::memory_order_release);
#else
  (void)address;
#endif
}

void mark_module(uintptr_t address, uint32_t mark) {
#ifdef GENIE_RAW_FRAMES
  std::unique_lock<std::shared_mutex> lock(guard);
  if (mark == 0) {
    marks.erase(reinterpret_cast<PyObject*>(address));
  } else {
    marks[reinterpret_cast<PyObject*>(address)] = mark;
  }
  any_marked.store(!marks.empty(), std::memory_order_relaxed);
  generation.fetch_add(1, std::memory_order_release);
#else
  (void)address;
  (void)mark;
#endif
}

void set_module(uint32_t module, uint32_t mark) {
  module_id = module;
  module_mark = mark;
}

} // namespace genie
