"""Loops over a connection: portions asked for ahead, answers that come in between, peers that go or say nonsense."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from remote.peers import Node, hear

from genie.bindings import Prediction, parameters
from genie.errors import ConnectionLost, DeadlineExceeded, GenieError, NodeError, ProtocolError, RemoteOpError
from genie.interfaces import Buffer, Connection
from genie.loops import Loop
from genie.remote import RemoteSession
from genie.remote.node.session.loop import NodeLoop
from genie.schedule import Scheduler
from genie.testing import Caller, single
from genie.testing.loop_suite import COUNT, COUNTING
from genie.testing.plans import spec, unpack
from genie.wire import Kind, frames, loops, messages

Scripted = Callable[..., RemoteSession]


def begin(caller: Caller, times: int, loop: Loop = COUNT) -> tuple[int, Iterator[tuple[Buffer, ...]]]:
    given = [caller.put([0, 10]), caller.put([1, 2]), caller.put([100]), caller.put([-1])]
    plan, first = caller.load(COUNTING), caller.handles(2)
    words = [first, *given, *parameters(COUNTING)]
    bindings = Prediction(4, parameters(COUNTING)).encode(words, anew=True)
    assert isinstance(caller.session, RemoteSession)
    return first, caller.session.loop(plan, bindings, loop, times)


def numbers(iterations: Iterator[tuple[Buffer, ...]]) -> list[float]:
    return [unpack(emitted, "float32")[0] for (emitted,) in iterations]


def test_many_iterations_cost_few_bytes_and_no_round_trips(node: Node) -> None:
    caller = node.client()
    first, iterations = begin(caller, 500)
    assert isinstance(caller.session, RemoteSession)
    before = caller.session.traffic
    assert numbers(iterations) == [float(i) for i in range(1, 501)]
    after = caller.session.traffic
    assert after["round_trips"] == before["round_trips"]
    spent = {name: after[name] - before[name] for name in ("bytes_sent", "bytes_received")}
    assert sum(spent.values()) < 60 * 500
    assert caller.get(first) == [500, 1010]


def test_portions_grow_with_the_round_trip(node: Node) -> None:
    caller = node.client()
    caller.session.synchronize()
    _, iterations = begin(caller, 400)
    assert isinstance(caller.session, RemoteSession)
    caller.session._conversation.round_trip = 0.05  # a link on which an iteration is nothing
    before = caller.session.traffic["messages_sent"]
    assert len(numbers(iterations)) == 400
    assert caller.session.traffic["messages_sent"] - before <= 400 / 32


def test_what_is_asked_for_bounds_what_runs_on(node: Node) -> None:
    caller = node.client()
    _, iterations = begin(caller, 10_000)
    next(iterations)
    del iterations
    caller.session.synchronize()
    assert node.local.sessions[-1].stats()["executions"] <= 16 + 8


def test_answers_that_come_while_another_is_awaited_are_kept(node: Node) -> None:
    caller = node.client()
    other = caller.put([7])
    _, iterations = begin(caller, 20)
    assert caller.get(other) == [7]  # after the first portion
    assert numbers(iterations) == [float(i) for i in range(1, 21)]


def test_answers_of_a_loop_that_was_left_are_dropped(node: Node) -> None:
    caller = node.client()
    for _ in range(3):
        _, iterations = begin(caller, 100)
        assert next(iterations)
        iterations.close()  # type: ignore[attr-defined]
    assert list(iterations) == []
    assert caller.get(caller.put([3])) == [3]
    assert isinstance(caller.session, RemoteSession)
    assert not caller.session._conversation.streams


def test_two_loops_the_later_one_goes_on(node: Node) -> None:
    caller = node.client()
    _, one = begin(caller, 100)
    next(one)
    _, two = begin(caller, 12)
    assert numbers(two) == [float(i) for i in range(1, 13)]


def test_what_failed_before_is_told(node: Node) -> None:
    caller = node.client()
    caller.run(single("aten::no_such", [spec(2)], spec(2)), [caller.put([1, 2])])
    _, iterations = begin(caller, 10)
    with pytest.raises(GenieError, match="no_such"):
        next(iterations)
    assert list(iterations) == []
    _, iterations = begin(caller, 3)
    assert numbers(iterations) == [1, 2, 3]


def test_a_plan_that_was_never_sent(node: Node) -> None:
    caller = node.client()
    assert isinstance(caller.session, RemoteSession)
    with pytest.raises(GenieError):
        caller.session.loop(7, b"\0", COUNT, 2)


def test_a_node_that_dies_in_the_middle(node: Node) -> None:
    caller = node.client()
    _, iterations = begin(caller, 1000)
    next(iterations)
    node.server.close()
    with pytest.raises(ConnectionLost):
        numbers(iterations)
    with pytest.raises(ConnectionLost):
        caller.get(1)


def test_a_client_that_goes_in_the_middle(node: Node) -> None:
    caller = node.client()
    _, iterations = begin(caller, 1000)
    next(iterations)
    caller.session.close()
    node.wait_for_sessions(0)
    with pytest.raises(GenieError):
        numbers(iterations)


# --- a node by the script ------------------------------------------------------------------------


def asked(connection: Connection) -> tuple[int, bytes]:
    """The next LOOP: its message's number, and what it says."""
    while True:
        seq, records = hear(connection)
        for kind, body in records:
            if kind == Kind.LOOP:
                return seq, body


