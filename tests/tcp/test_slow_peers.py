"""Peers that send a byte now and then, or read nothing: real sockets, a real node, and others beside them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import attrs
import pytest
from security.pki import Pki

from genie.errors import DeadlineExceeded, GenieError, Stage
from genie.graph import TensorSpec
from genie.remote import NodeServer, RemoteBackend
from genie.remote.greeting import Met, meet
from genie.remote.node import server
from genie.testing import Caller, NullBackend
from genie.wire import Kind, Limits, frames, messages
from genie_backend_tcp import TcpTransport
from genie_backend_tcp.progress import LEAST_RATE, Progress
from genie_backend_tcp.tls import TlsConnection

STALL = 0.5
DEADLINE = 20.0


@attrs.define
class Node:
    server: NodeServer
    transport: TcpTransport
    backends: list[RemoteBackend] = attrs.field(factory=list)
    connections: list[Any] = attrs.field(factory=list)

    def neighbour(self) -> Caller:
        backend = RemoteBackend("tcp", TcpTransport(stall_timeout=DEADLINE), (self.server.address,), timeout=DEADLINE)
        self.backends.append(backend)
        return Caller(backend.connect(backend.devices()[0]))

    def raw(self) -> tuple[Met, socket.socket]:
        """A session, and the socket beneath."""
        met = meet(TcpTransport(stall_timeout=DEADLINE), self.server.address, 0, DEADLINE)
        self.connections.append(met.connection)
        return met, met.connection._sock  # type: ignore[attr-defined]


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setattr(server, "_GREETING_SECONDS", STALL)
    transport = TcpTransport(stall_timeout=STALL)
    made = Node(NodeServer(NullBackend(memory_bytes=1 << 28), transport, local=False), transport)
    made.server.start()
    yield made
    for backend in made.backends:
        backend.close()
    for connection in made.connections:
        connection.close()
    made.server.close()


class Dribble:
    """Sends a byte every so often, until it is cut off."""

    def __init__(self, sock: socket.socket, data: bytes, pause: float = STALL / 5) -> None:
        self.sent = 0
        self._sock, self._data, self._pause = sock, data, pause
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for byte in self._data:
            try:
                self._sock.send(bytes((byte,)))
            except OSError:
                return
            self.sent += 1
            time.sleep(self._pause)

    def cut_off(self) -> None:
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        assert self.sent < len(self._data)


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_greeting_that_comes_by_the_byte(node: Node) -> None:
    neighbour = node.neighbour()
    said = frames.one(0, Kind.HELLO, messages.put_struct(messages.Hello(major=1, minor=0, client="x" * 4096)))
    host, _, port = node.server.address.rpartition(":")
    with socket.create_connection((host, int(port))) as sock:
        slow = Dribble(sock, said)
        eventually(lambda: slow.sent > 0)
        assert neighbour.get(neighbour.put([1, 2])) == [1, 2]
        slow.cut_off()
        eventually(lambda: node.server.greeting == 0)


def test_a_header_that_comes_by_the_byte(node: Node) -> None:
    neighbour = node.neighbour()
    met, sock = node.raw()
    slow = Dribble(sock, frames.one(met.dialogue.next_seq(), Kind.FREE, messages.put_handles(list(range(1, 2000)))))
    assert neighbour.get(neighbour.put([1, 2])) == [1, 2]
    assert node.server.wait_for_sessions(1, DEADLINE)
    slow.cut_off()


def test_data_that_comes_by_the_byte(node: Node) -> None:
    neighbour = node.neighbour()
    met, sock = node.raw()
    size = 8 << 20
    head = messages.put_value(1, TensorSpec((size,), "uint8"))
    sock.sendall(frames.one(met.dialogue.next_seq(), Kind.UPLOAD, head, size))
    slow = Dribble(sock, bytes(1 << 16))
    assert neighbour.get(neighbour.put([1, 2])) == [1, 2]
    assert node.server.wait_for_sessions(1, DEADLINE)
    slow.cut_off()


def test_answers_that_nobody_reads(node: Node) -> None:
    neighbour = node.neighbour()
    met, sock = node.raw()
    size = 16 << 20
    head = messages.put_value(1, TensorSpec((size,), "uint8"))
    sock.sendall(frames.one(met.dialogue.next_seq(), Kind.UPLOAD, head, size))
    sock.sendall(bytes(size))
    with suppress(ConnectionError):  # the node may have had enough before all is asked
        for _ in range(50):
            sock.sendall(frames.one(met.dialogue.next_seq(), Kind.FETCH, messages.put_pair(1, size)))
    assert neighbour.get(neighbour.put([1, 2])) == [1, 2]
    assert node.server.wait_for_sessions(1, DEADLINE)


def test_a_reader_of_a_few_bytes_at_a_time(node: Node) -> None:
    met, sock = node.raw()
    size = 16 << 20
    head = messages.put_value(1, TensorSpec((size,), "uint8"))
    sock.sendall(frames.one(met.dialogue.next_seq(), Kind.UPLOAD, head, size))
    sock.sendall(bytes(size))
    sock.sendall(frames.one(met.dialogue.next_seq(), Kind.FETCH, messages.put_pair(1, size)))
    ended = threading.Event()

    def read() -> None:
        with suppress(ConnectionError):
            while not ended.is_set() and sock.recv(16):
                time.sleep(0.02)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert node.server.wait_for_sessions(0, DEADLINE)
    ended.set()
    reader.join(DEADLINE)
    assert not reader.is_alive()


def test_more_connections_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_GREETING_SECONDS", STALL)
    with NodeServer(NullBackend(), TcpTransport(stall_timeout=STALL), local=False, max_sessions=2) as node:
        host, _, port = node.address.rpartition(":")
        silent = [socket.create_connection((host, int(port))) for _ in range(12)]
        try:
            for sock in silent:  # turned away, or given up
                sock.settimeout(DEADLINE)
                with suppress(ConnectionResetError):
                    while sock.recv(1 << 10):
                        pass
            eventually(lambda: node.greeting == 0)
            backend = RemoteBackend("tcp", TcpTransport(stall_timeout=DEADLINE), (node.address,), timeout=DEADLINE)
            caller = Caller(backend.connect(backend.devices()[0]))
            assert caller.get(caller.put([3])) == [3]
            backend.close()
        finally:
            for sock in silent:
                sock.close()


def test_a_record_of_tls_that_comes_by_the_byte(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Within a message whose memory is held: a record is no refuge."""
    pki = Pki.make(tmp_path_factory.mktemp("pki"))
    ours, theirs = socket.socketpair()
    size = 8 << 20
    outcome: list[BaseException] = []
    with ours, theirs:
        theirs.setblocking(True)
        receiver = TlsConnection(ours, "client", Limits(), STALL, 0.0, pki.node().server())
        sender = TlsConnection(theirs, "node", Limits(), DEADLINE, 0.0, pki.client().client(), host="127.0.0.1")

        def receive() -> None:
            try:
                receiver.receive(lambda header, sizes: [memoryview(bytearray(each)) for each in sizes], None)
            except BaseException as error:
                outcome.append(error)
            receiver.close()

        receiver.begin()
        sender.shake_hands(DEADLINE)
        thread = threading.Thread(target=receive)
        thread.start()
        real, sender._sock = sender._sock, Slow(sender._sock, 100_000)  # type: ignore[assignment]
        head = messages.put_value(1, TensorSpec((size,), "uint8"))
        with suppress(GenieError):
            sender.send(frames.one(1, Kind.UPLOAD, head, size), (memoryview(bytes(size)),))
        thread.join(DEADLINE)
        assert not thread.is_alive()
        real.close()
    (error,) = outcome
    assert isinstance(error, DeadlineExceeded)
    assert error.midway
    assert "bytes of a message" in error.message


