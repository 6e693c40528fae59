"""Where a node puts its Unix socket, and what nodes left there that were killed."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import tempfile
import time
from pathlib import Path

SOCKET = "node.sock"
_PREFIX = "genie-"
_SETTLED_SECONDS = 60.0  # a younger socket may be about to be listened at
_MOST = 256  # that are looked at


def own_directory() -> str | None:
    """A new directory for this user alone, if one can be made. Those of nodes that are dead go."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    # A socket's path is short; a longer directory is no use.
    for parent in (runtime if 0 < len(runtime) < 60 else None, None):
        with contextlib.suppress(OSError):
            made = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)  # mode 0700
            _tidy(Path(made).parent)
            return made
    return None


def _tidy(parent: Path) -> None:
    bound = _bound()
    with os.scandir(parent) as entries:
        there = [Path(entry.path) for entry in entries if entry.name.startswith(_PREFIX)]
    for directory in there[:_MOST]:
        if str(directory / SOCKET) not in bound:
            with contextlib.suppress(OSError):
                _remove_if_left(directory)


def _remove_if_left(directory: Path) -> None:
    """Where nothing but a socket of this user's is that nobody listens at."""
    seen = directory.lstat()
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.getuid() or os.listdir(directory) != [SOCKET]:
        return
    path = directory / SOCKET
    its = path.lstat()
    if not stat.S_ISSOCK(its.st_mode) or time.time() - its.st_mtime < _SETTLED_SECONDS:
        return
    with socket.socket(socket.AF_UNIX) as probe:  # in another network namespace somebody may
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            directory.rmdir()


def _bound() -> frozenset[str]:
    """The paths that processes of this network namespace have sockets at: those need not be knocked at."""
    try:
        return frozenset(line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if "/" in line)
    except OSError:
        return frozenset()
