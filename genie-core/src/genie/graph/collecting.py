"""Python's collector of garbage, paused."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_gc(things: int) -> Iterator[None]:
    """For code that makes many ``things`` that live: collections in between would only walk them, over and over."""
    if things < 512 or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