def looped(connection: Connection, seq: int, flags: int, *values: bytes) -> None:
    connection.send(frames.one(seq, Kind.LOOPED, loops.put_answer(flags, values)))


def scripted_loop(session: RemoteSession, times: int) -> Iterator[tuple[Buffer, ...]]:
    plan = session.load(Scheduler(devices=[session.device]).schedule(COUNTING))
    return session.loop(plan, Prediction(4, parameters(COUNTING)).encode([1] * 5 + [1, 1]), COUNT, times)


def test_a_node_that_answers_less_than_it_was_asked(scripted: Scripted) -> None:
    def script(connection: Connection) -> None:
        done = 0
        while done < 20:
            seq, _ = asked(connection)
            looped(connection, seq, loops.RAN, bytes([done]))
            looped(connection, seq, loops.RAN | loops.LAST, bytes([done + 1]))
            done += 2
        hear(connection)

    session = scripted(script)
    assert [bytes(value)[0] for (value,) in scripted_loop(session, 20)] == list(range(20))


def test_a_silent_node_and_one_that_goes_on(scripted: Scripted) -> None:
    go_on = threading.Event()

    def script(connection: Connection) -> None:
        seq, _ = asked(connection)
        assert go_on.wait(10)
        looped(connection, seq, loops.RAN | loops.OVER | loops.LAST, b"x")
        hear(connection)

    session = scripted(script)
    iterations = scripted_loop(session, 5)
    session._conversation.timeout = 0.1
    with pytest.raises(DeadlineExceeded, match="LOOP"):
        next(iterations)
    with pytest.raises(DeadlineExceeded):
        next(iterations)
    session._conversation.timeout = 10.0
    go_on.set()
    assert [bytes(value) for (value,) in iterations] == [b"x"]


def test_an_error_ends_the_loop(scripted: Scripted) -> None:
    def script(connection: Connection) -> None:
        seq, _ = asked(connection)
        looped(connection, seq, loops.RAN, b"x")
        error = RemoteOpError("no", op="aten::mm", source="a.py:3")
        connection.send(frames.one(seq, Kind.ERROR, messages.put_error(error)))
        hear(connection)

    iterations = scripted_loop(scripted(script), 5)
    next(iterations)
    with pytest.raises(RemoteOpError) as caught:
        next(iterations)
    assert caught.value.source == "a.py:3"
    assert list(iterations) == []


@pytest.mark.parametrize("payload", [b"", b"\x04", b"\x04\x05ab", b"\x04\x01ab", b"\x80", b"\x00\x00", b"\x04\xff\xff"])
def test_an_answer_that_is_nonsense_ends_the_session(scripted: Scripted, payload: bytes) -> None:
    def script(connection: Connection) -> None:
        seq, _ = asked(connection)
        connection.send(frames.one(seq, Kind.LOOPED, payload))

    session = scripted(script)
    with pytest.raises(ProtocolError):
        next(scripted_loop(session, 5))
    assert session.closed


# --- the records ---------------------------------------------------------------------------------

SPEC = Loop(carries=((0, 1), (3, 0)), strides=((2, -5), (4, 1 << 40)), emit=(1, 0), stop=0)


def test_records_say_what_was_said() -> None:
    count, said = loops.get(memoryview(loops.put_begin(8, messages.put_varint(300), SPEC, 100, b"bindings")))
    assert said is not None
    assert (count, said.plan, said.loop, said.times, bytes(said.bindings)) == (8, 300, SPEC, 100, b"bindings")
    assert loops.get(memoryview(loops.put_more(4))) == (4, None)
    flags, values = loops.get_answer(memoryview(loops.put_answer(loops.RAN, (b"a" * 300, b""))), 2)
    assert (flags, [bytes(value) for value in values]) == (loops.RAN, [b"a" * 300, b""])


def test_mutated_records_are_read_or_refused() -> None:
    draw = random.Random(5)
    good = loops.put_begin(8, messages.put_varint(300), SPEC, 100, b"bindings")
    for _ in range(3000):
        bad = bytearray(good[: draw.randrange(len(good) + 1)])
        for _ in range(draw.randrange(3)):
            if bad:
                bad[draw.randrange(len(bad))] = draw.randrange(256)
        with suppress(ProtocolError):
            loops.get(memoryview(bytes(bad)))


def test_odd_requests_for_loops(node: Node) -> None:
    caller = node.client()
    assert isinstance(caller.session, RemoteSession)
    talk = caller.session._conversation
    with pytest.raises(NodeError):
        talk.ask(Kind.LOOP, loops.put_more(0), Kind.LOOPED)
    answer, _ = talk.ask(Kind.LOOP, loops.put_more(3), Kind.LOOPED)  # of no loop
    assert loops.get_answer(answer, 1) == (loops.LAST | loops.OVER, ())
    assert caller.get(caller.put([1])) == [1]
    with pytest.raises(GenieError, match="cut short"):
        talk.ask(Kind.LOOP, b"\x01\x02", Kind.LOOPED)  # no client of ours says this
    assert caller.session.closed


def test_a_portion_nobody_may_read_stays_small() -> None:
    node = NodeLoop()
    node.begin((bytes(40_000),) for _ in range(10))
    answers = list(node.run(10))
    assert [answer[0] for answer in answers] == [loops.RAN, loops.RAN | loops.LAST]
    assert len(list(node.run(1))) == 1
    node.begin(iter([(bytes(70_000),)]))
    with pytest.raises(GenieError, match="emits"):
        list(node.run(1))
