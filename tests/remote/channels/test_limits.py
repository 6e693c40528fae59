"""What channels may hold and wait for: memory is asked for first, queues are bounded, nobody waits for nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from remote.peers import Node

from genie.errors import BackendError, DeadlineExceeded, RemoteOpError
from genie.remote.channels.inlets import Inlet
from genie.remote.client.session import RemoteSession
from genie.testing import MemoryTransport
from genie.testing.plans import Caller, single, spec

KIB = 1 << 10


def remote(caller: Caller) -> RemoteSession:
    assert isinstance(caller.session, RemoteSession)
    return caller.session


class Pair:
    """A sender and a receiver on nodes of their own, and a channel between them."""

    def __init__(self, make_node: Callable[..., Node], memory: int = 1 << 30) -> None:
        transport = MemoryTransport(stall_timeout=10.0)
        self.nodes = (
            make_node(transport=transport, address="sender:0"),
            make_node(transport=transport, address="receiver:0", memory=memory),
        )
        self.sending, self.receiving = (node.client() for node in self.nodes)
        self.sender, self.receiver = remote(self.sending), remote(self.receiving)
        self.inlet = self.receiver.inlet("the sender")
        self.outlet = self.sender.outlet(self.inlet)

    def send(self, kib: int, *numbers: float) -> None:
        """Values of so many KiB, all uploaded before the first is sent."""
        handles = [self.sending.put([number] * (kib * KIB // 4)) for number in numbers]
        self.sender.synchronize()
        for handle in handles:
            self.sender.send(self.outlet, handle)


def test_a_client_that_goes_ends_the_wait_of_its_session(make_node: Callable[..., Node]) -> None:
    pair = Pair(make_node)
    pair.receiver.receive(pair.inlet, 0, 50)  # nothing was sent, nor will be
    pair.receiver.seed(0, 1)
    started = time.monotonic()
    pair.receiver.close()
    assert pair.nodes[1].server.wait_for_sessions(0, 5.0)
    assert time.monotonic() - started < 5.0
    assert pair.nodes[0].server.wait_for_sessions(1, 0.0)  # the sender is where it was


def test_work_asked_before_the_client_went_reaches_other_nodes(make_node: Callable[..., Node]) -> None:
    pair = Pair(make_node)
    x = pair.sending.put([3.0])
    pair.sender.send(pair.outlet, x)
    pair.receiver.receive(pair.inlet, 0, 50)
    assert pair.receiving.get(50) == [3.0]


def test_a_value_is_received_once(make_node: Callable[..., Node]) -> None:
    pair = Pair(make_node)
    pair.send(8, 0.0, 1.0, 2.0)
    pair.receiver.receive(pair.inlet, 1, 50)
    assert pair.receiving.get(50)[0] == 1.0
    started = time.monotonic()
    pair.receiver.receive(pair.inlet, 1, 51)
    with pytest.raises(BackendError, match="value 1 of the sender was received already"):
        pair.receiver.synchronize()
    assert time.monotonic() - started < 5.0


def test_a_value_the_device_cannot_hold_is_refused_and_the_next_ones_come(make_node: Callable[..., Node]) -> None:
    pair = Pair(make_node, memory=64 * KIB)
    pair.send(256, 1.0)
    pair.send(16, 2.0)
    pair.receiver.receive(pair.inlet, 0, 50)
    pair.receiver.receive(pair.inlet, 1, 51)
    assert pair.receiving.get(51)[0] == 2.0
    with pytest.raises(RemoteOpError, match=r"262144 bytes|65536"):
        pair.receiving.get(50)
    assert pair.receiver.stats()["memory_bytes"] == 16 * KIB


def test_a_value_that_is_waited_for_asks_the_session_for_its_memory(
    make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would fit the device, but not beside what the session holds: refused before it is taken off the wire."""
    waits, wait = threading.Event(), Inlet._wait

    def noted(inlet: Inlet, *args: Any) -> None:
        waits.set()
        wait(inlet, *args)

    def nowhere(size: int) -> memoryview:
        raise AssertionError(f"{size} bytes were taken without asking the session")

    monkeypatch.setattr(Inlet, "_wait", noted)
    monkeypatch.setattr("genie.remote.channels.inlets.room", nowhere)
    pair = Pair(make_node, memory=64 * KIB)
    held = pair.receiving.put([0.0] * (40 * KIB // 4))

    def sent(position: int, kib: int, number: float) -> list[float]:
        waits.clear()
        pair.receiver.receive(pair.inlet, position, 50 + position)
        with ThreadPoolExecutor(1) as pool:
            looked_at = pool.submit(pair.receiving.get, 50 + position)
            assert waits.wait(10.0)
            pair.send(kib, number)
            return looked_at.result(10.0)

    assert sent(0, 8, 1.0)[0] == 1.0
    with pytest.raises(RemoteOpError, match="32768 bytes needed"):
        sent(1, 32, 2.0)
    assert sent(2, 8, 3.0)[0] == 3.0
    assert len(pair.receiving.get(held)) == 40 * KIB // 4


def test_freeing_makes_room_for_what_is_received_after_it(make_node: Callable[..., Node]) -> None:
    pair = Pair(make_node, memory=64 * KIB)
    old = pair.receiving.put([0.0] * (48 * KIB // 4))
    pair.receiver.synchronize()
    pair.send(48, 7.0)
    pair.receiver.free([old])
    pair.receiver.receive(pair.inlet, 0, 50)
    assert pair.receiving.get(50)[0] == 7.0


def test_a_full_queue_holds_the_sender_until_the_receiver_takes(
    make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genie.remote.channels.outlets._QUEUED_BYTES", 64 * KIB)
    monkeypatch.setattr("genie.remote.channels.inlets._UNCLAIMED_BYTES", 64 * KIB)
    pair = Pair(make_node)
    monkeypatch.setattr("genie.testing.memory._MOST_BYTES", 64 * KIB)
    pair.send(48, *map(float, range(12)))
    done = threading.Event()

    def look() -> None:
        pair.sender.synchronize()
        done.set()

    thread = threading.Thread(target=look)
    thread.start()
    assert not done.wait(0.5)  # the session on the sender's node waits
    for number in range(12):
        pair.receiver.receive(pair.inlet, number, 100 + number)
    assert [pair.receiving.get(100 + number)[0] for number in range(12)] == [float(number) for number in range(12)]
    assert done.wait(10.0)
    thread.join(10.0)


def test_a_receiver_that_takes_nothing_is_named_with_the_sender(
    make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genie.remote.channels.outlets._QUEUED_BYTES", 64 * KIB)
    monkeypatch.setattr("genie.remote.channels.outlets._QUEUED_SECONDS", 0.3)
    monkeypatch.setattr("genie.remote.channels.inlets._UNCLAIMED_BYTES", 64 * KIB)
    monkeypatch.setattr("genie.testing.memory._MOST_BYTES", 64 * KIB)
    pair = Pair(make_node)
    x = pair.sending.put([5.0])
    pair.send(48, *map(float, range(12)))
    with pytest.raises(DeadlineExceeded) as caught:
        pair.sending.get(x)
    told = str(caught.value)
    assert pair.nodes[0].server.address in told and pair.nodes[1].server.address in told
    assert pair.sending.get(x) == [5.0]  # the session lives on
    pair.receiver.receive(pair.inlet, 11, 60)
    with pytest.raises(RemoteOpError, match="the sender stopped sending"):
        pair.receiving.get(60)


def test_a_session_that_waits_lets_others_be_rid_of_their_values(
    make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sends much to B, then a little to C, which C passes on to B. B asks for that first: A must get rid of the rest,
    though nobody asks for it yet."""
    monkeypatch.setattr("genie.remote.channels.outlets._QUEUED_BYTES", 64 * KIB)
    monkeypatch.setattr("genie.remote.channels.inlets._UNCLAIMED_BYTES", 64 * KIB)
    monkeypatch.setattr("genie.testing.memory._MOST_BYTES", 64 * KIB)
    transport = MemoryTransport(stall_timeout=10.0)
    nodes = [make_node(transport=transport, address=f"node{number}:0") for number in range(3)]
    a, b, c = (node.client() for node in nodes)
    ways = {}
    for source, target in ((a, b), (a, c), (c, b)):
        inlet = remote(target).inlet("another")
        ways[id(source), id(target)] = (inlet, remote(source).outlet(inlet))
    many = [a.put([float(number)] * (48 * KIB // 4)) for number in range(12)]
    few = a.put([42.0])
    a.session.synchronize()
    for handle in many:
        remote(a).send(ways[id(a), id(b)][1], handle)
    remote(a).send(ways[id(a), id(c)][1], few)
    remote(c).receive(ways[id(a), id(c)][0], 0, 50)
    negated = c.run(single("aten::neg", [spec(1)], spec(1)), [50])
    remote(c).send(ways[id(c), id(b)][1], negated)
    remote(b).receive(ways[id(c), id(b)][0], 0, 60)
    assert b.get(60) == [-42.0]
    for number in range(12):
        remote(b).receive(ways[id(a), id(b)][0], number, 100 + number)
    assert [b.get(100 + number)[0] for number in range(12)] == [float(number) for number in range(12)]
