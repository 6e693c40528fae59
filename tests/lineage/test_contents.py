"""Uploads on disk: as long as somebody holds them, within a bound, and gone with the process whatever ended it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from genie.errors import LimitExceeded
from genie.lineage.contents import Contents

BYTES = bytes(range(256)) * 1024


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and path.name != "lock"]


def test_bytes_are_kept_until_nobody_holds_them(tmp_path: Path) -> None:
    contents = Contents(tmp_path, 1 << 20)
    kept = contents.put(memoryview(BYTES), shared=False)
    assert kept.view() == BYTES
    assert contents.bytes == len(BYTES)
    del kept
    gc.collect()
    assert contents.bytes == 0
    assert files(tmp_path) == []


def test_what_is_shared_is_kept_once(tmp_path: Path) -> None:
    contents = Contents(tmp_path, 1 << 20)
    one, two = (contents.put(memoryview(BYTES), shared=True) for _ in range(2))
    other = contents.put(memoryview(BYTES[1:]), shared=True)
    assert one is two
    assert other is not one
    assert contents.bytes == 2 * len(BYTES) - 1


def test_the_bound_holds_and_room_comes_back(tmp_path: Path) -> None:
    contents = Contents(tmp_path, len(BYTES))
    kept = contents.put(memoryview(BYTES), shared=False)
    with pytest.raises(LimitExceeded, match="recovery_disk_bytes"):
        contents.put(memoryview(b"x"), shared=False)
    del kept
    contents.put(memoryview(b"x"), shared=False)


def test_closing_removes_all(tmp_path: Path) -> None:
    contents = Contents(tmp_path, 1 << 20)
    kept = contents.put(memoryview(BYTES), shared=False)
    contents.close()
    contents.close()
    assert list(tmp_path.iterdir()) == []
    del kept


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    alive = Contents(tmp_path, 1 << 20)
    kept = alive.put(memoryview(BYTES), shared=False)
    program = (
        "import os, signal, sys; from pathlib import Path; from genie.lineage.contents import Contents;"
        "contents = Contents(Path(sys.argv[1]), 1 << 20);"
        "kept = contents.put(memoryview(b'x' * 99), shared=False);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    other = Contents(tmp_path, 1 << 20)
    assert len(list(tmp_path.iterdir())) == 2  # the two that live
    assert kept.view() == BYTES
    other.close()


def test_a_forked_child_removes_nothing(tmp_path: Path) -> None:
    contents = Contents(tmp_path, 1 << 20)
    kept = contents.put(memoryview(BYTES), shared=False)
    child = os.fork()
    if child == 0:
        del kept
        contents.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert kept.view() == BYTES
