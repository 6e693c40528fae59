"""Checksums of the TCP transport: the shipped suite, damage of every kind, and peers that know none."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from remote.proxy import Faults, Proxy
from remote.test_lasting import _program

from genie import backoff
from genie.errors import AccessDenied, ConnectionLost, DeadlineExceeded, ProtocolError, VersionMismatch
from genie.interfaces import Connection
from genie.remote import NodeServer, RemoteBackend
from genie.telemetry import counters
from genie.testing import Caller, NullBackend, TransportSuite
from genie.wire import Kind, Limits, frames, messages
from genie_backend_tcp import TcpTransport
from genie_backend_tcp.checked import PREAMBLE, CheckedConnection

_SECONDS = 10.0


class TestChecked(TransportSuite):
    @pytest.fixture
    def transport(self) -> TcpTransport:
        return TcpTransport(stall_timeout=10.0, checksums="on")

    @pytest.fixture
    def address(self) -> str:
        return "127.0.0.1:0"

    def test_it_is_checked(self, pair: tuple[Connection, Connection]) -> None:
        assert all(isinstance(end, CheckedConnection) for end in pair)


class TestCheckedWithoutSpinning(TestChecked):
    @pytest.fixture
    def transport(self) -> TcpTransport:
        return TcpTransport(stall_timeout=10.0, spin_us=0, checksums="on")


def _fresh(header: bytes, sizes: Sequence[int]) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


@pytest.fixture
def recorded() -> bytes:
    """Two messages as they are on the wire, preamble first."""
    with _Ends() as (client, wire):
        client.send(frames.one(1, Kind.SYNC))
        client.send(frames.one(2, Kind.UPLOAD, b"head", 600_000), (bytes(range(250)) * 2400,))
        client.send(frames.one(3, Kind.SYNC))
        return wire()


class _Ends:
    """A checked connection whose bytes are taken from the wire."""

    def __enter__(self) -> tuple[CheckedConnection, Callable[[], bytes]]:
        ours, self._theirs = socket.socketpair()
        self._came = bytearray()
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._client = CheckedConnection(ours, "peer", Limits(), 5.0, 0.0)
        self._thread.start()
        return self._client, self._wire

    def _drain(self) -> None:
        while data := self._theirs.recv(1 << 16):
            self._came += data

    def _wire(self) -> bytes:
        self._client.close()
        self._thread.join(_SECONDS)
        return bytes(self._came)

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._theirs.close()


def _heard(wire: bytes) -> list[tuple[bytes, bytes]]:
    """What a node hears of these bytes, until it has had enough."""
    ours, theirs = socket.socketpair()
    node = CheckedConnection(ours, "peer", Limits(), 5.0, 0.0, accepted=True, required=True)
    heard = []

    def say() -> None:
        try:
            theirs.sendall(wire)
            theirs.shutdown(socket.SHUT_WR)
        except OSError:  # it hung up
            return

    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(say)
        try:
            while True:
                message = node.receive(_fresh, 5.0)
                heard.append((message.header, b"".join(message.buffers)))
        except (ConnectionLost, ProtocolError):
            pass
        finally:
            node.close()
            theirs.close()
            said.result(_SECONDS)
    return heard


def test_the_wire_as_it_should_be(recorded: bytes) -> None:
    heard = _heard(recorded)
    assert [frames.sequence(header) for header, _ in heard] == [1, 2, 3]
    assert heard[1][1] == bytes(range(250)) * 2400


def test_no_flipped_bit_is_missed(recorded: bytes) -> None:
    """Of the small parts every bit, of the bulk some: what is heard is what was said, up to there."""
    whole = _heard(recorded)
    small = [*range(8 * 140), *range(8 * (len(recorded) - 60), 8 * len(recorded))]
    choose = random.Random(1)
    for bit in [*choose.sample(small, 150), *(choose.randrange(8 * len(recorded)) for _ in range(50))]:
        spoilt = bytearray(recorded)
        spoilt[bit >> 3] ^= 1 << (bit & 7)
        heard = _heard(bytes(spoilt))
        assert heard == whole[: len(heard)]
        assert len(heard) < len(whole)


@pytest.mark.parametrize("what", ["lost", "twice", "swapped"])
def test_records_out_of_turn_are_noticed(recorded: bytes, what: str) -> None:
    first = len(PREAMBLE)
    second = first + 16 + len(frames.one(1, Kind.SYNC))
    third = second + 16 + len(frames.one(2, Kind.UPLOAD, b"head", 600_000))
    one, two, rest = recorded[first:second], recorded[second:third], recorded[third:]
    changed = {"lost": two + rest, "twice": one + one + two + rest, "swapped": two + one + rest}[what]
    whole = _heard(recorded)
    heard = _heard(PREAMBLE + changed)
    assert heard == whole[: len(heard)]
    assert len(heard) < 2


@pytest.fixture
def plain_node() -> Iterator[str]:
    """A node of before: it answers a preamble in plain, with what it makes of it, and serves who comes without."""
    node = NodeServer(NullBackend(), _Old(stall_timeout=_SECONDS), "127.0.0.1:0", local=False)
    with node:
        yield node.address


class _Old(TcpTransport):
    def accepted(self, sock: socket.socket, peer: str) -> object:  # type: ignore[override]
        return self.wrap(sock, peer)


class _Eager(TcpTransport):
    """Takes this host for another one."""

    def _connected(self, sock: socket.socket, address: str, timeout: float) -> object:  # type: ignore[override]
        return self._checked(sock, address, timeout)


def _caller(address: str, transport: TcpTransport, **options: object) -> tuple[RemoteBackend, Caller]:
    backend = RemoteBackend("tcp", transport, (address,), timeout=10, shortcut=False, **options)  # type: ignore[arg-type]
    return backend, Caller(backend.connect(backend.devices()[0]))


def test_an_older_node_is_spoken_to_without(plain_node: str) -> None:
    backend, caller = _caller(plain_node, _Eager(stall_timeout=_SECONDS))
    try:
        assert caller.get(caller.put([1, 2, 3] * 50_000)) == [1, 2, 3] * 50_000
    finally:
        backend.close()


def test_an_older_node_is_refused_where_checksums_must_be(plain_node: str) -> None:
    with pytest.raises(VersionMismatch, match="does not know of checksums"):
        _caller(plain_node, TcpTransport(stall_timeout=_SECONDS, checksums="on"))


def test_a_node_that_wants_checksums_refuses_who_has_none() -> None:
    node = NodeServer(NullBackend(), TcpTransport(checksums="on"), "127.0.0.1:0", local=False)
    with node, pytest.raises(AccessDenied, match="without checksums"):
        _caller(node.address, TcpTransport())


def test_this_host_is_not_checked_unless_asked() -> None:
    transport = TcpTransport(stall_timeout=_SECONDS)
    listener = transport.listen("127.0.0.1:0")
    connection = transport.connect(listener.address, _SECONDS)
    assert not isinstance(connection, CheckedConnection)
    connection.close()
    listener.close()


@pytest.mark.parametrize("faults", [Faults(flip=0.01), Faults(twice=0.01), Faults(late=0.01), Faults(lost=0.01)])
@pytest.mark.parametrize("seed", range(2))
def test_a_program_over_a_bad_link(faults: Faults, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees what it would over a good one, or an error that says what happened."""
    monkeypatch.setattr(backoff, "LONGEST", 0.1)
    transport = TcpTransport(stall_timeout=_SECONDS, checksums="on")
    node = NodeServer(NullBackend(), transport, "127.0.0.1:0", local=False, lease_seconds=20.0)
    with node:
        backend, caller = _caller(node.address, transport)
        expected = list(_program(caller, seed, 60))
        backend.close()
        proxy = Proxy(node.address, seed=seed)
        backend, caller = _caller(proxy.address, transport, heartbeat=0.3)
        proxy.faults = faults
        got: list[object] = []
        with contextlib.suppress(ConnectionLost):  # nothing got through for the lease; no other error may come
            while not proxy.struck:  # where many messages arrive as one piece, few are
                got.clear()
                for value in _program(caller, seed, 60):
                    got += [value]
        proxy.faults = None
        backend.close()
        proxy.close()
        assert got == expected[: len(got)]
        assert proxy.struck


