"""Directories of Unix sockets that nodes left which were killed."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from genie.remote.node import directories


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of a short name, as a socket's path must be."""
    with tempfile.TemporaryDirectory() as made:
        monkeypatch.setenv("XDG_RUNTIME_DIR", made)
        yield Path(made)


def left(runtime: Path, name: str, *, age: float = 3600.0, listening: bool = False) -> tuple[Path, socket.socket]:
    directory = runtime / name
    directory.mkdir(mode=0o700)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(directory / directories.SOCKET))
    if listening:
        sock.listen()
    else:
        sock.close()
    then = os.stat(directory / directories.SOCKET).st_mtime - age
    os.utime(directory / directories.SOCKET, (then, then))
    return directory, sock


def test_what_a_killed_node_left_goes_when_the_next_begins(runtime: Path) -> None:
    gone, _ = left(runtime, "genie-gone")
    made = directories.own_directory()
    assert made is not None
    assert sorted(runtime.iterdir()) == [Path(made)]
    assert not gone.exists()


def test_what_somebody_may_use_stays(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serves, sock = left(runtime, "genie-serves", listening=True)
    begins, _ = left(runtime, "genie-begins", age=0.0)
    other, _ = left(runtime, "other")
    more, _ = left(runtime, "genie-more")
    (more / "notes").write_text("")
    (runtime / "genie-file").write_text("")
    (runtime / "genie-empty").mkdir()
    before = set(runtime.iterdir())
    first = directories.own_directory()
    monkeypatch.setattr(directories, "_bound", frozenset)  # as for a node in another network namespace
    second = directories.own_directory()
    assert set(runtime.iterdir()) == before | {Path(str(first)), Path(str(second))}
    assert all((each / directories.SOCKET).is_socket() for each in (serves, begins, other, more))
    sock.close()
