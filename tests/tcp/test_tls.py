"""The TCP transport over TLS: the shipped suite, who is believed, and peers that speak something else."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import attrs
import pytest
from security.pki import Pki, days_ago

from genie.errors import AccessDenied, ConnectionLost, DeadlineExceeded, GenieError, ProtocolError, Stage, TlsFailed
from genie.remote import NodeServer, RemoteBackend
from genie.security import AuditLog, Guard, Tls, certs
from genie.testing import Caller, NullBackend, TransportSuite
from genie.wire import Kind, frames
from genie_backend_tcp import TcpTransport
from genie_backend_tcp.connection import TcpConnection


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.make(tmp_path_factory.mktemp("stranger"))


class TestTls(TransportSuite):
    @pytest.fixture
    def transport(self, pki: Pki) -> TcpTransport:
        return TcpTransport(stall_timeout=10.0, tls=pki.node())

    @pytest.fixture
    def address(self) -> str:
        return "127.0.0.1:0"


class TestMutualTls(TestTls):
    @pytest.fixture
    def transport(self, pki: Pki) -> TcpTransport:
        return TcpTransport(stall_timeout=10.0, spin_us=0, tls=pki.node(client_ca=True))


class TestUnixBesideTls(TestTls):
    @pytest.fixture
    def address(self, tmp_path: Path) -> str:
        return f"unix:{tmp_path}/s"


Meet = Callable[[Tls | None, Tls | None], tuple[GenieError | None, GenieError | None]]


@pytest.fixture
def meet() -> Meet:
    """What a client and a server of these settings come to: their errors, both quickly, after a message each way."""

    def run(client: Tls | None, server: Tls | None) -> tuple[GenieError | None, GenieError | None]:
        listener = TcpTransport(stall_timeout=20.0, tls=server).listen("127.0.0.1:0")

        def serve() -> GenieError | None:
            connection = listener.accept(10.0)
            try:
                connection.receive(lambda header, sizes: [], 10.0)
            except GenieError as error:
                with contextlib.suppress(GenieError):
                    connection.send(frames.one(0, Kind.ERROR, b"why"))
                return error
            connection.send(frames.one(0, Kind.WELCOME, b"well"))
            return None

        started = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            served = pool.submit(serve)
            connection: TcpConnection | None = None
            failed: GenieError | None = None
            try:
                connection = TcpTransport(stall_timeout=20.0, tls=client).connect(listener.address, 10.0)
                connection.send(frames.one(0, Kind.HELLO, b"hello"))
                got = connection.receive(lambda header, sizes: [], 10.0)
                if frames.single(got.header)[1] == Kind.ERROR:
                    failed = AccessDenied("told so")
            except GenieError as error:
                failed = error
            if connection is not None:
                connection.close()
            result = failed, served.result(10.0)
        listener.close()
        assert time.monotonic() - started < 9
        return result

    return run


def test_who_is_believed(pki: Pki, meet: Meet) -> None:
    assert meet(pki.client(), pki.node()) == (None, None)
    assert meet(pki.client("client-alice"), pki.node(client_ca=True)) == (None, None)


def test_a_wrong_authority(pki: Pki, stranger: Pki, meet: Meet) -> None:
    client, server = meet(stranger.client(), pki.node())
    assert isinstance(client, TlsFailed) and "not believed" in client.message and "`ca`" in client.hint
    assert isinstance(server, TlsFailed)


def test_a_certificate_for_another_host(pki: Pki, meet: Meet) -> None:
    certs.issue_node(pki.directory, ["other.example"])
    client, _ = meet(pki.client(), Tls(pki.files("node-other.example", ca=True)))
    assert isinstance(client, TlsFailed) and "127.0.0.1" in client.message


def test_a_clients_certificate_does_not_make_a_node(pki: Pki, meet: Meet) -> None:
    client, _ = meet(pki.client(), Tls(pki.files("client-alice", ca=True)))
    assert isinstance(client, TlsFailed) and "purpose" in client.message


def test_a_client_without_a_certificate_where_one_is_asked_for(pki: Pki, meet: Meet) -> None:
    client, server = meet(pki.client(), pki.node(client_ca=True))
    assert isinstance(client, TlsFailed) and "asks for a certificate" in client.message
    assert isinstance(server, TlsFailed) and "no certificate" in server.message


def test_a_clients_certificate_of_a_wrong_authority(pki: Pki, stranger: Pki, meet: Meet) -> None:
    wrong = Tls(attrs.evolve(stranger.files("client-alice"), ca=pki.ca))
    client, server = meet(wrong, pki.node(client_ca=True))
    assert isinstance(client, TlsFailed) and "does not accept" in client.message
    assert isinstance(server, TlsFailed) and "`client_ca`" in server.hint


def test_an_expired_client(tmp_path: Path, meet: Meet) -> None:
    pki = Pki.make(tmp_path)
    with days_ago(30):
        certs.issue_client(tmp_path, "late", days=10)
    client, server = meet(pki.client("client-late"), pki.node(client_ca=True))
    assert isinstance(client, TlsFailed) and "expired" in client.message
    assert isinstance(server, TlsFailed) and "expired" in server.message


def test_an_expired_node(tmp_path: Path) -> None:
    """One that was good when the node started: none starts with it."""
    pki = Pki.make(tmp_path)
    with days_ago(30):
        certs.issue_node(tmp_path, ["127.0.0.1"], days=10)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.path("node-127.0.0.1.pem"), pki.path("node-127.0.0.1.key"))

    def serve() -> None:
        sock, _ = listener.accept()
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(sock, server_side=True)
        sock.close()

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve)
        with pytest.raises(TlsFailed, match="expired"):
            TcpTransport(tls=pki.client()).connect(f"127.0.0.1:{listener.getsockname()[1]}", 5.0)
        served.result(5.0)


def test_plain_at_tls(pki: Pki, meet: Meet) -> None:
    client, server = meet(None, pki.node())
    assert isinstance(client, AccessDenied)  # it was told, in the clear
    assert isinstance(server, AccessDenied) and "without" in server.message


def test_tls_at_plain(pki: Pki, meet: Meet) -> None:
    client, server = meet(pki.client(), None)
    assert isinstance(client, TlsFailed) and "does not speak TLS" in client.message
    assert isinstance(server, ProtocolError) and "speaks TLS" in server.message


def test_a_side_that_believes_nobody_connects_to_nobody(pki: Pki) -> None:
    transport = TcpTransport(tls=Tls(pki.files("node-127.0.0.1")))
    listener = transport.listen("127.0.0.1:0")
    with pytest.raises(TlsFailed, match="none to verify"):
        transport.connect(listener.address, 1.0)
    listener.close()


def test_neither_tls_nor_genie(pki: Pki) -> None:
    listener = TcpTransport(tls=pki.node()).listen("127.0.0.1:0")
    host, port = listener.address.split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ProtocolError, match="neither"):
            listener.accept(5.0).receive(lambda header, sizes: [], 5.0)
    listener.close()


def test_one_who_says_nothing_holds_up_nobody(pki: Pki) -> None:
    listener = TcpTransport(tls=pki.node()).listen("127.0.0.1:0")
    host, port = listener.address.split(":")
    with socket.create_connection((host, int(port))) as silent:
        connection = listener.accept(5.0)
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            connection.receive(lambda header, sizes: [], 0.2)
        silent.sendall(b"\x16\x03\x01")  # and one who begins, and stops
        with pytest.raises(DeadlineExceeded):
            connection.receive(lambda header, sizes: [], 0.2)
        assert time.monotonic() - started < 9
        connection.close()
    listener.close()


def test_old_versions_are_refused(pki: Pki) -> None:
    listener = TcpTransport(tls=pki.node()).listen("127.0.0.1:0")
    host, port = listener.address.split(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(pki.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with ThreadPoolExecutor(1) as pool, socket.create_connection((host, int(port)), timeout=5) as client:
        accepted = pool.submit(lambda: listener.accept(5.0).receive(lambda header, sizes: [], 5.0))
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(client, server_hostname=host)
        with pytest.raises(TlsFailed):
            accepted.result(5.0)
    listener.close()


class Pair(NamedTuple):
    client: TcpConnection
    server: TcpConnection
    between: socket.socket
    flip: threading.Event


@pytest.fixture
def pair(pki: Pki) -> Iterator[Pair]:
    """Two ends, and the socket between which the second's bytes come through."""
    listener = TcpTransport(stall_timeout=5.0, tls=pki.node()).listen("127.0.0.1:0")
    host, port = listener.address.split(":")
    through = socket.create_server((host, 0))
    relay: list[socket.socket] = []
    flip = threading.Event()

    def pump(source: socket.socket, sink: socket.socket, corrupt: bool) -> None:
        try:
            while data := bytearray(source.recv(1 << 16)):
                if corrupt and flip.is_set():
                    data[len(data) // 2] ^= 1
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def between() -> None:
        near, _ = through.accept()
        far = socket.create_connection((host, int(port)))
        relay.extend((near, far))
        threading.Thread(target=pump, args=(far, near, False), daemon=True).start()
        pump(near, far, True)

    worker = threading.Thread(target=between, daemon=True)
    worker.start()
    with ThreadPoolExecutor(3) as pool:
        transport = TcpTransport(stall_timeout=5.0, tls=pki.client())
        accepted = pool.submit(listener.accept, 5.0)
        greeted = pool.submit(transport.connect, f"127.0.0.1:{through.getsockname()[1]}", 5.0)
        server = accepted.result(5.0)
        received = pool.submit(server.receive, lambda header, sizes: [], 5.0)
        client = greeted.result(5.0)
        client.send(frames.one(0, Kind.HELLO, b"hello"))
        received.result(5.0)
    yield Pair(client, server, relay[0], flip)
    client.close()
    server.close()
    for each in relay:
        each.close()
    through.close()
    listener.close()


def test_a_flipped_bit_is_noticed(pair: Pair) -> None:
    pair.flip.set()
    pair.client.send(frames.one(1, Kind.FETCH, b"x" * 1000))
    with pytest.raises(TlsFailed):
        pair.server.receive(lambda header, sizes: [], 5.0)


def test_a_cut_in_a_message_is_noticed(pair: Pair) -> None:
    header = frames.one(1, Kind.UPLOAD, b"x" * 20, 1 << 20)
    pair.client.send(header)  # and never the buffer
    pair.between.shutdown(socket.SHUT_RDWR)
    with pytest.raises(ConnectionLost):
        pair.server.receive(lambda header, sizes: [memoryview(bytearray(size)) for size in sizes], 5.0)


def test_an_interrupt_that_loses_bytes_ends_the_connection(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while decrypting: what was decrypted is lost, and nothing after it may pass for a message."""

    class Struck:
        def pending(self) -> int:
            return 0

        def read(self, size: int, into: memoryview) -> int:
            raise KeyboardInterrupt

    pair.client.send(frames.one(1, Kind.FETCH, b"x"))
    with monkeypatch.context() as patched:
        patched.setattr(pair.server, "_tls", Struck())
        with pytest.raises(KeyboardInterrupt):
            pair.server.receive(lambda header, sizes: [], 5.0)
    pair.client.send(frames.one(2, Kind.FETCH, b"x"))
    with pytest.raises(ConnectionLost, match="interrupted"):
        pair.server.receive(lambda header, sizes: [], 5.0)


def test_both_ways_at_once(pki: Pki) -> None:
    """One thread sends while another receives, on both sides: OpenSSL's object is for one at a time."""
    transport = TcpTransport(stall_timeout=10.0, tls=pki.node())
    listener = transport.listen("127.0.0.1:0")
    data = os.urandom(1 << 20)
    count = 20
    with ThreadPoolExecutor(4) as pool:
        accepted = pool.submit(listener.accept, 5.0)
        connecting = pool.submit(transport.connect, listener.address, 5.0)
        server = accepted.result(5.0)
        hello = pool.submit(server.receive, lambda header, sizes: [], 5.0)
        client = connecting.result(5.0)
        client.send(frames.one(0, Kind.HELLO, b""))
        hello.result(5.0)

        def send(end: TcpConnection) -> None:
            for seq in range(count):
                end.send(frames.one(seq, Kind.UPLOAD, b"h", len(data)), (data,))

        def receive(end: TcpConnection) -> None:
            for _ in range(count):
                got = end.receive(lambda header, sizes: [memoryview(bytearray(size)) for size in sizes], 10.0)
                assert bytes(got.buffers[0]) == data

        work = [pool.submit(call, end) for end in (client, server) for call in (send, receive)]
        for each in work:
            each.result(30.0)
    client.close()
    server.close()
    listener.close()


def test_a_socket_beside_tls_is_for_its_user_alone(pki: Pki, tmp_path: Path) -> None:
    listener = TcpTransport(tls=pki.node()).listen(f"unix:{tmp_path}/s")
    assert os.stat(tmp_path / "s").st_mode & 0o777 == 0o600
    listener.close()


def test_a_renewed_certificate_is_used_without_a_restart(tmp_path: Path) -> None:
    pki = Pki.make(tmp_path / "lab")
    transport = TcpTransport(stall_timeout=10.0, tls=pki.node())

    def serial(address: str) -> bytes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(pki.ca)
        host, port = address.split(":")
        sock = socket.create_connection((host, int(port)), timeout=5)
        with context.wrap_socket(sock, server_hostname=host) as tls:
            return tls.getpeercert(binary_form=True) or b""

    with NodeServer(NullBackend(), transport, "127.0.0.1:0", local=False) as node:
        before = serial(node.address)
        backend = RemoteBackend("tcp", transport, (node.address,), timeout=10.0)
        caller = Caller(backend.connect(backend.devices()[0]))
        certs.issue_node(pki.directory, ["127.0.0.1"])
        assert serial(node.address) != before
        assert caller.get(caller.put([1, 2])) == [1, 2]  # who is there stays
        backend.close()


def test_who_connects_by_certificate_is_written_down(pki: Pki, tmp_path: Path) -> None:
    log = tmp_path / "audit"
    refused = threading.Event()

    class Audit(AuditLog):
        def write(self, event: str, **facts: str | float | int) -> None:
            super().write(event, **facts)
            if event == "refused":
                refused.set()

    guard = Guard(None, Audit(log))
    transport = TcpTransport(stall_timeout=10.0, tls=pki.node(client_ca=True))
    with NodeServer(NullBackend(), transport, "127.0.0.1:0", local=False, guard=guard) as node:
        client = TcpTransport(stall_timeout=10.0, tls=pki.client("client-alice"))
        backend = RemoteBackend("tcp", client, (node.address,), timeout=10.0)
        Caller(backend.connect(backend.devices()[0])).session.synchronize()
        backend.close()
        with pytest.raises(TlsFailed, match="asks for a certificate"):
            RemoteBackend("tcp", TcpTransport(tls=pki.client()), (node.address,)).devices()
        assert refused.wait(10.0)  # the client knows first
        node.wait_for_sessions(0, 10.0)
    text = log.read_text()
    assert '"event": "opened"' in text and '"certificate": "alice"' in text
    assert '"event": "refused"' in text


def test_a_node_that_is_stopped_is_told_from_one_that_hangs_up(pki: Pki) -> None:
    """Its kernel goes on taking connections: nobody shakes hands."""
    with socket.create_server(("127.0.0.1", 0)) as stopped:
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="TLS handshake") as caught:
            TcpTransport(tls=pki.client()).connect(f"127.0.0.1:{stopped.getsockname()[1]}", 0.2)
        assert caught.value.stage is Stage.TLS
        assert time.monotonic() - started < 9
