"""A node in this process, clients of it, and peers that follow a script."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import attrs
import msgspec
import pytest

from genie.device import Device
from genie.errors import GenieError
from genie.interfaces import Connection, Transport
from genie.remote import NodeServer, RemoteBackend, RemoteSession
from genie.testing import Caller, MemoryTransport, NullBackend
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


@pytest.fixture
def make_node() -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(
        memory: int = 1 << 30, transport: Transport | None = None, address: str = "node:0", **options: object
    ) -> Node:
        local = NullBackend(memory_bytes=memory)
        transport = transport or MemoryTransport(stall_timeout=10.0)
        server = NodeServer(local, transport, address, **options)  # type: ignore[arg-type]
        server.start()
        made.append(Node(server, local, transport))
        return made[-1]

    yield make
    for node in made:
        for backend in node.backends:
            backend.close()
        node.server.close()


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    return make_node()


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


@pytest.fixture
def scripted() -> Iterator[Callable[[Script], RemoteSession]]:
    """A session with a node that does what the script says."""
    transport = MemoryTransport(stall_timeout=5.0)
    listener = transport.listen("scripted:0")
    threads: list[threading.Thread] = []
    backends: list[RemoteBackend] = []

    def make(script: Script, timeout: float = 5.0) -> RemoteSession:
        def serve() -> None:
            connection = listener.accept(5.0)
            with suppress(GenieError):
                welcome(connection)
                script(connection)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        backend = RemoteBackend("memory", transport, (listener.address,), timeout=timeout)
        backends.append(backend)
        return backend.connect(msgspec.structs.replace(DEVICE, address=listener.address))

    yield make
    for backend in backends:
        backend.close()
    listener.close()
    for thread in threads:
        thread.join(5.0)
        assert not thread.is_alive()
