"""Files that are there whole or not at all, and say what their bytes should be."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import blake3
import msgspec

from genie.errors import CheckpointError, GenieError
from genie.interfaces import Buffer
from genie.snapshots import Snapshot, fault

UNFINISHED: Final = ".unfinished"
_MAGIC: Final = b"genie checkpoint 1\n"
_MANY_THREADS: Final = 1 << 20  # bytes from which hashing in several threads pays


class Content(msgspec.Struct, frozen=True, array_like=True):
    """A memory's bytes: in a file named by their digest or, if ``offset`` is not negative, in the checkpoint's own,
    whose digest is of them, too."""

    memory: int
    version: int
    digest: bytes
    size: int
    offset: int = -1


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    made: float
    note: bytes
    snapshot: Snapshot
    contents: tuple[Content, ...]


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Manifest)


def digest(data: Buffer) -> bytes:
    threads = blake3.blake3.AUTO if len(data) >= _MANY_THREADS else 1
    return blake3.blake3(data, max_threads=threads).digest()


@contextlib.contextmanager
def told(path: Path, doing: str) -> Iterator[None]:
    """Errors of the system as ours; some of ours are of these classes, too."""
    try:
        yield
    except GenieError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(
            f"{doing}: {reason}", where=str(path), hint="the checkpoints there are as they were"
        ) from error


class Locked:
    """A directory that is one process's as long as this lives."""

    def __init__(self, directory: Path) -> None:
        with told(directory, "no checkpoints can be kept there"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._file)
                raise CheckpointError(
                    "another process keeps its checkpoints there", where=str(directory), hint="give each its own"
                ) from None

    def release(self) -> None:
        os.close(self._file)


def write(directory: Path, name: Callable[[], str], parts: Iterable[Buffer], *, durable: bool = True) -> None:
    """A file of these bytes; what it is called is asked when all is written. If it is to be ``durable``, it is on the
    disk when this returns."""
    unfinished = directory / f"{os.getpid()}{UNFINISHED}"
    try:
        file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            for part in parts:
                _write_all(file, memoryview(part))
            if durable:
                os.fsync(file)
        finally:
            os.close(file)
        unfinished.replace(directory / name())
        if durable:
            sync(directory)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def _write_all(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]


def sync(directory: Path) -> None:
    """Renamed and removed files are so after a power cut, too."""
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def size_of(snapshot: Snapshot, note: bytes) -> int:
    """Bytes that their manifest takes, at most."""
    return 1024 + len(_encode(snapshot)) + len(note) + 96 * len(snapshot.memories)


def write_manifest(
    directory: Path, name: str, manifest: Manifest, small: Iterable[Buffer], *, durable: bool = True
) -> None:
    """The checkpoint's own file: magic, digest of the rest, size of the manifest, manifest, small contents."""
    body = _encode(manifest)
    head = len(body).to_bytes(8, "little") + body
    rest = b"".join((head, *small))
    write(directory, lambda: name, (_MAGIC, digest(rest), rest), durable=durable)


def read_manifest(path: Path) -> tuple[Manifest, memoryview]:
    """And the small contents. Raises :class:`CheckpointError`."""
    with told(path, "a checkpoint cannot be read"):
        data = memoryview(path.read_bytes())
    start = len(_MAGIC) + 32
    rest = data[start:]
    if len(rest) < 8 or bytes(data[:start]) != _MAGIC + digest(rest):
        raise CheckpointError("a checkpoint is damaged: its bytes are not those that were written", where=str(path))
    end = 8 + int.from_bytes(rest[:8], "little")
    try:
        manifest = _decoder.decode(rest[8:end])
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:
        raise CheckpointError(f"a checkpoint is none of this version: {error}", where=str(path)) from error
    if wrong := fault(manifest.snapshot):
        raise CheckpointError(f"a checkpoint is of no session: {wrong}", where=str(path))
    return manifest, rest[end:]


def read_content(path: Path, content: Content) -> memoryview:
    """A file's bytes, if they are what was written. Raises :class:`CheckpointError`, and removes what is damaged: the
    next checkpoint brings it anew."""
    with told(path, "part of a checkpoint cannot be read"), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)) if size else memoryview(b"")
    if len(data) != content.size or digest(data) != content.digest:
        with contextlib.suppress(OSError):
            path.unlink()
        raise CheckpointError(
            f"a checkpoint is damaged: memory {content.memory} is not what was written", where=str(path)
        )
    return data
