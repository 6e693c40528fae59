#define Py_BUILD_CORE 1
#include <Python.h>
#if PY_VERSION_HEX >= 0x030B0000 && PY_VERSION_HEX < 0x030E0000
#include <internal/pycore_frame.h>
#define GENIE_RAW_FRAMES 1
#endif
#undef Py_BUILD_CORE

#include "source.h"

#include <algorithm>
#include <atomic>
#include <iterator>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>
#include <vector>

namespace genie {

namespace {

thread_local uint32_t module_id = 0;
thread_local uint32_t source_id = 0;

std::vector<std::string> ignored;

#ifdef GENIE_RAW_FRAMES

struct Site {
  PyCodeObject* code; // null for a site given by text
  int offset;
  std::string text;
};

// A code object is kept alive once seen, so that its address stays its name.
struct CodeNote {
  bool user;
  std::unordered_map<int, uint32_t> sites; // instruction → source id
};

std::shared_mutex guard;
std::unordered_map<PyCodeObject*, CodeNote> codes;
std::vector<Site> sites{{nullptr, 0, ""}};
std::unordered_map<std::string, uint32_t> named_sites;

_PyInterpreterFrame* top_frame() {
  PyThreadState* state = PyGILState_GetThisThreadState();
  if (state == nullptr) {
    return nullptr;
  }
#if PY_VERSION_HEX >= 0x030D0000
  return state->current_frame;
#else
  return state->cframe == nullptr ? nullptr : state->cframe->current_frame;
#endif
}

// The instruction a frame is at, from the start of its code.
int offset_in(_PyInterpreterFrame* frame, PyCodeObject* code) {
#if PY_VERSION_HEX >= 0x030D0000
  return static_cast<int>(frame->instr_ptr - _PyCode_CODE(code));
#else
  return static_cast<int>(frame->prev_instr - _PyCode_CODE(code));
#endif
}

PyCodeObject* code_of(_PyInterpreterFrame* frame) {
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* executable = frame->f_executable;
  return executable != nullptr && PyCode_Check(executable) ? reinterpret_cast<PyCodeObject*>(executable) : nullptr;
#else
  return frame->f_code;
#endif
}

bool is_user(PyCodeObject* code) {
  const char* name = PyUnicode_AsUTF8(code->co_filename);
  if (name == nullptr) {
    PyErr_Clear();
    return false;
  }
  return is_user_file(name);
}

uint32_t learn(PyCodeObject* code, int offset) {
  const auto gil = PyGILState_Ensure();
  uint32_t id = 0;
  {
    std::unique_lock<std::shared_mutex> lock(guard);
    auto found = codes.find(code);
    if (found == codes.end()) {
      Py_INCREF(reinterpret_cast<PyObject*>(code));
      found = codes.emplace(code, CodeNote{is_user(code), {}}).first;
    }
    if (found->second.user) {
      auto [site, fresh] = found->second.sites.emplace(offset, static_cast<uint32_t>(sites.size()));
      if (fresh) {
        sites.push_back({code, offset, ""});
      }
      id = site->second;
    }
  }
  PyGILState_Release(gil);
  return id;
}

// --- modules

PyCodeObject* module_call = nullptr;
PyObject* learn_modules = nullptr;
std::unordered_map<PyObject*, uint32_t> module_numbers;
// Moves when a module goes, so that no thread takes a new module at its address for the old one.
std::atomic<uint64_t> module_generation{1};

struct SeenModule {
  PyObject* module = nullptr;
  uint32_t id = 0;
};
thread_local uint64_t seen_generation = 0;
thread_local SeenModule seen_modules[256];

uint32_t learn_module(_PyInterpreterFrame* frame) {
  PyObject* module = frame->localsplus[0];
  {
    std::shared_lock<std::shared_mutex> lock(guard);
    const auto found = module_numbers.find(module);
    if (found != module_numbers.end()) {
      return found->second;
    }
  }
  const auto gil = PyGILState_Ensure();
  uint32_t id = 0;
  PyObject* modules = PyList_New(0);
  for (; modules != nullptr && frame != nullptr; frame = frame->previous) {
    if (code_of(frame) == module_call) {
      PyList_Append(modules, frame->localsplus[0]);
    }
  }
  PyObject* number = modules == nullptr ? nullptr : PyObject_CallOneArg(learn_modules, modules);
  if (number != nullptr) {
    id = static_cast<uint32_t>(PyLong_AsUnsignedLong(number));
  }
  // A module whose name can't be told has none: recording must not fail for that.
  const bool interrupted = clear_error();
  Py_XDECREF(number);
  Py_XDECREF(modules);
  PyGILState_Release(gil);
  if (interrupted) {
    return 0;
  }
  std::unique_lock<std::shared_mutex> lock(guard);
  module_numbers[module] = id;
  return id;
}

struct Recent {
  PyCodeObject* code = nullptr;
  int offset = -1;
  uint32_t id = 0;
  bool user = false;
};
// Direct-mapped memory of the last sites, since almost every operator comes from a site seen before.
thread_local Recent recent[1024];

#endif

} // namespace

bool clear_error() {
  const bool interrupted = PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) != 0;
  if (interrupted) {
    PyErr_SetInterrupt();
  }
  PyErr_Clear();
  return interrupted;
}