def test_the_error_of_a_damaged_greeting_is_clean() -> None:
    sock, theirs = socket.socketpair()
    connection = CheckedConnection(sock, "peer", Limits(), 5.0, 0.0)
    theirs.sendall(bytes([PREAMBLE[0] ^ 4]) + PREAMBLE[1:])
    before = counters.snapshot().get("damaged", 0)
    with pytest.raises(ConnectionLost, match="damaged"):
        connection.receive(_fresh, 5.0)
    assert counters.snapshot()["damaged"] == before + 1
    connection.close()
    theirs.close()


def test_who_says_nothing_is_not_waited_for_twice() -> None:
    sock, theirs = socket.socketpair()
    node = CheckedConnection(sock, "peer", Limits(), 30.0, 0.0, accepted=True)
    with pytest.raises(DeadlineExceeded):
        node.receive(_fresh, 0.05)
    with pytest.raises(DeadlineExceeded):  # at once: else the receiver's time would pass once more
        node.send(frames.one(0, Kind.ERROR))
    theirs.sendall(frames.one(7, Kind.SYNC))
    assert frames.sequence(node.receive(_fresh, 5.0).header) == 7
    node.send(frames.one(7, Kind.DONE))
    assert theirs.recv(100) == frames.one(7, Kind.DONE)
    node.close()
    theirs.close()


def test_an_older_node_that_falls_silent_is_not_waited_for_longer() -> None:
    sock, theirs = socket.socketpair()
    again, silent = socket.socketpair()
    connection = CheckedConnection(sock, "peer", Limits(), 30.0, 0.0, redial=lambda: again)
    connection.send(frames.one(0, Kind.HELLO))
    theirs.sendall(frames.one(0, Kind.ERROR, messages.put_error(ProtocolError("what is that?"))))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(connection.receive, _fresh, 0.2)
        try:
            with pytest.raises(DeadlineExceeded):
                answer.result(_SECONDS)
        finally:
            silent.close()
    assert answer.done()
    connection.close()
    theirs.close()


def test_what_is_no_node_is_said_to_be_none() -> None:
    sock, theirs = socket.socketpair()
    connection = CheckedConnection(sock, "peer", Limits(), 5.0, 0.0)
    connection.send(frames.one(0, Kind.HELLO, messages.put_struct(messages.Hello(major=1, minor=1))))
    theirs.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(ProtocolError, match="does not speak Genie's protocol"):
        connection.receive(_fresh, 5.0)
    connection.close()
    theirs.close()
