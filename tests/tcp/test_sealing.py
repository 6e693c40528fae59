"""Sealed pieces between TLS's records: what is refused, however the bytes arrive."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from security.pki import Pki

from genie.errors import LimitExceeded, TlsFailed
from genie.security import tls as security_tls
from genie.wire import Kind, Limits, frames
from genie_backend_tcp import TcpTransport, sealing
from genie_backend_tcp.sealing import HEAD, PIECE, TAG, Arrived, Opener, Sealer
from genie_backend_tcp.tls import TlsConnection

SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.make(tmp_path_factory.mktemp("pki"))


def sealed(data: bytes, before: int = 0) -> list[bytearray]:
    sealer = Sealer(SECRET)
    sealer.position = before
    return [bytearray(piece) for piece in sealer.seal(memoryview(data))]


def opened(pieces: list[bytearray], before: int = 0) -> bytes:
    opener = Opener(SECRET)
    opener.position = before
    whole = bytearray()
    for piece in pieces:
        out = bytearray(len(piece) - HEAD - TAG)
        opener.open(memoryview(piece)[HEAD:], memoryview(out))
        whole += out
    return bytes(whole)


@given(st.integers(1, 3 * PIECE), st.integers(0, 1 << 40))
def test_what_was_sealed_opens(size: int, before: int) -> None:
    data = os.urandom(64) * (size // 64 + 1)
    assert opened(sealed(data[:size], before), before) == data[:size]


Change = Callable[[list[bytearray]], None]


def _flip_data(pieces: list[bytearray]) -> None:
    pieces[1][HEAD + 1000] ^= 4


def _flip_tag(pieces: list[bytearray]) -> None:
    pieces[2][-1] ^= 1


def _swap(pieces: list[bytearray]) -> None:
    pieces[0], pieces[1] = pieces[1], pieces[0]


def _repeat(pieces: list[bytearray]) -> None:
    pieces.insert(1, pieces[0])


def _leave_out(pieces: list[bytearray]) -> None:
    del pieces[0]


@pytest.mark.parametrize("change", [_flip_data, _flip_tag, _swap, _repeat, _leave_out])
def test_what_was_changed_on_the_way_does_not_open(change: Change) -> None:
    pieces = sealed(bytes(3 * PIECE))
    change(pieces)
    with pytest.raises(TlsFailed, match="altered"):
        opened(pieces)


def test_a_piece_opens_only_where_it_was_said() -> None:
    """Moved before a record of TLS, or behind one more."""
    with pytest.raises(TlsFailed, match="altered"):
        opened(sealed(bytes(100), before=50), before=49)


def test_keys_change(monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(2 * PIECE)
    plainly = sealed(data)
    monkeypatch.setattr(sealing, "_PER_KEY", PIECE)
    pieces = sealed(data)
    assert pieces[0] == plainly[0] and pieces[1] != plainly[1]
    assert opened(pieces) == data


def _record(size: int) -> bytes:
    return bytes((23, 3, 3)) + size.to_bytes(2, "big") + os.urandom(size)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 1 << 14)), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_records_and_pieces_are_told_apart_however_they_arrive(units: list[tuple[bool, int]], random: Random) -> None:
    """Nothing is lost, moved or taken for the other sort."""
    stream, wanted = b"", []
    for is_piece, size in units:
        if is_piece:
            body = os.urandom(size + TAG)
            stream += bytes((sealing.MARK,)) + len(body).to_bytes(4, "big") + body
            wanted.append((True, body))
        else:
            record = _record(size)
            stream += record
            if wanted and not wanted[-1][0]:
                wanted[-1] = (False, wanted[-1][1] + record)
            else:
                wanted.append((False, record))
    arrived, got, at = Arrived(1 << 17), [], 0
    while at < len(stream) or arrived.pending:
        if records := bytes(arrived.records(sealed=True)):
            arrived.drop(len(records))
            if got and not got[-1][0]:
                got[-1] = (False, got[-1][1] + records)
            else:
                got.append((False, records))
        elif (piece := arrived.piece()) is not None:
            got.append((True, bytes(piece)))
            arrived.drop(HEAD + len(piece))
        else:
            space = arrived.space()
            assert len(space) and at < len(stream)
            count = min(len(space), len(stream) - at, random.choice((1, 4, 100, 5000, 1 << 17)))
            space[:count] = stream[at : at + count]
            arrived.came(count)
            at += count
    assert got == wanted


@pytest.mark.parametrize("length", [0, TAG, PIECE + TAG + 1, (1 << 32) - 1])
def test_an_impossible_length_is_refused_before_anything_is_read(length: int) -> None:
    arrived = Arrived(1 << 10)
    head = bytes((sealing.MARK,)) + length.to_bytes(4, "big")
    arrived.space()[:HEAD] = head
    arrived.came(HEAD)
    with pytest.raises(TlsFailed, match="impossible"):
        arrived.space()
    with pytest.raises(TlsFailed, match="impossible"):
        arrived.piece()


def _connected(client: TcpTransport, server: TcpTransport) -> tuple[TlsConnection, TlsConnection]:
    listener = server.listen("127.0.0.1:0")
    with ThreadPoolExecutor(2) as pool:
        accepted = pool.submit(listener.accept, 5.0)
        connecting = pool.submit(client.connect, listener.address, 5.0)
        there = accepted.result(5.0)
        assert isinstance(there, TlsConnection)
        greeted = pool.submit(there.receive, _fresh, 5.0)
        here = connecting.result(5.0)
        assert isinstance(here, TlsConnection)
        here.send(frames.one(0, Kind.HELLO, b""))
        greeted.result(5.0)
    listener.close()
    return here, there


def _fresh(header: bytes, sizes: Sequence[int]) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


def _exchanged(here: TlsConnection, there: TlsConnection, data: bytes) -> bytes:
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(here.send, frames.one(1, Kind.UPLOAD, b"", len(data)), (data,))
        got = there.receive(_fresh, 5.0)
        sent.result(5.0)
    return bytes(got.buffers[0])


def test_an_end_that_knows_nothing_of_it_is_spoken_to_in_records_alone(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(security_tls, "DATA_PLANE", "something-else/1")
        old = pki.client()
        context: ssl.SSLContext = old.client()
    assert context is old.client()
    here, there = _connected(TcpTransport(tls=old), TcpTransport(tls=pki.node()))
    data = os.urandom(1 << 20)
    assert _exchanged(here, there, data) == data
    assert _exchanged(there, here, data) == data
    here.close()
    there.close()


def test_what_is_sealed_may_come_with_the_last_of_the_handshake(pki: Pki) -> None:
    """A client says its last word of that and goes on; the node reads both at once."""
    ours, theirs = socket.socketpair()
    # So that the node reads the last of the handshake, the secret, and the beginning of a piece; the rest is to come.
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    here = TlsConnection(ours, "node", Limits(), 5.0, 0.0, pki.client().client(), host="127.0.0.1")
    there = TlsConnection(theirs, "client", Limits(), 5.0, 0.0, pki.node().server())
    data = os.urandom(1 << 20)

    def client() -> None:
        here.shake_hands(5.0)
        here.send(frames.one(0, Kind.UPLOAD, b"", len(data)), (data,))

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(client)
        assert there._unfinished()
        there._read_handshake(time.monotonic() + 5.0)
        assert there._unfinished()
        there._flush()
        there._set_receive_timeout(5.0)
        while len(theirs.recv(1 << 15, socket.MSG_PEEK)) < 1 << 14:
            assert not sent.done()
        there.begin()
        got = there.receive(_fresh, 5.0)
        sent.result(5.0)
    assert bytes(got.buffers[0]) == data
    here.close()
    there.close()


def test_refused_data_is_skipped_and_the_connection_goes_on(pki: Pki) -> None:
    here, there = _connected(TcpTransport(tls=pki.client()), TcpTransport(tls=pki.node()))
    data = os.urandom((1 << 20) + 77)

    def refuse(header: bytes, sizes: Sequence[int]) -> list[memoryview]:
        raise LimitExceeded("too much")

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(here.send, frames.one(1, Kind.UPLOAD, b"", len(data)), (data,))
        with pytest.raises(LimitExceeded):
            there.receive(refuse, 5.0)
        assert _exchanged(here, there, data) == data
        sent.result(5.0)
    here.close()
    there.close()


def test_what_is_large_is_not_on_the_wire_in_clear(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    wire = bytearray()
    write = TlsConnection._write

    def watched(self: TlsConnection, data: memoryview) -> None:
        wire.extend(data)
        write(self, data)

    monkeypatch.setattr(TlsConnection, "_write", watched)
    here, there = _connected(TcpTransport(tls=pki.client()), TcpTransport(tls=pki.node()))
    data = b"a secret weight." * (1 << 14)
    for _ in range(2):
        assert _exchanged(here, there, data) == data
    assert len(wire) > 2 * len(data) and b"secret weight" not in wire
    assert wire[-len(data) :] != wire[-2 * len(data) - HEAD - TAG : -len(data) - HEAD - TAG]
    here.close()
    there.close()
