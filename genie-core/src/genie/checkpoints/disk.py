"""Checkpoints in a directory: a file per checkpoint, and one per large content, which checkpoints share."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

import blake3
import structlog

from genie.checkpoints.files import (
    UNFINISHED,
    Content,
    Locked,
    Manifest,
    read_content,
    read_manifest,
    size_of,
    sync,
    told,
    write,
    write_manifest,
)
from genie.checkpoints.store import Checkpoint
from genie.errors import CheckpointError
from genie.interfaces import Buffer, Session, Snapshotting
from genie.snapshots import MemoryState, Snapshot

log = structlog.get_logger("genie.checkpoints")

_SMALL: Final = 16 << 10  # contents below are in the checkpoint's own file: a file each would cost more than they do
_PIECE: Final = 16 << 20  # bytes of a memory that are read at a time
_SUFFIX: Final = ".checkpoint"
_Digest: TypeAlias = bytes  # `bytes` is an attribute below


class DiskCheckpoints:
    """See :class:`genie.checkpoints.CheckpointStore`. They outlive the process: the next to open the directory finds
    them.

    At most ``max_bytes`` are on the disk (0: no limit) and ``keep`` checkpoints, the oldest go first. While one is
    written, the one before it stays: there must be room for what changed between both. Without ``weights``, contents
    that sessions know by digest are not kept: who loads needs a node that has them. Unless ``durable``, nothing waits
    for the disk: checkpoints outlive the process, and not a crash of the host.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        max_bytes: int = 0,
        keep: int = 2,
        weights: bool = True,
        durable: bool = True,
    ) -> None:
        if keep < 1 or max_bytes < 0:
            raise CheckpointError(f"keep={keep} checkpoints in {max_bytes} bytes: at least one is kept")
        self._directory = Path(directory)
        self._contents = self._directory / "contents"
        self._most = max_bytes
        self._keep = keep
        self._weights = weights
        self._durable = durable
        self._lock = threading.Lock()
        self._closed = False
        self._locked = Locked(self._directory)
        self._manifests: dict[int, Manifest] = {}  # the oldest first
        try:
            with told(self._directory, "no checkpoints can be kept there"):
                self._contents.mkdir(mode=0o700, exist_ok=True)
                self._open()
        except BaseException:
            self._locked.release()
            raise

    def _open(self) -> None:
        for path in sorted(self._directory.glob(f"*{_SUFFIX}")):
            try:
                self._manifests[int(path.stem)], _ = read_manifest(path)
            except (CheckpointError, ValueError) as error:
                log.warning("damaged checkpoint removed", path=str(path), reason=str(error))
                path.unlink()
        self._next = max(self._manifests, default=0) + 1
        for unfinished in (*self._directory.glob(f"*{UNFINISHED}"), *self._contents.glob(f"*{UNFINISHED}")):
            unfinished.unlink()
        self._collect()

    # --- saving -------------------------------------------------------------------------------------

    def save(self, session: Session, note: bytes = b"") -> Checkpoint:
        if not isinstance(session, Snapshotting):
            raise CheckpointError(f"the session on {session.device.id} tells no state", hint="its backend cannot")
        with self._lock:
            self._check()
            number, self._next = self._next, self._next + 1
            snapshot = session.snapshot()
            try:
                with told(self._directory, "a checkpoint cannot be written"):
                    manifest = self._write(number, session, snapshot, note)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._collect()
                raise
            self._manifests[number] = manifest
            with contextlib.suppress(OSError):  # it is there; what is too much goes the next time
                self._forget(list(self._manifests)[: -self._keep])
            return _checkpoint(number, manifest)

    def _write(self, number: int, session: Snapshotting, snapshot: Snapshot, note: bytes) -> Manifest:
        last, known = self._last_small(), self._known()
        small: list[Buffer] = []
        contents: list[Content] = []
        missing: list[MemoryState] = []
        offset = 0
        for memory in snapshot.memories:
            if memory.digest and not self._weights:
                continue
            if memory.bytes < _SMALL:
                data = last.get((memory.id, memory.version))
                if data is None:
                    data = memoryview(bytes(session.read_memory(memory.id, version=memory.version)))
                small.append(data)
                contents.append(Content(memory.id, memory.version, b"", memory.bytes, offset))
                offset += memory.bytes
            elif (here := self._here(memory, known)) is not None:
                contents.append(here)
            else:
                missing.append(memory)
        needed = offset + sum(memory.bytes for memory in missing) + size_of(snapshot, note)
        self._make_room(needed, {content.digest for content in contents})
        contents.extend(self._read(session, memory) for memory in missing)
        manifest = Manifest(made=time.time(), note=note, snapshot=snapshot, contents=tuple(contents))
        write_manifest(self._directory, f"{number:016d}{_SUFFIX}", manifest, small, durable=self._durable)
        return manifest

    def _last_small(self) -> dict[tuple[int, int], memoryview]:
        """The small contents of the newest checkpoint, by memory and version."""
        for number in reversed(self._manifests):
            with contextlib.suppress(CheckpointError):  # damaged: the session still has them
                manifest, small = read_manifest(self._file(number))
                return {
                    (each.memory, each.version): small[each.offset : each.offset + each.size]
                    for each in manifest.contents
                    if each.offset >= 0
                }
            break
        return {}

    def _known(self) -> dict[tuple[int, int], bytes]:
        """Digests of the large contents, by memory and version."""
        return {
            (content.memory, content.version): content.digest
            for manifest in self._manifests.values()
            for content in manifest.contents
            if content.offset < 0
        }

    def _here(self, memory: MemoryState, known: dict[tuple[int, int], bytes]) -> Content | None:
        """Where its bytes are on the disk, if they are."""
        found = known.get((memory.id, memory.version)) or memory.digest
        if not found or self._size(found) != memory.bytes:
            return None
        return Content(memory.id, memory.version, found, memory.bytes)

    def _size(self, found: bytes) -> int:
        try:
            return self._path(found).stat().st_size
        except FileNotFoundError:
            return -1

    def _read(self, session: Snapshotting, memory: MemoryState) -> Content:
        """Bring its bytes to the disk."""
        hasher = blake3.blake3(max_threads=blake3.blake3.AUTO)
        buffer = memoryview(bytearray(min(memory.bytes, _PIECE)))

        def parts() -> Iterator[Buffer]:
            for offset in range(0, memory.bytes, _PIECE):
                part = buffer[: min(_PIECE, memory.bytes - offset)]
                session.read_memory(memory.id, part, offset, version=memory.version)
                hasher.update(part)
                yield part

        write(self._contents, hasher.hexdigest, parts(), durable=self._durable)
        return Content(memory.id, memory.version, hasher.digest(), memory.bytes)

    # --- loading ------------------------------------------------------------------------------------

    def load(self, checkpoint: Checkpoint, session: Session) -> None:
        if not isinstance(session, Snapshotting):
            raise CheckpointError(f"the session on {session.device.id} takes no state", hint="its backend cannot")
        with self._lock:
            manifest, small = self._manifest(checkpoint)
            contents = {content.memory: content for content in manifest.contents}

            def memories(memory: MemoryState) -> Buffer | None:
                content = contents.get(memory.id)
                return None if content is None else self._part(content, small)

            session.restore(manifest.snapshot, memories)

    def verify(self, checkpoint: Checkpoint) -> None:
        """Read all of it. Raises :class:`CheckpointError` if it is damaged."""
        with self._lock:
            manifest, small = self._manifest(checkpoint)
            for content in manifest.contents:
                self._part(content, small)

    def _manifest(self, checkpoint: Checkpoint) -> tuple[Manifest, memoryview]:
        self._check()
        if checkpoint.id not in self._manifests:
            raise CheckpointError(
                f"checkpoint {checkpoint.id} is not kept any more", where=str(self._directory), hint="raise `keep`"
            )
        return read_manifest(self._file(checkpoint.id))

    def _part(self, content: Content, small: memoryview) -> memoryview:
        if content.offset < 0:
            return read_content(self._path(content.digest), content)
        return small[content.offset : content.offset + content.size]

    # --- room ---------------------------------------------------------------------------------------

    def drop(self, checkpoint: Checkpoint) -> None:
        with self._lock, told(self._directory, "a checkpoint cannot be removed"):
            self._check()
            self._forget([checkpoint.id] if checkpoint.id in self._manifests else [])

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        with self._lock:
            return tuple(_checkpoint(number, manifest) for number, manifest in self._manifests.items())

    @property
    def bytes(self) -> int:
        """On the disk now."""
        files = (*self._directory.glob(f"*{_SUFFIX}"), *self._contents.iterdir())
        return sum(path.stat().st_size for path in files)

    def _make_room(self, needed: int, using: set[_Digest]) -> None:
        """For so many bytes more; contents with these digests stay."""
        if not self._most:
            return
        while len(self._manifests) > 1 and self.bytes + needed > self._most:
            self._forget([next(iter(self._manifests))], using)
        taken = self.bytes
        if taken + needed > self._most:
            before = f", and {taken} are taken by the one before it, which stays until this one is whole"
            raise CheckpointError(
                f"a checkpoint needs {needed} bytes of the disk; {self._most} are allowed{before if taken else ''}",
                where=str(self._directory),
                hint="raise `max_bytes`",
            )

    def _forget(self, numbers: Iterable[int], using: Collection[_Digest] = ()) -> None:
        for number in numbers:
            self._file(number).unlink(missing_ok=True)
            del self._manifests[number]
        if self._durable:
            sync(self._directory)
        self._collect(using)

    def _collect(self, using: Collection[_Digest] = ()) -> None:
        """Remove what no checkpoint has."""
        needed = {self._path(digest) for digest in using if digest}
        for manifest in self._manifests.values():
            needed.update(self._path(content.digest) for content in manifest.contents if content.offset < 0)
        for path in self._contents.iterdir():
            if path not in needed:
                path.unlink()

    def _path(self, digest: _Digest) -> Path:
        return self._contents / digest.hex()

    def _file(self, number: int) -> Path:
        return self._directory / f"{number:016d}{_SUFFIX}"

    def _check(self) -> None:
        if self._closed:
            raise CheckpointError("the store is closed", where=str(self._directory))

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._locked.release()


def _checkpoint(number: int, manifest: Manifest) -> Checkpoint:
    return Checkpoint(id=number, snapshot=manifest.snapshot, made=manifest.made, note=manifest.note)
