"""A transport within one process: the same messages, no sockets."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from genie.errors import BackendUnavailable, ConfigError, ConnectionLost, DeadlineExceeded, Stage
from genie.wire import Allocate, Buffer, Limits, Message, frames

_MOST_BYTES = 64 << 20  # on their way in one direction


class _Pipe:
    """One direction: copies of messages, bounded, so that a sender waits as it would for a socket."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.messages: deque[tuple[bytes, list[bytes]]] = deque()
        self.bytes = 0
        self.closed = False


class MemoryConnection:
    def __init__(self, out: _Pipe, into: _Pipe, peer: str, limits: Limits, stall_timeout: float) -> None:
        self.peer = peer
        self._out = out
        self._into = into
        self._limits = limits
        self._stall = stall_timeout

    def send(self, header: Buffer, buffers: Sequence[Buffer] = ()) -> None:
        copies = [bytes(memoryview(buffer).cast("B")) if len(buffer) else b"" for buffer in buffers]
        size = len(header) + sum(map(len, copies))
        with self._out.changed:
            free = self._out.changed.wait_for(
                lambda: self._out.closed or not self._out.messages or self._out.bytes + size <= _MOST_BYTES, self._stall
            )
            if self._out.closed:
                raise ConnectionLost("the peer closed the connection", where=self.peer)
            if not free:
                raise DeadlineExceeded(
                    f"the peer took nothing for {self._stall:g} s", stage=Stage.SEND, where=self.peer
                )
            self._out.messages.append((bytes(header), copies))
            self._out.bytes += size
            self._out.changed.notify_all()

    def receive(self, allocate: Allocate, timeout: float | None = None) -> Message:
        with self._into.changed:
            there = self._into.changed.wait_for(lambda: self._into.closed or self._into.messages, timeout)
            if not there:
                raise DeadlineExceeded(f"the peer sent nothing for {timeout:g} s", stage=Stage.RECEIVE, where=self.peer)
            if not self._into.messages:
                raise ConnectionLost("the peer closed the connection", where=self.peer)
            header, buffers = self._into.messages.popleft()
            self._into.bytes -= len(header) + sum(map(len, buffers))
            self._into.changed.notify_all()
        # A stream's reader would stop here too: what a header claims is checked before it is believed.
        if len(header) < frames.PREFIX.size or frames.header_length(header, self._limits) != len(header):
            raise ConnectionLost("a header of another length than it says", where=self.peer)
        sizes = frames.sizes(header, self._limits)
        if not sizes:
            return Message(header)
        targets = [memoryview(target).cast("B") for target in allocate(header, sizes)]
        for target, buffer in zip(targets, buffers, strict=True):
            target[:] = buffer
        return Message(header, targets)

    def hung_up(self) -> bool:
        """See :class:`genie.interfaces.Watched`."""
        return self._into.closed

    def close(self) -> None:
        for pipe in (self._out, self._into):
            with pipe.changed:
                pipe.closed = True
                pipe.changed.notify_all()


class MemoryListener:
    def __init__(self, address: str, transport: MemoryTransport) -> None:
        self.address = address
        self._transport = transport
        self.changed = threading.Condition()
        self.waiting: deque[MemoryConnection] = deque()
        self.closed = False

    def accept(self, timeout: float | None = None) -> MemoryConnection:
        with self.changed:
            if not self.changed.wait_for(lambda: self.closed or self.waiting, timeout):
                raise DeadlineExceeded(
                    f"nobody connected within {timeout:g} s", stage=Stage.CONNECT, where=self.address
                )
            if self.closed:
                raise ConnectionLost("the listener is closed", where=self.address)
            return self.waiting.popleft()

    def close(self) -> None:
        self._transport.forget(self)
        with self.changed:
            self.closed = True
            waiting = list(self.waiting)
            self.waiting.clear()
            self.changed.notify_all()
        for connection in waiting:
            connection.close()


class MemoryTransport:
    """Addresses are any names; one ending in ``:0`` stands for a free number."""

    name = "memory"

    def __init__(self, *, stall_timeout: float = 60.0, limits: Limits | None = None) -> None:
        self._stall = stall_timeout
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._listeners: dict[str, MemoryListener] = {}
        self._next = 1

    def connect(self, address: str, timeout: float) -> MemoryConnection:
        with self._lock:
            listener = self._listeners.get(address)
        if listener is None:
            nobody = BackendUnavailable(f"no node answers at {address}", where=address, hint="start one first")
            nobody.refused = True
            raise nobody
        there, back = _Pipe(), _Pipe()
        theirs = MemoryConnection(back, there, "memory:client", self._limits, self._stall)
        with listener.changed:
            if listener.closed:
                raise BackendUnavailable(f"no node answers at {address}", where=address, hint="start one first")
            listener.waiting.append(theirs)
            listener.changed.notify_all()
        return MemoryConnection(there, back, address, self._limits, self._stall)

    def listen(self, address: str) -> MemoryListener:
        if address.startswith("unix:"):
            raise ConfigError(f"address {address!r}: the memory transport has no Unix sockets")
        with self._lock:
            if address.endswith(":0"):
                address = f"{address[:-1]}{self._next}"
                self._next += 1
            if address in self._listeners:
                raise ConfigError(f"cannot listen at {address}: it is taken", where=address, hint="choose another")
            listener = self._listeners[address] = MemoryListener(address, self)
            return listener

    def forget(self, listener: MemoryListener) -> None:
        with self._lock:
            if self._listeners.get(listener.address) is listener:
                del self._listeners[listener.address]
