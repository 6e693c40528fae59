"""What a node remembers of uploads: contents by digest, in host memory.

Sessions get their values from here: copies, or, where the backend can, one memory that the first who writes copies.
Either way a program may write into its weights and no other session sees it, and no content crosses the wire twice.
Partial contents outlive their connection for a while, so that
an interrupted upload goes on where it stopped. A value on an accelerator stays there when its sessions end, and leaves
when memory is short: the contents here are what it comes back from.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from weakref import WeakValueDictionary

import attrs
import blake3

from genie.errors import ProtocolError
from genie.remote.abilities import Weight
from genie.remote.memory import room

DIGEST_BYTES = 32
_MANY_THREADS = 1 << 20
_LONGEST_WAIT = 10.0  # s, well below any client's own deadline


@attrs.define(eq=False)
class _Entry:
    data: memoryview
    hasher: blake3.blake3
    held: int = 0
    verified: bool = False
    writer: str = ""  # the session that is sending it
    users: set[str] = attrs.field(factory=set)  # sessions between their offer and their commit
    touched: float = 0.0
    # Values made of it, by device and spec, as long as a session has them: device memory is not the store's to keep.
    values: WeakValueDictionary[Hashable, object] = attrs.field(factory=WeakValueDictionary)
    # Those that may leave their device, which go when it is short of memory, and are made again of `data`.
    weights: dict[Hashable, Weight] = attrs.field(factory=dict)

    @property
    def busy(self) -> bool:
        return bool(self.writer or self.users) or any(each.off_device and each.held for each in self.weights.values())

    def forsake(self) -> bool:
        """Whether nobody needs ``data`` any more. Values made of it go, or are their sessions' alone."""
        forsaken: list[Weight] = []
        for each in self.weights.values():
            if not each.forsake():
                for other in forsaken:
                    other.back(self.data)
                return False
            forsaken.append(each)
        self.weights.clear()
        return True


