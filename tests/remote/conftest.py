"""A node in this process, and sessions with nodes that follow a script."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

import msgspec
import pytest
from remote.peers import DEVICE, Node, Script, welcome

from genie.errors import GenieError
from genie.interfaces import Transport
from genie.remote import NodeServer, RemoteBackend, RemoteSession
from genie.testing import MemoryTransport, NullBackend


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


@pytest.fixture
def scripted() -> Iterator[Callable[[Script], RemoteSession]]:
    """A session with a node that does what the script says."""
    transport = MemoryTransport(stall_timeout=5.0)
    listener = transport.listen("scripted:0")
    threads: list[threading.Thread] = []
    backends: list[RemoteBackend] = []

    def make(script: Script, timeout: float = 5.0, fields: Mapping[str, object] | None = None) -> RemoteSession:
        def serve() -> None:
            connection = listener.accept(5.0)
            with suppress(GenieError):
                welcome(connection, **(fields or {}))
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
