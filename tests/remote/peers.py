"""A node with its clients, and peers that follow a script."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from genie.device import Device
from genie.interfaces import Connection, Transport
from genie.remote import NodeServer, RemoteBackend
from genie.testing import Caller, NullBackend
from genie.wire import PROTOCOL, Kind, frames, messages

DEVICE = Device(id="null:0", type="null", memory_gb=1, compute_tflops=1)


@attrs.define
class Node:
    server: NodeServer
    local: NullBackend
    transport: Transport
    backends: list[RemoteBackend] = attrs.field(factory=list)

    def client(self, timeout: float = 10.0) -> Caller:
        """A session of a client of its own."""
        backend = RemoteBackend("memory", self.transport, (self.server.address,), timeout=timeout)
        self.backends.append(backend)
        return Caller(backend.connect(backend.devices()[0]))

    def wait_for_sessions(self, count: int) -> None:
        """Until the node has noticed that the others are gone."""
        assert self.server.wait_for_sessions(count, 10.0)


Script = Callable[[Connection], None]


def welcome(connection: Connection, **fields: object) -> None:
    """Take a HELLO, say WELCOME."""
    message = connection.receive(lambda header, sizes: [memoryview(bytearray(size)) for size in sizes], 5.0)
    values = {"major": PROTOCOL[0], "minor": 0, "devices": (DEVICE,), **fields}
    answer = messages.put_struct(messages.Welcome(**values))  # type: ignore[arg-type]
    connection.send(frames.one(frames.sequence(message.header), Kind.WELCOME, answer))


def hear(connection: Connection) -> tuple[int, list[tuple[int, bytes]]]:
    message = connection.receive(lambda header, sizes: [memoryview(bytearray(size)) for size in sizes], 5.0)
    seq, records = frames.split(message.header)
    return seq, [(kind, bytes(body)) for kind, body in records]
