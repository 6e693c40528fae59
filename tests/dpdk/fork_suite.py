"""A child of a process that uses DPDK is told that it can't, and its parent does not notice it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from dpdk.pairs import SECONDS, pair

from genie.errors import BackendUnavailable, ConnectionLost
from genie.interfaces import Connection
from genie.wire import Kind, frames
from genie_backend_dpdk import DpdkTransport


def nothing(header: bytes, sizes: Sequence[int]) -> list[memoryview]:
    return []


def in_child(work: Callable[[], None]) -> None:
    """Fails where that does."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[tuple[Connection, Connection]]:
    with pair(tmp_path) as ends:
        yield ends


def test_a_connection_of_the_parents(joined: tuple[Connection, Connection]) -> None:
    client, node = joined

    def work() -> None:
        with pytest.raises(ConnectionLost, match="forked"):
            client.send(frames.one(1, Kind.HELLO))
        with pytest.raises(ConnectionLost, match="forked"):
            node.receive(nothing, SECONDS)
        client.close()

    in_child(work)
    client.send(frames.one(1, Kind.HELLO))
    node.receive(nothing, SECONDS)


def test_a_child_of_the_child(joined: tuple[Connection, Connection]) -> None:
    """The numbers of what the first one closed are other files' by then, which the second one keeps."""

    def work() -> None:
        mine = {os.dup(1) for _ in range(20)}

        def check() -> None:
            for each in mine:
                os.fstat(each)

        in_child(check)

    in_child(work)


def test_a_connection_of_its_own() -> None:
    def work() -> None:
        with pytest.raises(BackendUnavailable, match="forked"):
            DpdkTransport().listen("127.0.0.1:0")

    DpdkTransport().listen("127.0.0.1:0").close()
    in_child(work)
