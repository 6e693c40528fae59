#include "frames.h"

#include "source.h"

#include <mutex>
#include <shared_mutex>
#include <unordered_map>
#include <vector>

namespace genie {

namespace {

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

uint32_t current_source(PyThreadState* state) {
  if (source_id != 0) {
    return source_id;
  }
#ifdef GENIE_RAW_FRAMES
  for (auto* frame = top_frame(state); frame != nullptr; frame = frame->previous) {
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
#else
  (void)state;
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

void set_source(uint32_t source) {
  source_id = source;
}

} // namespace genie