class Slow:
    """A socket that sends the first bytes at once, and then one at a time."""

    def __init__(self, sock: socket.socket, at_once: int) -> None:
        self._sock = sock
        self._left = at_once

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, data: Any) -> int:
        if self._left > 0:
            count = self._sock.send(memoryview(data)[: self._left])
            self._left -= count
            return count
        time.sleep(STALL / 5)
        return self._sock.send(memoryview(data)[:1])


def test_a_message_may_take_its_time_if_it_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("genie_backend_tcp.progress.time.monotonic", lambda: now[0])
    progress = Progress(Stage.SEND, "peer")
    for _ in range(1000):  # at twice the least rate, for long
        progress.waits(60.0)
        now[0] += 1.0
        progress.moved(2 * LEAST_RATE)
    for _ in range(50):  # what the receiver does in between does not count
        now[0] += 3600.0
        progress.waits(60.0)
        progress.moved(1)
    progress = Progress(Stage.RECEIVE, "peer")
    with pytest.raises(DeadlineExceeded, match="sent 61 bytes of a message") as caught:
        for _ in range(1000):
            progress.waits(60.0)
            now[0] += 1.0
            progress.moved(1)
    assert caught.value.stage is Stage.RECEIVE
    assert caught.value.seconds == pytest.approx(61.0)


def test_the_error_says_which_stage(node: Node) -> None:
    ours, theirs = socket.socketpair()
    connection = node.transport.wrap(ours, "peer")
    with theirs:
        with pytest.raises(DeadlineExceeded) as caught:
            connection.receive(lambda header, sizes: [], 0.05)
        assert caught.value.stage is Stage.RECEIVE
        assert "stage: receive, 0.05 s" in str(caught.value)
        with pytest.raises(DeadlineExceeded) as caught:
            connection.send(b"", (memoryview(bytes(1 << 24)),))
        assert (caught.value.stage, caught.value.seconds) == (Stage.SEND, STALL)
        connection.close()


def test_nothing_that_came_is_lost_to_a_deadline(node: Node) -> None:
    first = frames.one(1, Kind.FREE, messages.put_handles([1, 2, 3]))
    ours, theirs = socket.socketpair()
    connection = node.transport.wrap(ours, "peer")
    given_up = 0
    with theirs:
        Dribble(theirs, first, pause=0.02)
        while True:
            try:
                message = connection.receive(lambda header, sizes: [], 0.03)
                break
            except DeadlineExceeded:
                given_up += 1
        assert message.header == first
        assert given_up > 2
        connection.close()


def test_a_node_that_is_silent_in_the_greeting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(GenieError) as caught:
        meet(TcpTransport(), f"127.0.0.1:{mute.getsockname()[1]}", 0, 0.1)
    assert isinstance(caught.value, DeadlineExceeded)
    assert (caught.value.stage, caught.value.setting) == (Stage.GREETING, "connect_timeout")
