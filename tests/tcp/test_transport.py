"""The TCP transport, against the shipped suite and for what is its own."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from genie.errors import BackendUnavailable, ConfigError, ConnectionLost, DeadlineExceeded, ProtocolError
from genie.testing import TransportSuite
from genie.wire import Kind, frames
from genie_backend_tcp import TcpTransport


def _refuse(header: bytes, sizes: Sequence[int]) -> list[memoryview]:
    raise AssertionError("no buffers are due")


class TestTcp(TransportSuite):
    @pytest.fixture
    def transport(self) -> TcpTransport:
        return TcpTransport(stall_timeout=10.0)

    @pytest.fixture
    def address(self) -> str:
        return "127.0.0.1:0"


class TestTcpWithoutSpinning(TestTcp):
    @pytest.fixture
    def transport(self) -> TcpTransport:
        return TcpTransport(stall_timeout=10.0, spin_us=0)


class TestIPv6(TestTcp):
    @pytest.fixture
    def address(self) -> str:
        try:
            with socket.socket(socket.AF_INET6) as probe:
                probe.bind(("::1", 0))
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                pytest.skip("this host has no IPv6")
            raise
        return "[::1]:0"


class TestUnix(TestTcp):
    @pytest.fixture
    def address(self, tmp_path: Path) -> str:
        return f"unix:{tmp_path}/s"


@pytest.fixture
def transport() -> TcpTransport:
    return TcpTransport(stall_timeout=5.0)


def test_a_port_that_is_taken(transport: TcpTransport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match="taken") as caught:
            transport.listen(address)
    assert address in str(caught.value)
    assert "--port" in caught.value.hint


@pytest.mark.parametrize("address", ["nonsense", "host:", "host:http", ":::80", "::1:80", "h:70000", "unix:"])
def test_addresses_that_are_none(transport: TcpTransport, address: str) -> None:
    with pytest.raises((ConfigError, BackendUnavailable)) as caught:
        transport.connect(address, 1.0)
    assert address in str(caught.value)


def test_a_host_that_does_not_exist(transport: TcpTransport) -> None:
    with pytest.raises(BackendUnavailable, match="unknown"):
        transport.connect("no-such-host.invalid:80", 2.0)


def test_a_silent_host_is_given_up(transport: TcpTransport) -> None:
    with socket.socket() as full:  # a backlog that is full drops what comes
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        crowd = [socket.socket() for _ in range(4)]
        try:
            for each in crowd:
                each.setblocking(False)
                each.connect_ex(full.getsockname())
            with pytest.raises(BackendUnavailable, match="no answer within"):
                transport.connect(f"127.0.0.1:{full.getsockname()[1]}", 0.3)
        finally:
            for each in crowd:
                each.close()


def test_garbage_is_no_message(transport: TcpTransport) -> None:
    ours, theirs = socket.socketpair()
    connection = transport.wrap(ours, "peer")
    theirs.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(ProtocolError, match="does not speak"):
        connection.receive(_refuse, 1.0)
    connection.close()
    theirs.close()


def test_a_peer_that_stops_within_a_message(transport: TcpTransport) -> None:
    ours, theirs = socket.socketpair()
    connection = TcpTransport(stall_timeout=0.1).wrap(ours, "peer")
    header = frames.message(0, 1, frames.record(Kind.SYNC))
    theirs.sendall(header[:-1])
    with pytest.raises(DeadlineExceeded):
        connection.receive(_refuse)  # no deadline of its own, and yet
    theirs.sendall(header[-1:])
    assert frames.sequence(connection.receive(_refuse, 1.0).header) == 0
    connection.close()
    theirs.close()


def test_a_peer_that_takes_nothing() -> None:
    ours, theirs = socket.socketpair()
    connection = TcpTransport(stall_timeout=0.1).wrap(ours, "peer")
    data = bytes(32 << 20)
    with pytest.raises(DeadlineExceeded):
        connection.send(frames.message(0, 1, frames.record(Kind.UPLOAD_CHUNK), (len(data),)), (data,))
    connection.close()
    theirs.close()


def test_an_interrupted_receiver_stays_in_step(transport: TcpTransport) -> None:
    ours, theirs = socket.socketpair()
    connection = transport.wrap(ours, "peer")
    size = 1 << 20
    memory = bytearray(size)
    header = frames.message(0, 1, frames.record(Kind.VALUE), (size,))
    theirs.sendall(header + b"x" * 1000)
    with pytest.raises(DeadlineExceeded):
        connection.receive(lambda header, sizes: [memoryview(memory)], 0.05)
    untouched = memory[5000:]

    def send() -> None:
        theirs.sendall(b"y" * (size - 1000) + frames.message(1, 1, frames.record(Kind.DONE)))

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(send)
        assert frames.sequence(connection.receive(_refuse, 5.0).header) == 1
        sent.result(5.0)
    assert memory[5000:] == untouched
    connection.close()
    theirs.close()


def test_a_stale_socket_is_replaced(transport: TcpTransport, tmp_path: Path) -> None:
    path = tmp_path / "node.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listener = transport.listen(f"unix:{path}")
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    listener.close()
    assert not path.exists()


def test_a_file_is_not_replaced(transport: TcpTransport, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ConfigError, match="or it is another file") as caught:
        transport.listen(f"unix:{path}")
    assert "--port" not in caught.value.hint
    assert path.read_text() == "data"


def test_two_threads_close_at_once(transport: TcpTransport) -> None:
    ours, theirs = socket.socketpair()
    connection = transport.wrap(ours, "peer")
    threads = [threading.Thread(target=connection.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5.0)
    with pytest.raises(ConnectionLost):
        connection.send(frames.message(0, 1, frames.record(Kind.SYNC)))
    theirs.close()


def test_a_deadline_says_whether_part_of_a_message_is_lost(transport: TcpTransport) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        connection = transport.wrap(ours, "peer")
        header = frames.one(1, Kind.VALUE, b"x", 8)
        for sent, midway in ((b"", False), (header[:9], False), (header[9:] + bytes(3), True)):
            theirs.sendall(sent)
            with pytest.raises(DeadlineExceeded) as caught:
                connection.receive(lambda header, sizes: [memoryview(bytearray(size)) for size in sizes], 0.02)
            assert caught.value.midway is midway
        connection.close()


def test_a_host_that_says_that_nobody_listens(transport: TcpTransport, tmp_path: Path) -> None:
    listener = transport.listen("127.0.0.1:0")
    listener.close()
    for address in (listener.address, f"unix:{tmp_path}/nobody"):
        with pytest.raises(BackendUnavailable) as caught:
            transport.connect(address, 2.0)
        assert caught.value.refused
