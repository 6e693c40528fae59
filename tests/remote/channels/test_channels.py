"""Values from one node's session to another's: in any order, with their errors, and with nobody left waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import msgspec
import pytest
from remote.peers import DEVICE, Node

from genie.errors import BackendError, ConnectionLost, NodeError, RemoteOpError
from genie.graph import Graph, Input, Ref, TensorSpec
from genie.remote.channels.inlets import Arrivals, Inlet
from genie.remote.client.session import Inlet as Opened
from genie.remote.client.session import RemoteSession
from genie.remote.greeting import meet
from genie.testing import MemoryTransport
from genie.testing.plans import Caller, single, spec
from genie.testing.plans import node as step
from genie.wire import Kind, Limits, frames
from genie.wire.channels import Target


@pytest.fixture
def pair(make_node: Callable[..., Node]) -> tuple[Caller, Caller]:
    transport = MemoryTransport(stall_timeout=10.0)
    return tuple(make_node(transport=transport, address=f"node{number}:0").client() for number in (0, 1))


def sessions(pair: tuple[Caller, Caller]) -> tuple[RemoteSession, RemoteSession]:
    one, other = (caller.session for caller in pair)
    assert isinstance(one, RemoteSession) and isinstance(other, RemoteSession)
    return one, other


def test_values_arrive_in_any_order_and_stay_where_they_were(pair: tuple[Caller, Caller]) -> None:
    sender, receiver = sessions(pair)
    inlet = receiver.inlet("the sender")
    outlet = sender.outlet(inlet)
    handles = [pair[0].put([float(number)] * 5) for number in range(8)]
    for handle in handles:
        sender.send(outlet, handle)
    for position in (3, 0, 7, 1, 2, 6, 5, 4):
        receiver.receive(inlet, position, 100 + position)
    assert [pair[1].get(100 + number) for number in range(8)] == [[float(number)] * 5 for number in range(8)]
    assert pair[0].get(handles[3]) == [3.0] * 5


def test_what_is_sent_is_what_the_value_was_then(pair: tuple[Caller, Caller]) -> None:
    sender, receiver = sessions(pair)
    inlet = receiver.inlet("the sender")
    outlet = sender.outlet(inlet)
    x = pair[0].put([1.0, 2.0])
    sender.send(outlet, x)
    steps = (step(0, "aten::add_.Tensor", [Ref(0), Ref(0), 1], [-1], mutates=[0]),)
    pair[0].run(Graph((spec(2),), (Input(0),), steps, ()), [x])
    sender.send(outlet, x)
    receiver.receive(inlet, 0, 50)
    receiver.receive(inlet, 1, 51)
    assert (pair[1].get(50), pair[1].get(51)) == ([1.0, 2.0], [2.0, 4.0])


def test_large_values_that_nobody_asks_for_yet_are_no_obstacle(
    pair: tuple[Caller, Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genie.remote.channels.inlets._UNCLAIMED_BYTES", 1 << 16)
    sender, receiver = sessions(pair)
    inlet = receiver.inlet("the sender")
    outlet = sender.outlet(inlet)
    for number in range(6):
        sender.send(outlet, pair[0].put([float(number)] * 10_000))
    receiver.receive(inlet, 5, 55)  # the last one first: the others wait, beyond the bound
    assert pair[1].get(55) == [5.0] * 10_000
    for number in range(5):
        receiver.receive(inlet, number, 50 + number)
    assert [pair[1].get(50 + number)[0] for number in range(5)] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_an_error_arrives_in_place_of_its_value(pair: tuple[Caller, Caller]) -> None:
    sender, receiver = sessions(pair)
    inlet = receiver.inlet("the sender")
    outlet = sender.outlet(inlet)
    wrong = single("aten::mm", [spec(2, 2), spec(3, 3)], spec(2, 3))
    made = pair[0].run(wrong, [pair[0].put([0.0] * 4, 2, 2), pair[0].put([0.0] * 9, 3, 3)])
    sender.send(outlet, made)
    sender.send(outlet, pair[0].put([1.0]))
    receiver.receive(inlet, 0, 60)
    receiver.receive(inlet, 1, 61)
    negated = pair[1].run(single("aten::neg", [spec(2, 3)], spec(2, 3)), [60])
    for handle in (60, negated):
        with pytest.raises(RemoteOpError, match="cannot be multiplied") as caught:
            pair[1].get(handle)
        assert caught.value.op == "aten::mm"
    assert pair[1].get(61) == [1.0]


def test_a_value_that_was_never_made_is_an_error_too(pair: tuple[Caller, Caller]) -> None:
    sender, receiver = sessions(pair)
    inlet = receiver.inlet("the sender")
    sender.send(sender.outlet(inlet), 999)
    receiver.receive(inlet, 0, 60)
    with pytest.raises(RemoteOpError, match="handle 999 is unknown"):
        pair[1].get(60)


def test_a_receiver_that_cannot_be_reached_is_told_by_the_sender(pair: tuple[Caller, Caller]) -> None:
    """At once: the receiver waits for half a minute before it gives the sender up."""
    sender, receiver = sessions(pair)
    inlet = receiver.inlet("the sender")
    target = msgspec.structs.replace(inlet.target, address="nowhere:1", local_address="")
    sender.send(sender.outlet(inlet._replace(target=target)), handle := pair[0].put([1.0]))
    deadline = time.monotonic() + 10.0
    with pytest.raises(NodeError, match="could not connect to nowhere:1, to send"):
        while time.monotonic() < deadline:
            assert pair[0].get(handle) == [1.0]
    assert pair[0].get(handle) == [1.0]  # said once; the session goes on


def test_a_receiver_is_told_that_its_sender_cannot_come(pair: tuple[Caller, Caller]) -> None:
    """What waits there is poisoned with the reason, and what comes after it is not waited for, either."""
    sender, receiver = sessions(pair)
    inlet = receiver.inlet("the sender")
    target = msgspec.structs.replace(inlet.target, address="nowhere:1", local_address="")
    outlet = sender.outlet(inlet._replace(target=target))
    x = pair[0].put([1.0])
    for position in (0, 1):
        sender.send(outlet, x)
        receiver.receive(inlet, position, 60 + position)
    with pytest.raises(RemoteOpError, match="could not connect to nowhere:1, to send") as caught:
        sender.synchronize()
    assert caught.value.kind == "BackendUnavailable"
    sender.synchronize()  # said once
    assert pair[0].get(x) == [1.0]
    receiver.abandon(inlet, caught.value)
    with pytest.raises(RemoteOpError, match="could not connect to nowhere:1, to send"):
        pair[1].get(60)
    with pytest.raises(RemoteOpError, match="the sender stopped sending"):
        pair[1].get(61)
    receiver.abandon(inlet, caught.value)  # does nothing the second time


def test_who_came_is_not_abandoned(pair: tuple[Caller, Caller]) -> None:
    sender, receiver = sessions(pair)
    inlet = receiver.inlet("the sender")
    outlet = sender.outlet(inlet)
    sender.synchronize()  # it is connected now
    receiver.abandon(inlet, NodeError("a mistake"))
    sender.send(outlet, pair[0].put([5.0]))
    receiver.receive(inlet, 0, 60)
    assert pair[1].get(60) == [5.0]


def test_a_sender_that_ends_leaves_nobody_waiting(pair: tuple[Caller, Caller]) -> None:
    sender, receiver = sessions(pair)
    inlet = receiver.inlet("node zero")
    outlet = sender.outlet(inlet)
    sender.send(outlet, pair[0].put([1.0]))
    receiver.receive(inlet, 0, 60)
    assert pair[1].get(60) == [1.0]
    receiver.receive(inlet, 1, 61)
    timer = threading.Timer(0.2, sender.close)
    timer.start()
    with pytest.raises(RemoteOpError, match="node zero stopped sending"):
        pair[1].get(61)
    timer.join()
    assert pair[1].get(60) == [1.0]


def test_a_receiver_that_ends_does_not_disturb_the_sender(pair: tuple[Caller, Caller]) -> None:
    sender, receiver = sessions(pair)
    outlet = sender.outlet(receiver.inlet("the sender"))
    x = pair[0].put([1.0] * 4096)
    receiver.close()
    for _ in range(50):
        sender.send(outlet, x)
    assert pair[0].get(x) == [1.0] * 4096


def test_a_token_opens_one_connection_once(make_node: Callable[..., Node]) -> None:
    served = make_node()
    receiver = served.client().session
    assert isinstance(receiver, RemoteSession)
    target = receiver.inlet("somebody").target
    meet(served.transport, served.server.address, -1, 5.0, channel=target.token)
    for token in (target.token, "0" * 32, "x"):
        with pytest.raises(NodeError, match="no such channel"):
            meet(served.transport, served.server.address, -1, 5.0, channel=token)


@pytest.mark.parametrize("ask", [lambda session: session.send(7, 1), lambda session: session.receive(_nowhere(), 0, 1)])
def test_ends_that_were_never_opened_end_the_session(node: Node, ask: Callable[[RemoteSession], None]) -> None:
    session = node.client().session
    assert isinstance(session, RemoteSession)
    ask(session)
    with pytest.raises(BackendError) as caught:
        session.synchronize()
    assert "was never" in str(caught.value)


def _nowhere() -> object:
    return Opened(7, Target(token="x"))


def test_what_a_channel_may_not_carry_ends_it(node: Node) -> None:
    receiver = node.client()
    session = receiver.session
    assert isinstance(session, RemoteSession)
    inlet = session.inlet("a liar")
    met = meet(node.transport, node.server.address, -1, 5.0, channel=inlet.target.token)
    met.connection.send(frames.one(1, Kind.EXECUTE, b"\0"))
    session.receive(inlet, 0, 5)
    with pytest.raises(RemoteOpError, match="a liar stopped sending: record kind 17"):
        receiver.get(5)


def test_a_sender_that_never_comes_is_waited_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genie.remote.channels.inlets._CONNECT_SECONDS", 0.15)
    inlet = Inlet("the sender", Limits(), Arrivals(DEVICE))
    with pytest.raises(BackendError, match="the sender did not connect within 0.15 s"):
        inlet.take(0, unasked, lambda: False)
    inlet.end(ConnectionLost("gone"))
    with pytest.raises(ConnectionLost, match="gone"):
        inlet.take(0, unasked, lambda: False)


def unasked(spec: TensorSpec, size: int) -> memoryview:
    raise AssertionError("nothing is on its way")
