// What an operator was issued from: the module or the optimizer this thread is inside of, and what the user said of the
// modules around it. Read off the Python frames: hooks would cost every call, and stand in torch.compile's way.
#pragma once

#include <Python.h>

#include <cstdint>

namespace genie {

// The innermost module or optimizer, as an interned integer; 0 is none. `mark`: what was said of all modules this
// thread is inside of. Needs no GIL.
uint32_t current_module(PyThreadState* state, uint32_t& mark);

// `call` is the code object of torch.nn.Module.__call__, whose first local is the module; `learn` is called with the
// GIL for a module not seen before, with the modules it is inside of, innermost first, and gives its number.
void follow_modules(void* call, void* learn);
// `step` is the code object around every Optimizer.step, whose first local is the tuple of its arguments; `learn` is
// called with an optimizer not seen before, and gives its number.
void follow_optimizers(void* step, void* learn);
// The module or optimizer at this address is gone, or is known by another number.
void forget_module(uintptr_t address);
// From now on what is issued inside of this module carries the mark; 0 is none.
void mark_module(uintptr_t address, uint32_t mark);
// Overrides on this thread which module the frames say, and adds a mark to theirs; 0 lets the frames speak again.
void set_module(uint32_t module, uint32_t mark);

} // namespace genie