bool is_user_file(const std::string& path) {
  if (path.empty() || path[0] == '<') {
    return path == "<stdin>" || path == "<string>";
  }
  for (const auto& prefix : ignored) {
    if (path.compare(0, prefix.size(), prefix) == 0) {
      return false;
    }
  }
  return true;
}

uint32_t source_named(const std::string& text) {
#ifdef GENIE_RAW_FRAMES
  std::unique_lock<std::shared_mutex> lock(guard);
  const auto [found, fresh] = named_sites.emplace(text, static_cast<uint32_t>(sites.size()));
  if (fresh) {
    sites.push_back({nullptr, 0, text});
  }
  return found->second;
#else
  (void)text;
  return 0;
#endif
}

uint32_t current_source() {
  if (source_id != 0) {
    return source_id;
  }
#ifdef GENIE_RAW_FRAMES
  for (auto* frame = top_frame(); frame != nullptr; frame = frame->previous) {
    PyCodeObject* code = code_of(frame);
    if (code == nullptr) {
      continue;
    }
    const int offset = offset_in(frame, code);
    const auto key = reinterpret_cast<uintptr_t>(code);
    auto& slot = recent[((key >> 4) ^ (key >> 14) ^ static_cast<uintptr_t>(offset)) & 1023];
    if (slot.code != code || slot.offset != offset) {
      const uint32_t id = learn(code, offset);
      slot = Recent{code, offset, id, id != 0};
    }
    if (slot.user) {
      return slot.id;
    }
  }
#endif
  return 0;
}

std::string source_text(uint32_t id) {
#ifdef GENIE_RAW_FRAMES
  std::shared_lock<std::shared_mutex> lock(guard);
  if (id == 0 || id >= sites.size()) {
    return "";
  }
  const auto& site = sites[id];
  if (site.code == nullptr) {
    return site.text;
  }
  const char* name = PyUnicode_AsUTF8(site.code->co_filename);
  const int line = PyCode_Addr2Line(site.code, site.offset * static_cast<int>(sizeof(_Py_CODEUNIT)));
  return std::string(name == nullptr ? "?" : name) + ":" + std::to_string(line);
#else
  (void)id;
  return "";
#endif
}

void ignore_sources_under(const std::string& prefix) {
  ignored.push_back(prefix);
}

uint32_t current_module() {
  if (module_id != 0) {
    return module_id;
  }
#ifdef GENIE_RAW_FRAMES
  if (module_call == nullptr) {
    return 0;
  }
  const uint64_t now = module_generation.load(std::memory_order_acquire);
  if (seen_generation != now) {
    std::fill(std::begin(seen_modules), std::end(seen_modules), SeenModule{});
    seen_generation = now;
  }
  for (auto* frame = top_frame(); frame != nullptr; frame = frame->previous) {
    if (code_of(frame) != module_call) {
      continue;
    }
    PyObject* module = frame->localsplus[0];
    auto& slot = seen_modules[(reinterpret_cast<uintptr_t>(module) >> 4) & 255];
    if (slot.module != module) {
      slot = SeenModule{module, learn_module(frame)};
    }
    return slot.id;
  }
#endif
  return 0;
}

void follow_modules(void* code, void* learn) {
#ifdef GENIE_RAW_FRAMES
  Py_XINCREF(static_cast<PyObject*>(learn));
  learn_modules = static_cast<PyObject*>(learn);
  Py_XINCREF(static_cast<PyObject*>(code));
  module_call = static_cast<PyCodeObject*>(code);
#else
  (void)code;
  (void)learn;
#endif
}

void forget_module(uintptr_t address) {
#ifdef GENIE_RAW_FRAMES
  std::unique_lock<std::shared_mutex> lock(guard);
  module_numbers.erase(reinterpret_cast<PyObject*>(address));
  module_generation.fetch_add(1, std::memory_order_release);
#else
  (void)address;
#endif
}

void set_origin(uint32_t module, uint32_t source) {
  module_id = module;
  source_id = source;
}

} // namespace genie