class ContentStore:
    """Contents within ``budget`` bytes, the least recently used go first; partial ones nobody is sending go after
    ``partial_seconds``. ``patience`` (s) is how long another session's sending may stand still. Sessions are named by
    any string; a digest may come with a prefix, by which equal contents are kept apart."""

    def __init__(
        self,
        budget: int,
        partial_seconds: float = 600.0,
        patience: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget = budget
        self._partial_seconds = partial_seconds
        self._patience = patience
        self._clock = clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._used = 0
        self._lock = threading.Condition()
        self._hits = 0

    def begin(self, session: str, digest: bytes, size: int) -> int | None:
        """How much of the content is here already; the rest is ``session``'s to send.

        While another session is sending it, waits for that; not for one that stands still, nor for ever.
        ``None``: it cannot be kept now: upload it directly.
        """
        with self._lock:
            self._expire()
            self._await_writer(session, digest)
            entry = self._entries.get(digest)
            if entry is not None and (len(entry.data) != size or entry.writer not in ("", session)):
                return None
            if entry is None:
                if not self._make_room(size):
                    return None
                try:
                    data = room(size)
                except MemoryError:
                    return None
                threads = blake3.blake3.AUTO if size >= _MANY_THREADS else 1
                entry = self._entries[digest] = _Entry(data, blake3.blake3(max_threads=threads))
                self._used += size
            self._touch(digest, entry)
            if entry.verified:
                self._hits += 1
                entry.users.add(session)
            else:
                entry.writer = session
            return entry.held

    def claim(self, session: str, digest: bytes, size: int) -> bool:
        """Whether the whole content is here; then it stays until :meth:`done`."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None or not entry.verified or len(entry.data) != size:
                return False
            self._touch(digest, entry)
            self._hits += 1
            entry.users.add(session)
            return True

    def room(self, session: str, digest: bytes, offset: int, size: int) -> memoryview:
        """Where the next part of a content goes."""
        with self._lock:
            entry = self._sent_by(session, digest)
            if offset != entry.held or size > len(entry.data) - offset:
                raise ProtocolError(f"{size} bytes at {offset} of a content of which {entry.held} are here")
            return entry.data[offset : offset + size]

    def received(self, session: str, digest: bytes, size: int) -> None:
        with self._lock:
            entry = self._sent_by(session, digest)
            start = entry.held
        part = entry.data[start : start + size]
        entry.hasher.update(part)  # only the writer gets here: not under the lock, others need not wait
        with self._lock:
            entry.held = start + size
            self._touch(digest, entry)
            self._lock.notify_all()

    def take(self, session: str, digest: bytes) -> memoryview:
        """The whole content, verified; it stays until :meth:`done`. Raises :class:`ProtocolError`."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None or (session not in entry.users and entry.writer != session):
                raise ProtocolError("a content was committed that was not offered")
            if not entry.verified:
                if entry.held < len(entry.data):
                    raise ProtocolError(f"a content was committed with {entry.held} of {len(entry.data)} bytes sent")
                if entry.hasher.digest() != digest[-DIGEST_BYTES:]:
                    entry.writer = ""
                    self._remove(digest)
                    self._lock.notify_all()
                    raise ProtocolError("a content does not have the digest it was announced with")
                entry.verified = True
                entry.writer = ""
                entry.users.add(session)
                self._lock.notify_all()
            self._touch(digest, entry)
            return entry.data.toreadonly()

    def value(self, digest: bytes, key: Hashable) -> object | None:
        """What :meth:`keep` was given, if a session still has it."""
        with self._lock:
            entry = self._entries.get(digest)
            return None if entry is None else entry.values.get(key)

    def keep(self, digest: bytes, key: Hashable, value: object) -> None:
        with self._lock:
            entry = self._entries.get(digest)
            if entry is not None and entry.verified:
                entry.values[key] = value

    def keep_weight(self, digest: bytes, key: Hashable, value: Weight) -> None:
        """The same for a value that may leave its device: it stays for the next client while there is memory."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is not None and entry.verified:
                entry.values[key] = entry.weights[key] = value
                value.back(entry.data.toreadonly())

    def replace(self, digest: bytes, data: memoryview) -> None:
        """The same bytes, in memory that is needed anyway and that nobody writes."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is not None and entry.verified and len(data) == len(entry.data):
                entry.data = data

    def done(self, session: str, digest: bytes) -> None:
        with self._lock:
            entry = self._entries.get(digest)
            if entry is not None:
                entry.users.discard(session)

    def release(self, session: str) -> None:
        """The session ended."""
        with self._lock:
            for entry in self._entries.values():
                entry.users.discard(session)
                if entry.writer == session:
                    entry.writer = ""
                    entry.touched = self._clock()
                    self._lock.notify_all()
            for digest in [digest for digest, entry in self._entries.items() if not entry.held and not entry.busy]:
                self._remove(digest)

    def expire(self) -> None:
        with self._lock:
            self._expire()

    def stats(self) -> Mapping[str, int]:
        with self._lock:
            return {
                "content_bytes": self._used,
                "content_entries": len(self._entries),
                "content_partial": sum(not entry.verified for entry in self._entries.values()),
                "content_hits": self._hits,
            }

    def _await_writer(self, session: str, digest: bytes) -> None:
        deadline = time.monotonic() + _LONGEST_WAIT
        while time.monotonic() < deadline:
            entry = self._entries.get(digest)
            if entry is None or entry.writer in ("", session):
                return
            held = entry.held
            self._lock.wait_for(lambda: entry.writer == "" or entry.held > held, self._patience)  # noqa: B023
            if entry.writer and entry.held == held:
                return

    def _sent_by(self, session: str, digest: bytes) -> _Entry:
        entry = self._entries.get(digest)
        if entry is None or entry.writer != session or entry.verified:
            raise ProtocolError("part of a content that was not offered")
        return entry

    def _touch(self, digest: bytes, entry: _Entry) -> None:
        entry.touched = self._clock()
        self._entries.move_to_end(digest)

    def _make_room(self, size: int) -> bool:
        if size > self._budget:
            return False
        idle = sum(len(entry.data) for entry in self._entries.values() if not entry.busy)
        if self._used - idle + size > self._budget:
            return False
        for digest in [digest for digest, entry in self._entries.items() if not entry.busy]:
            if self._used + size <= self._budget:
                break
            if self._entries[digest].forsake():
                self._remove(digest)
        return self._used + size <= self._budget

    def _expire(self) -> None:
        oldest = self._clock() - self._partial_seconds
        for digest in [
            digest
            for digest, entry in self._entries.items()
            if not (entry.verified or entry.busy) and entry.touched < oldest
        ]:
            self._remove(digest)

    def _remove(self, digest: bytes) -> None:
        self._used -= len(self._entries.pop(digest).data)
