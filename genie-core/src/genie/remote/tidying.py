"""Memory that ended sessions leave to the interpreter and to the C library, given back to the system.

A session's objects refer to each other in circles, which only the garbage collector finds, and what it frees stays with
the C library's many heaps, one for every few threads: after thousands of sessions a node would look as if it leaked.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable


def settle() -> None:
    """What there is now stays: collections to come need not look at it."""
    gc.collect()
    gc.freeze()


def tidy() -> None:
    gc.collect()
    _trim(0)


def _find() -> Callable[[int], int]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except AttributeError:  # a C library that has none
        return lambda _: 0


_trim = _find()
