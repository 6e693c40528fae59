// What the user says an operator is for (genie.mark), and whether a backward pass issued it.
#pragma once

#include <cstdint>

namespace genie {

// Where a command comes from.
struct Origin {
  uint32_t module; // see modules.h
  uint32_t source; // see source.h
  uint32_t scope;  // number of the mark << 1 | whether a backward pass issued it
};

// Needs no GIL.
Origin current_origin(bool backward);

// Marks are numbers that the frontend gives; 0 says nothing. `now` gives the mark in force in the calling thread's
// context, `combine` the number of two marks: what the first says, and of the second what the first is silent about.
void follow_marks(void* now, void* combine);
// The calling thread's mark, from now on and as long as it stays in its context. The caller holds the GIL.
void set_mark(uint32_t mark);
uint32_t combined(uint32_t inner, uint32_t outer);

} // namespace genie
