#include "frames.h"

#include "modules.h"
#include "scope.h"
#include "source.h"

#include <ATen/ThreadLocalPythonObjects.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/graph_task.h>

#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>

namespace genie {

namespace {

PyObject* mark_now = nullptr;
PyObject* combine_marks = nullptr;

// A thread's mark is that of a Python context: it was asked for when the thread's contexts were switched this often.
thread_local uint32_t thread_mark = 0;
thread_local uint64_t thread_switches = 0;

std::shared_mutex guard;
std::unordered_map<uint64_t, uint32_t> combinations;

struct Recent {
  uint64_t pair = 0;
  uint32_t mark = 0;
};
thread_local Recent recent[64];

// The answer to a question that may go unanswered. The caller holds the GIL.
uint32_t number(PyObject* answer) {
  const uint32_t mark = answer == nullptr ? 0 : static_cast<uint32_t>(PyLong_AsUnsignedLong(answer));
  Py_XDECREF(answer);
  clear_error();
  return mark;
}

// The threads of a backward pass are given this by autograd, with the rest of what the starting thread had.
const std::string& key() {
  static const std::string name = "genie.mark";
  return name;
}

// The caller holds the GIL.
void stash(uint32_t mark) {
  using at::impl::ThreadLocalPythonObjects;
  if (torch::autograd::get_current_graph_task_id() != -1 || (mark == 0 && !ThreadLocalPythonObjects::contains(key()))) {
    return;
  }
  ThreadLocalPythonObjects::set(
      key(), std::make_shared<c10::SafePyObject>(PyLong_FromUnsignedLong(mark), getPyInterpreter()));
}

uint32_t stashed() {
  using at::impl::ThreadLocalPythonObjects;
  if (!ThreadLocalPythonObjects::contains(key())) {
    return 0;
  }
  const auto held = ThreadLocalPythonObjects::get(key());
  const auto gil = PyGILState_Ensure();
  const auto mark = static_cast<uint32_t>(PyLong_AsUnsignedLong(held->ptr(getPyInterpreter())));
  PyGILState_Release(gil);
  return mark;
}

// The mark of whoever started the backward pass this thread works for.
uint32_t starters_mark() {
  thread_local int task = -1;
  thread_local uint32_t mark = 0;
  const int now = torch::autograd::get_current_graph_task_id();
  if (now != task) {
    mark = stashed();
    task = now;
  }
  return mark;
}

uint32_t ask(PyThreadState* state) {
  const auto gil = PyGILState_Ensure();
  thread_mark = number(PyObject_CallNoArgs(mark_now));
  thread_switches = state->context_ver;
  stash(thread_mark);
  PyGILState_Release(gil);
  return thread_mark;
}

uint32_t mark_of(PyThreadState* state) {
  // Tasks of asyncio take turns on one thread: each has a context, and each has its mark.
  if (state == nullptr || state->context_ver == thread_switches || mark_now == nullptr) {
    return thread_mark;
  }
  return ask(state);
}

} // namespace

uint32_t combined(uint32_t inner, uint32_t outer) {
  if (inner == 0 || inner == outer) {
    return outer;
  }
  if (outer == 0) {
    return inner;
  }
  const uint64_t pair = static_cast<uint64_t>(inner) << 32 | outer;
  auto& slot = recent[(inner ^ (outer << 3)) & 63];
  if (slot.pair == pair) {
    return slot.mark;
  }
  {
    std::shared_lock<std::shared_mutex> lock(guard);
    const auto found = combinations.find(pair);
    if (found != combinations.end()) {
      slot = Recent{pair, found->second};
      return slot.mark;
    }
  }
  const auto gil = PyGILState_Ensure();
  const uint32_t mark = number(PyObject_CallFunction(combine_marks, "II", inner, outer));
  PyGILState_Release(gil);
  if (mark == 0) {
    return inner; // interrupted: asked again the next time
  }
  std::unique_lock<std::shared_mutex> lock(guard);
  combinations.emplace(pair, mark);
  return mark;
}

Origin current_origin(bool backward) {
  PyThreadState* state = PyGILState_GetThisThreadState();
  uint32_t around; // what was said of the modules around it
  const uint32_t module = current_module(state, around);
  uint32_t mark = mark_of(state);
  if (backward) {
    mark = combined(mark, starters_mark());
  }
  mark = combined(mark, around);
  return {module, current_source(state), mark << 1 | (backward ? 1u : 0u)};
}

void follow_marks(void* now, void* combine) {
  Py_XINCREF(static_cast<PyObject*>(now));
  Py_XINCREF(static_cast<PyObject*>(combine));
  combine_marks = static_cast<PyObject*>(combine);
  mark_now = static_cast<PyObject*>(now);
}

void set_mark(uint32_t mark) {
  thread_mark = mark;
  thread_switches = PyThreadState_Get()->context_ver;
  stash(mark);
}

} // namespace genie
