"""Large uploads kept on disk, so that they can be sent again and the program's memory is not doubled."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import tempfile
import threading
import weakref
from pathlib import Path
from weakref import WeakValueDictionary

import blake3

from genie.errors import LimitExceeded
from genie.interfaces import Buffer

_LOCK = "lock"
_MANY_THREADS = 1 << 20  # bytes from which hashing in several threads pays


class Content:
    """Bytes in a file, which goes when nobody holds this any more."""

    def __init__(self, path: Path, size: int) -> None:
        self.size = size
        self._path = path

    def view(self) -> memoryview:
        """The bytes, mapped from the file."""
        if not self.size:
            return memoryview(b"")
        with self._path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ))


class Contents:
    """At most ``limit`` bytes, in a directory of their own below ``directory``. It goes with this object, at the end of
    the process, or, where that was killed, when the next one makes its own. Any thread may call."""

    def __init__(self, directory: Path, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._known: WeakValueDictionary[bytes, Content] = WeakValueDictionary()
        self._made = 0
        self._used = [0]  # finalizers change it, and hold no reference to this object
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(directory)
        self.directory, held = _own(directory)
        self._end = weakref.finalize(self, _remove_all, self.directory, held, os.getpid())

    @property
    def bytes(self) -> int:
        return self._used[0]

    def put(self, data: memoryview, *, shared: bool) -> Content:
        """Keep it; what is ``shared`` only once. Raises :class:`LimitExceeded`, also for a disk that is full, and
        :class:`OSError`."""
        threads = blake3.blake3.AUTO if len(data) >= _MANY_THREADS else 1
        digest = blake3.blake3(data, max_threads=threads).digest() if shared else b""
        with self._lock:
            known = self._known.get(digest) if shared else None
            if known is not None:
                return known
            if self._used[0] + len(data) > self._limit:
                raise LimitExceeded(
                    f"{self._used[0] + len(data)} bytes to keep of what was uploaded; recovery_disk_bytes allows "
                    f"{self._limit}"
                )
            path = self.directory / str(self._made)
            self._made += 1
            self._write(path, data)
            content = Content(path, len(data))
            self._used[0] += len(data)
            weakref.finalize(content, _remove, path, len(data), self._used, os.getpid()).atexit = False
            if shared:
                self._known[digest] = content
            return content

    def _write(self, path: Path, data: Buffer) -> None:
        try:
            with path.open("xb", buffering=0) as file:
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
        except OSError as error:
            path.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise LimitExceeded(f"the disk is full: {path.parent}") from error
            raise

    def close(self) -> None:
        self._end()


def _remove(path: Path, size: int, used: list[int], owner: int) -> None:
    if os.getpid() == owner:  # and not a child that it forked
        used[0] -= size
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _remove_all(directory: Path, held: int, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(held)


def _own(directory: Path) -> tuple[Path, int]:
    """A new one below, and its lock, which is held as long as it is open."""
    while True:
        own = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=directory))
        held = os.open(own / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(held, fcntl.LOCK_EX)
        if os.fstat(held).st_nlink:  # else another process took it for one that was left
            return own, held
        os.close(held)


def _sweep(directory: Path) -> None:
    """Remove what processes left that were killed."""
    for left in directory.iterdir():
        with contextlib.suppress(OSError):
            held = os.open(left / _LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(held)
