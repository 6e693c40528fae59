"""What a node asks of the C library."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from genie.remote.node.tidying import heap_bytes, tidy

pytestmark = pytest.mark.skipif(not heap_bytes(), reason="this C library does not tell what its heaps hold")

# Threads that have something of their own all at once; then what the library says of its heaps.
_MANY_THREADS = textwrap.dedent("""
    import ctypes, os, sys, threading
    from genie.remote.node.tidying import few_heaps

    few_heaps()
    together = threading.Barrier(33)

    def work():
        held = [bytes(5000) for _ in range(10)]
        together.wait(30)
        together.wait(30)

    for _ in range(32):
        threading.Thread(target=work).start()
    together.wait(30)
    library = ctypes.CDLL(None)
    library.fopen.restype = ctypes.c_void_p
    out = ctypes.c_void_p(library.fopen(sys.argv[1].encode(), b"w"))
    library.malloc_info(0, out)
    library.fclose(out)
    together.wait(30)
    print(open(sys.argv[1]).read().count("<heap nr="))
""")


def _heaps(path: str, **settings: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"} | settings
    command = [sys.executable, "-c", _MANY_THREADS, path]
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60).stdout)


def test_there_are_as_many_heaps_as_cores_or_what_the_user_says(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "told")
    assert _heaps(path) <= max(2, os.cpu_count() or 1)
    assert _heaps(path, MALLOC_ARENA_MAX="5") == 5


def test_what_is_in_use_is_told_and_what_was_freed_is_not() -> None:
    tidy()
    before = heap_bytes()
    held = [bytes(10_000) for _ in range(1000)]
    assert heap_bytes() - before > 9_000_000
    del held
    tidy()
    assert heap_bytes() - before < 5_000_000
