// Where in the user's program an operator was issued: an interned integer per command.
#pragma once

#include <Python.h>

#include <cstdint>
#include <string>

namespace genie {

// The innermost Python frame that is not the framework's own code; 0 when there is none. Needs no GIL.
uint32_t current_source(PyThreadState* state = PyGILState_GetThisThreadState());

// "path/to/file.py:12"; the caller holds the GIL.
std::string source_text(uint32_t id);

// A source known by its text, not by a frame.
uint32_t source_named(const std::string& text);

// Overrides what the frames say on this thread; 0 lets them speak again.
void set_source(uint32_t source);

// Code under these directories is never the user's.
void ignore_sources_under(const std::string& prefix);
bool is_user_file(const std::string& path);

// Clears Python's error, of a question that may go unanswered. A Ctrl-C that struck there is not lost: it strikes again.
// Whether there was one. The caller holds the GIL.
bool clear_error();

} // namespace genie
