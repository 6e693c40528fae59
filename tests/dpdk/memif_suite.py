"""DPDK over memif, as an ordinary user."""

from __future__ import annotations

import select
from collections.abc import Sequence
from pathlib import Path

import pytest
from dpdk.pairs import SECONDS, joined

from genie.errors import DeadlineExceeded, LocalProtocolError
from genie.interfaces import Connection
from genie.testing.transport_suite import TransportSuite

pytest.importorskip("genie_backend_dpdk", reason="genie-backend-dpdk is not installed: it needs DPDK")

from genie.wire import Kind, Limits, frames
from genie_backend_dpdk import DpdkTransport
from genie_backend_dpdk.connection import DpdkConnection


class TestMemif(TransportSuite):
    @pytest.fixture
    def transport(self) -> DpdkTransport:
        return DpdkTransport(stall_timeout=10.0)

    @pytest.fixture
    def address(self, tmp_path: Path) -> str:
        return f"memif:{tmp_path / 'node.sock'}"

    def test_memory_with_gaps_is_refused(self, pair: tuple[Connection, Connection]) -> None:
        """As over TCP; the connection goes on."""
        client, node = pair
        for gaps in (memoryview(b"data")[::2], memoryview(b"data")[::-1]):
            with pytest.raises(TypeError):
                client.send(header(len(gaps)), (gaps,))
        client.send(header(4), (b"data",))
        assert bytes(node.receive(fresh, SECONDS).buffers[0]) == b"data"

    def test_memory_that_can_not_be_written_is_refused(self, pair: tuple[Connection, Connection]) -> None:
        """And what was to go there is dropped."""
        client, node = pair
        client.send(header(4), (b"gone",))
        with pytest.raises(LocalProtocolError):
            node.receive(lambda header, sizes: [memoryview(bytes(4))], SECONDS)
        client.send(header(4), (b"data",))
        assert bytes(node.receive(fresh, SECONDS).buffers[0]) == b"data"


def header(*sizes: int) -> bytes:
    return frames.message(1, 1, frames.record(Kind.UPLOAD), sizes)


def fresh(header: bytes, sizes: Sequence[int]) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


def test_a_message_that_is_given_up_is_dropped_whole(tmp_path: Path) -> None:
    """In the middle of the first of its buffers."""
    transport = DpdkTransport(stall_timeout=SECONDS, limits=Limits(buffers=3))
    listener = transport.listen(f"memif:{tmp_path / 'node.sock'}")
    client, node = joined(transport, listener)
    assert isinstance(client, DpdkConnection)
    assert isinstance(node, DpdkConnection)
    message = header(1000, 500, 70) + bytes(1000 + 500 + 70)
    client._stream.send((message[:600],), SECONDS)
    watch = select.poll()
    watch.register(node.fileno(), select.POLLIN)
    assert watch.poll(SECONDS * 1000)
    with pytest.raises(DeadlineExceeded) as given_up:
        node.receive(fresh, 0.05)
    assert given_up.value.midway
    client._stream.send((message[600:],), SECONDS)
    client.send(header(4), (b"next",))
    assert [bytes(each) for each in node.receive(fresh, SECONDS).buffers] == [b"next"]
    for each in (client, node, listener):
        each.close()
