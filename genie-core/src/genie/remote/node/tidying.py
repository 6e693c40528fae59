"""Memory that ended sessions leave to the interpreter and to the C library, given back to the system.

A session's objects refer to each other in circles, which only the garbage collector finds, and what it frees stays with
the C library's many heaps, one for every few threads: after thousands of sessions a node would look as if it leaked.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from typing import Any

_ARENA_MAX = -8  # mallopt's number for how many heaps there may be
_FEW = 2


def few_heaps() -> None:
    """One for every core: the C library would have eight, each of which keeps what lies between two values that live.
    To be called before there are threads. What the user says of it in the environment holds."""
    if "MALLOC_ARENA_MAX" not in os.environ and "arena_max" not in os.environ.get("GLIBC_TUNABLES", ""):
        _set(_ARENA_MAX, max(_FEW, os.cpu_count() or 1))


def settle() -> None:
    """What there is now stays: collections to come need not look at it."""
    gc.collect()
    gc.freeze()


def tidy() -> None:
    gc.collect()
    _trim(0)


class _Mallinfo(ctypes.Structure):
    """``struct mallinfo2`` of <malloc.h>."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def heap_bytes() -> int:
    """That are in use, of all the C library's heaps; 0 where it does not tell. What was freed is not counted, but for
    a little that threads keep for themselves."""
    told = _info()
    return 0 if told is None else int(told.uordblks)


def _find(name: str, result: Any = ctypes.c_int) -> Callable[..., Any]:
    try:
        found = ctypes.CDLL(None)[name]
    except AttributeError:  # a C library that has none
        return lambda *_: None
    found.restype = result
    return found


_trim, _set, _info = _find("malloc_trim"), _find("mallopt"), _find("mallinfo2", _Mallinfo)
