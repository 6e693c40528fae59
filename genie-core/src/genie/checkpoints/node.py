"""Checkpoints in the memory of another node: bytes go from node to node, the client's link carries none of them."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from genie.checkpoints.store import Checkpoint
from genie.errors import CheckpointError, DeadlineExceeded, GenieError, OutOfMemory
from genie.interfaces import Linked, Replicating, Session, Snapshotting
from genie.snapshots import STAGING, MemoryState, Snapshot, content_specs, error_of

_PATIENCE_SECONDS: Final = 600.0  # for bytes to arrive
_MOST_CHANNELS: Final = 128  # of the 256 a session may have


class _Capable(Session, Linked, Snapshotting, Replicating, Protocol):
    """What both ends must be: sessions on nodes."""


_Key = tuple[int, int]  # memory, version


class _Channel:
    """From one session to another; what is sent is counted."""

    def __init__(self, source: _Capable, target: _Capable, name: str) -> None:
        self.source = weakref.ref(source)
        self._target = target
        self._inlet: Any = target.inlet(name)
        self._outlet = source.outlet(self._inlet)
        self._sent = 0

    def move(self, send: Callable[[int], None], handle: int) -> None:
        """``send`` through the outlet; what arrives is ``handle``."""
        send(self._outlet)
        position, self._sent = self._sent, self._sent + 1
        self._target.receive(self._inlet, position, handle)


class NodeCheckpoints:
    """See :class:`genie.checkpoints.CheckpointStore`. ``standby`` is a session of this client's on another node that
    is used for nothing else; the checkpoints are lost when it ends. ``keep`` of them are kept, the oldest go first.

    :meth:`load` into ``standby`` itself moves nothing: it becomes the session, and the store is over.
    """

    def __init__(self, standby: Session, *, keep: int = 1) -> None:
        if keep < 1:
            raise CheckpointError(f"keep={keep} checkpoints: at least one is kept")
        self._standby: _Capable = _capable(standby)
        self._keep = keep
        self._lock = threading.Lock()
        self._held: dict[_Key, int] = {}  # the standby's handles
        self._checkpoints: dict[int, Checkpoint] = {}  # the oldest first
        self._next = 1
        self._handles = STAGING
        self._channel: _Channel | None = None
        self._opened = 0
        self._over = ""  # why

    def save(self, session: Session, note: bytes = b"") -> Checkpoint:
        source = _capable(session)
        with self._lock:
            self._check()
            snapshot = source.snapshot()
            made: dict[_Key, int] = {}
            try:
                self._bring(source, snapshot, made)
                self._await_arrival(made.values())
            except BaseException as error:
                if not isinstance(error.__cause__, OutOfMemory):
                    self._channel = None  # nobody knows what is still on its way through it
                with contextlib.suppress(GenieError):
                    self._standby.free(tuple(made.values()))
                raise
            number, self._next = self._next, self._next + 1
            self._held |= made
            self._checkpoints[number] = checkpoint = Checkpoint(
                id=number, snapshot=snapshot, made=time.time(), note=note
            )
            self._forget(list(self._checkpoints)[: -self._keep])
            return checkpoint

    def _bring(self, source: _Capable, snapshot: Snapshot, made: dict[_Key, int]) -> None:
        """Have what the standby lacks become its values: ``made`` grows by them."""
        specs = content_specs(snapshot)
        missing = []
        for memory in snapshot.memories:
            if not memory.bytes or _key(memory) in self._held:
                continue
            handle, self._handles = self._handles, self._handles + 1
            if memory.digest and self._standby.stage(handle, specs[memory.id], memory.digest):
                made[_key(memory)] = handle
            else:
                missing.append((memory, handle))
        for memory, handle in missing:
            if self._channel is None or self._channel.source() is not source:
                self._channel = self._connected(source)
            made[_key(memory)] = handle
            send = _sending(source.send_memory, memory)
            self._channel.move(send, handle)

    def _connected(self, source: _Capable) -> _Channel:
        self._opened += 1
        if self._opened > _MOST_CHANNELS:
            raise CheckpointError(
                f"{_MOST_CHANNELS} channels to {self._standby.device.id} broke", hint="begin a new standby session"
            )
        return _Channel(source, self._standby, source.device.id)

    def _await_arrival(self, handles: Iterable[int]) -> None:
        arrived = _patiently(self._standby.snapshot)
        expected = set(handles)
        for failure in arrived.failures:
            if failure.handle in expected:
                error = error_of(failure)
                raise CheckpointError(
                    f"a checkpoint did not reach {self._standby.device.id}: {error.message}",
                    where=self._standby.device.address or "",
                    hint=error.hint,
                ) from error

    def load(self, checkpoint: Checkpoint, session: Session) -> None:
        with self._lock:
            self._check()
            kept = self._checkpoints.get(checkpoint.id)
            if kept is None:
                raise CheckpointError(f"checkpoint {checkpoint.id} is not kept any more", hint="raise `keep`")
            snapshot = kept.snapshot
            held = {memory.id: self._held[_key(memory)] for memory in snapshot.memories if memory.bytes}
            standby = self._standby
            if session is standby:
                self._forget([number for number in self._checkpoints if number != checkpoint.id])
                self._over = "the standby session became the one it stood by for"
                standby.restore_staged(snapshot, held)
            else:
                self._copy(_capable(session), snapshot, held)

    def _copy(self, target: _Capable, snapshot: Snapshot, held: Mapping[int, int]) -> None:
        specs = content_specs(snapshot)
        channel: _Channel | None = None
        staged = {}
        missing = []
        for number, memory in enumerate(snapshot.memories):
            if memory.bytes:
                handle = staged[memory.id] = STAGING + number
                if not (memory.digest and target.stage(handle, specs[memory.id], memory.digest)):
                    missing.append((held[memory.id], handle))
        for source, handle in missing:
            channel = channel or _Channel(self._standby, target, self._standby.device.id)
            channel.move(lambda outlet: self._standby.send(outlet, source), handle)  # noqa: B023
        _patiently(target.synchronize)
        target.restore_staged(snapshot, staged)

    def drop(self, checkpoint: Checkpoint) -> None:
        with self._lock:
            if not self._over and checkpoint.id in self._checkpoints:
                self._forget([checkpoint.id])

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        with self._lock:
            return tuple(self._checkpoints.values())

    def _forget(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            del self._checkpoints[number]
        needed = {_key(memory) for each in self._checkpoints.values() for memory in each.snapshot.memories}
        gone = [key for key in self._held if key not in needed]
        self._standby.free([self._held.pop(key) for key in gone])

    def _check(self) -> None:
        if self._over:
            raise CheckpointError(f"the store is over: {self._over}")

    def close(self) -> None:
        """The standby session is its owner's to close; what it kept is freed."""
        with self._lock:
            if not self._over:
                self._forget(list(self._checkpoints))
                self._over = "it was closed"


def _key(memory: MemoryState) -> _Key:
    return memory.id, memory.version


def _sending(send: Callable[[int, int, int], None], memory: MemoryState) -> Callable[[int], None]:
    return lambda outlet: send(outlet, memory.id, memory.version)


def _capable(session: Session) -> Any:
    if isinstance(session, Linked) and isinstance(session, Snapshotting) and isinstance(session, Replicating):
        return session
    raise CheckpointError(
        f"the session on {session.device.id} does not pass its state on", hint="both ends are sessions on nodes"
    )


def _patiently(ask: Callable[[], Any]) -> Any:
    """An answer that comes after large memories have arrived may take longer than any other."""
    started = time.monotonic()
    while True:
        try:
            return ask()
        except DeadlineExceeded:
            if time.monotonic() - started >= _PATIENCE_SECONDS:
                raise
