"""Counting what crosses, by what it is: a transport around a transport.

What a session counts are bytes of messages. To hold modes to a closed form, the bytes of tensors are to be told from
what wraps them, so the tap reads the records of each message as they pass, on the client, in every mode alike. Its
totals must be the session's own counters, which the harness checks.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import genie
from genie.config import Settings
from genie.interfaces import Buffer, Connection, Message
from genie.remote import RemoteBackend
from genie.wire import Kind, frames, messages
from genie_backend_tcp import TcpTransport

BACKEND = "counted"
_UPLOAD_HEAD = struct.Struct("<QH")  # handle, bytes of the spec
_VALUE_HEAD = struct.Struct("<H")
_LOOPED = int(Kind.LOOPED)


@dataclass
class Traffic:
    """Bytes. ``up`` and ``down`` are those of tensors the program moves; ``weights`` what went by content, ``plans``
    plans, ``frees`` the names of values nobody holds any more, which garbage collection finds when it likes, and
    ``profiles`` what nodes tell of the times operators take, which the client asks for now and then. What remains of
    ``sent`` and ``received``, the bytes of all messages, is framing and bindings."""

    up: int = 0
    down: int = 0
    weights: int = 0
    plans: int = 0
    frees: int = 0
    profiles: int = 0
    sent: int = 0
    received: int = 0
    messages: int = 0  # sent
    answers: int = 0
    executions: int = 0

    def __sub__(self, before: Traffic) -> Traffic:
        return Traffic(*(getattr(self, f.name) - getattr(before, f.name) for f in fields(self)))

    @property
    def framing(self) -> int:
        return self.sent + self.received - self.up - self.down - self.weights - self.plans - self.frees - self.profiles

    def copy(self) -> Traffic:
        return Traffic(*(getattr(self, f.name) for f in fields(self)))


TRAFFIC = Traffic()


def _emitted(payload: memoryview) -> int:
    """Bytes of the values in an answer of a loop: flags, then of each value its length as a varint and its bytes."""
    at, total = 1, 0
    while at < len(payload):
        length, used = messages.get_varint(payload[at:])
        at, total = at + used + length, total + length
    return total


class _Tapped:
    """A connection, counted."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def send(self, header: Buffer, buffers: Sequence[Buffer] = ()) -> None:
        self._connection.send(header, buffers)
        bulk = sum(map(len, buffers))
        traffic = TRAFFIC
        traffic.sent += len(header) + bulk
        traffic.messages += 1
        for kind, payload in frames.split(bytes(header))[1]:
            match kind:
                case Kind.EXECUTE:
                    traffic.executions += 1
                case Kind.UPLOAD:
                    _, spec = _UPLOAD_HEAD.unpack_from(payload)
                    traffic.up += len(payload) - _UPLOAD_HEAD.size - spec + bulk
                case Kind.UPLOAD_CHUNK:
                    traffic.weights += bulk
                case Kind.FREE:
                    traffic.frees += len(payload)
                case Kind.LOAD_PLAN:
                    traffic.plans += len(payload) + bulk

    def receive(
        self, allocate: Callable[[bytes, Sequence[int]], Sequence[memoryview]], timeout: float | None = None
    ) -> Message:
        message = self._connection.receive(allocate, timeout)
        bulk = sum(map(len, message.buffers))
        traffic = TRAFFIC
        traffic.received += len(message.header) + bulk
        traffic.answers += 1
        for kind, payload in frames.split(bytes(message.header))[1]:
            if kind == Kind.VALUE:
                (spec,) = _VALUE_HEAD.unpack_from(payload)
                traffic.down += len(payload) - _VALUE_HEAD.size - spec + bulk
            elif kind == Kind.PROFILED:
                traffic.profiles += len(payload) + bulk
            elif kind == _LOOPED:
                traffic.down += _emitted(payload)
        return message

    def close(self) -> None:
        self._connection.close()


class _Tap:
    name = "tcp"

    def __init__(self, inner: TcpTransport) -> None:
        self._inner = inner

    def connect(self, address: str, timeout: float) -> Connection:
        return _Tapped(self._inner.connect(address, timeout))

    def listen(self, address: str) -> Any:
        return self._inner.listen(address)


def _backend(settings: Settings) -> RemoteBackend:
    transport = _Tap(TcpTransport(stall_timeout=settings.timeout, spin_us=settings.spin_us))
    return RemoteBackend.from_settings(BACKEND, transport, settings)


def register() -> None:
    """The backend ``tcp``, counted, under a name of its own."""
    genie.register_backend(BACKEND, _backend)
