// Where in the user's program an operator was issued: an interned integer per command.
#pragma once

#include <cstdint>
#include <string>

namespace genie {

// The innermost Python frame that is not the framework's own code; 0 when there is none. Needs no GIL.
uint32_t current_source();

// "path/to/file.py:12"; the caller holds the GIL.
std::string source_text(uint32_t id);

// A source known by its text, not by a frame.
uint32_t source_named(const std::string& text);

// Code under these directories is never the user's.
void ignore_sources_under(const std::string& prefix);
bool is_user_file(const std::string& path);

// Clears Python's error, of a question that may go unanswered. A Ctrl-C that struck there is not lost: it strikes again.
// Whether there was one. The caller holds the GIL.
bool clear_error();

// The module (path, class) this thread is inside of, as an interned integer; 0 is none. Read off the Python frames
// too: hooks would cost every module call, and stand in torch.compile's way. Needs no GIL.
uint32_t current_module();

// `code` is the code object of torch.nn.Module.__call__, whose first local is the module; `learn` is called with the
// GIL for a module not seen before, with the modules it is inside of, innermost first, and gives its number.
void follow_modules(void* code, void* learn);
// The module at this address is gone.
void forget_module(uintptr_t address);
// Overrides what the frames say on this thread; 0 lets them speak again.
void set_origin(uint32_t module, uint32_t source);

} // namespace genie
