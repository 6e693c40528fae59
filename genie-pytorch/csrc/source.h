// Where in the user's program an operator was issued: an interned integer per command.
#pragma once

#include <cstdint>
#include <string>

namespace genie {

// The innermost Python frame that is not the framework's own code; 0 when there is none. Needs no GIL.
uint32_t current_source();

// "path/to/file.py:12"; the caller holds the GIL.
std::string source_text(uint32_t id);

// Code under these directories is never the user's.
void ignore_sources_under(const std::string& prefix);

// The module (path, class) this thread is inside of, as an interned integer; 0 is none.
uint32_t current_module();
void set_current_module(uint32_t id);

} // namespace genie
