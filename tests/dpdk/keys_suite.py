"""Once both ends have the ticket's key, nothing else is taken for the peer's."""

from __future__ import annotations

import select
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from dpdk.pairs import SECONDS, pair

from genie.errors import ConnectionLost, DeadlineExceeded
from genie.interfaces import Connection, Keyed, Resumable, Watched
from genie.ways import Bound
from genie.wire import Kind, frames

pytest.importorskip("genie_backend_dpdk", reason="genie-backend-dpdk is not installed: it needs DPDK")

from genie_backend_dpdk.connection import DpdkConnection

KEY, OTHER = bytes(range(32)), bytes(32)


def nothing(header: bytes, sizes: Sequence[int]) -> list[memoryview]:
    return []


def fresh(header: bytes, sizes: Sequence[int]) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


@pytest.fixture
def greeted(tmp_path: Path) -> Iterator[tuple[Connection, Connection]]:
    """Client and node after the greeting, which is not under the key."""
    with pair(tmp_path) as (client, node):
        client.send(frames.one(1, Kind.HELLO))
        node.receive(nothing, SECONDS)
        node.send(frames.one(1, Kind.WELCOME))
        yield client, node


def test_it_is_what_it_says(greeted: tuple[Connection, Connection]) -> None:
    for each in greeted:
        assert isinstance(each, Keyed)
        assert isinstance(each, Resumable)
        assert isinstance(each, Watched)
        assert isinstance(each, Bound)
        assert each.session == 0  # no ticket protected the first packet


def test_the_same_key_at_both_ends(greeted: tuple[Connection, Connection]) -> None:
    client, node = greeted
    assert isinstance(client, Keyed)
    assert isinstance(node, Keyed)
    node.keyed(KEY)
    client.receive(nothing, SECONDS)
    client.keyed(KEY)
    data = bytes(range(256)) * 5000
    for sender, receiver in ((client, node), (node, client)):
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(sender.send, frames.one(2, Kind.UPLOAD, b"", len(data)), (data,))
            assert bytes(receiver.receive(fresh, SECONDS).buffers[0]) == data
            sent.result(SECONDS)


def test_another_key_is_not_heard(greeted: tuple[Connection, Connection]) -> None:
    client, node = greeted
    assert isinstance(client, Keyed)
    assert isinstance(node, Keyed)
    node.keyed(KEY)
    client.receive(nothing, SECONDS)
    client.keyed(OTHER)
    client.send(frames.one(2, Kind.DONE))
    with pytest.raises(DeadlineExceeded):
        node.receive(nothing, 0.2)


def test_what_is_not_under_the_key_is_not_heard(greeted: tuple[Connection, Connection]) -> None:
    client, node = greeted
    assert isinstance(node, Keyed)
    client.receive(nothing, SECONDS)
    node.keyed(KEY)
    client.send(frames.one(2, Kind.DONE))
    with pytest.raises(DeadlineExceeded):
        node.receive(nothing, 0.2)


def test_an_event_loop_is_told(greeted: tuple[Connection, Connection]) -> None:
    """The descriptor is readable while there is something to receive, or the end of it."""
    client, node = greeted
    assert isinstance(client, DpdkConnection)
    client.receive(nothing, SECONDS)
    watch = select.poll()
    watch.register(client.fileno(), select.POLLIN)
    assert not watch.poll(0)
    for _ in range(2):
        node.send(frames.one(2, Kind.DONE))
        node.send(frames.one(3, Kind.DONE))
        assert watch.poll(SECONDS * 1000)
        client.receive(nothing, SECONDS)
        assert watch.poll(SECONDS * 1000)
        client.receive(nothing, SECONDS)
        assert not watch.poll(0)
    node.close()
    assert watch.poll(SECONDS * 1000)
    with pytest.raises(ConnectionLost):
        client.receive(nothing, SECONDS)
