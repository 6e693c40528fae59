"""A transport that does not encrypt and takes tickets, within one process: what DPDK is to the rest, without DPDK."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from genie.errors import BackendUnavailable
from genie.testing import MemoryTransport
from genie.testing.memory import MemoryConnection, MemoryListener
from genie.wire import Buffer


class OpenConnection:
    """What is said over it is heard by whoever listens in: ``heard`` has the bytes."""

    def __init__(self, connection: MemoryConnection, transport: str, session: int, heard: list[bytes]) -> None:
        self.transport = transport
        self.session = session
        self._connection = connection
        self._heard = heard

    def send(self, header: Buffer, buffers: Sequence[Buffer] = ()) -> None:
        self._heard.append(b"".join(map(bytes, (header, *buffers))))
        self._connection.send(header, buffers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


class OpenListener:
    def __init__(self, listener: MemoryListener, transport: OpenTransport) -> None:
        self.address = listener.address
        self._listener = listener
        self._transport = transport

    def expect(self, session: int, secret: bytes, seconds: float) -> None:
        self._transport.expected[session] = (secret, time.monotonic() + seconds)

    def accept(self, timeout: float | None = None) -> OpenConnection:
        return self._transport.taken(self._listener.accept(timeout))

    def close(self) -> None:
        self._listener.close()


class OpenTransport:
    """The same object for clients and nodes. ``connected`` are the addresses that somebody came to, ``tickets`` those
    that they came with, 0 for none."""

    name = "open"

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.connected: list[str] = []
        self.tickets: list[int] = []
        self.expected: dict[int, tuple[bytes, float]] = {}
        self.closed: set[str] = set()  # addresses where nobody answers any more
        self._memory = MemoryTransport(stall_timeout=10.0)
        self._lock = threading.Lock()
        self._sessions: dict[int, int] = {}  # of connections that nobody has accepted yet

    def connect(self, address: str, timeout: float) -> OpenConnection:
        return self._connect(address, timeout, 0)

    def connect_with(self, address: str, timeout: float, session: int, secret: bytes) -> OpenConnection:
        known, until = self.expected.pop(session, (b"", 0.0))
        if known != secret or until < time.monotonic():
            raise BackendUnavailable("the node does not know the ticket", where=address)
        return self._connect(address, timeout, session)

    def _connect(self, address: str, timeout: float, session: int) -> OpenConnection:
        if address in self.closed:
            raise BackendUnavailable("out of rings", where=address)
        with self._lock:
            made = self._memory.connect(address, timeout)
            self._sessions[id(made._out)] = session
            self.connected.append(address)
            self.tickets.append(session)
            return OpenConnection(made, self.name, session, self.heard)

    def taken(self, accepted: MemoryConnection) -> OpenConnection:
        with self._lock:
            return OpenConnection(accepted, self.name, self._sessions.pop(id(accepted._into)), self.heard)

    def listen(self, address: str) -> OpenListener:
        return OpenListener(self._memory.listen(address), self)
