// The interpreter's frames, read without the GIL: only the calling thread's, which is in the middle of a call.
// Include it first: what it needs of Python's headers is decided by the first that includes them.
#pragma once

#define Py_BUILD_CORE 1
#include <Python.h>
#if PY_VERSION_HEX >= 0x030B0000 && PY_VERSION_HEX < 0x030E0000
#include <internal/pycore_frame.h>
#define GENIE_RAW_FRAMES 1
#endif
#undef Py_BUILD_CORE

#ifdef GENIE_RAW_FRAMES

namespace genie {

using Frame = _PyInterpreterFrame;

inline Frame* top_frame(PyThreadState* state) {
  if (state == nullptr) {
    return nullptr;
  }
#if PY_VERSION_HEX >= 0x030D0000
  return state->current_frame;
#else
  return state->cframe == nullptr ? nullptr : state->cframe->current_frame;
#endif
}

inline PyCodeObject* code_of(Frame* frame) {
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* executable = frame->f_executable;
  return executable != nullptr && PyCode_Check(executable) ? reinterpret_cast<PyCodeObject*>(executable) : nullptr;
#else
  return frame->f_code;
#endif
}

// The instruction a frame is at, from the start of its code.
inline int offset_in(Frame* frame, PyCodeObject* code) {
#if PY_VERSION_HEX >= 0x030D0000
  return static_cast<int>(frame->instr_ptr - _PyCode_CODE(code));
#else
  return static_cast<int>(frame->prev_instr - _PyCode_CODE(code));
#endif
}

} // namespace genie

#endif
