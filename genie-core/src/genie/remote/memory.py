"""Memory for data on its way."""

from __future__ import annotations

import contextlib
import mmap

_HUGE = 2 << 20


def room(size: int) -> memoryview:
    """Zeroed memory. Large pieces ask for huge pages: the page faults of fresh memory cost more than receiving does."""
    if size < 2 * _HUGE:
        return memoryview(bytearray(size))
    try:
        area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory for {size} bytes: {error.strerror}") from error
    with contextlib.suppress(OSError):  # a kernel without them
        area.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(area)
