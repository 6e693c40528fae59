"""Connections that have not said who they are: few enough, and not all of one host."""

from __future__ import annotations

import threading
from collections.abc import Callable

import attrs
import pytest
from remote.peers import Node

from genie.errors import ConnectionLost
from genie.remote.node.crowd import crowded, host_of


@attrs.frozen(eq=False)
class Peer:
    """A connection, as far as it matters here."""

    peer: str


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("10.0.0.7:51422", "10.0.0.7"),
        ("[2001:db8::7]:51422", "2001:db8::7"),
        ("127.0.0.1:51422", ""),
        ("[::1]:51422", ""),
        ("unix:/run/genie/node.sock", ""),
        ("", ""),
    ],
)
def test_whose_a_connection_is(peer: str, host: str) -> None:
    assert host_of(Peer(peer)) == host  # type: ignore[arg-type]


def test_one_host_leaves_room_for_others() -> None:
    flood = [Peer(f"10.0.0.7:{port}") for port in range(4)]
    local = [Peer(f"127.0.0.1:{port}") for port in range(4)]

    def told(comer: Peer, strangers: list[Peer], sessions: int = 0) -> bool:
        return crowded(comer, strangers, sessions, most=4)  # type: ignore[arg-type]

    assert told(Peer("10.0.0.7:99"), flood)
    assert not told(Peer("10.0.0.8:99"), flood)
    assert not told(Peer("127.0.0.1:99"), local)
    assert told(Peer("10.0.0.8:99"), flood + local)
    assert told(Peer("10.0.0.8:99"), flood, sessions=4)


def test_a_node_without_threads_left_goes_on(make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch) -> None:
    node = make_node()
    start, left = threading.Thread.start, [1]

    def cannot(self: threading.Thread) -> None:
        if self.name == "genie-session" and left[0]:
            left[0] -= 1
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", cannot)
    turned_away = node.transport.connect(node.server.address, 5.0)
    with pytest.raises(ConnectionLost):
        turned_away.receive(lambda header, sizes: [], 5.0)
    caller = node.client()
    assert caller.get(caller.put([1.0])) == [1.0]
    assert node.server.greeting == 0
