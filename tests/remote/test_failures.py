"""Peers that are down, mute, mad or too old; and what becomes of the session and the node."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

import msgspec
import pytest
from remote.peers import Node, hear

from genie.errors import (
    BackendUnavailable,
    ConnectionLost,
    DeadlineExceeded,
    GenieError,
    LimitExceeded,
    NodeError,
    OutOfMemory,
    PlanError,
    ProtocolError,
    RemoteOpError,
    SessionClosed,
    VersionMismatch,
)
from genie.graph import TensorSpec
from genie.interfaces import Connection
from genie.remote import RemoteBackend, RemoteSession
from genie.remote.greeting import meet
from genie.testing import MemoryTransport, single
from genie.testing.plans import spec
from genie.wire import PROTOCOL, Kind, Limits, frames, messages

_NEG = single("aten::neg", [spec(2)], spec(2))
Scripted = Callable[..., RemoteSession]


def _none(header: bytes, sizes: object) -> list[memoryview]:
    raise AssertionError("no data is due")


def _raw(node: Node) -> Connection:
    """An open session whose client speaks for itself."""
    return meet(node.transport, node.server.address, 0, 5.0).connection


def _dismissal(connection: Connection) -> tuple[int, GenieError]:
    _, kind, body = frames.single(connection.receive(_none, 5.0).header)
    return kind, messages.get_error(body, "node")


# --- meeting -------------------------------------------------------------------------------------


def test_nobody_is_there() -> None:
    backend = RemoteBackend("memory", MemoryTransport(), ("nowhere:1",), connect_timeout=1.0)
    with pytest.raises(BackendUnavailable) as caught:
        backend.devices()
    assert "nowhere:1" in str(caught.value)
    assert caught.value.hint


def _meet_scripted(script: Callable[[Connection], None], timeout: float = 2.0) -> None:
    transport = MemoryTransport()
    listener = transport.listen("odd:0")

    def serve() -> None:
        connection = listener.accept(5.0)
        hear(connection)
        script(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        meet(transport, listener.address, 0, timeout)
    finally:
        thread.join(5.0)
        listener.close()


def test_a_mute_node_is_given_up() -> None:
    with pytest.raises(DeadlineExceeded, match="did not greet"):
        _meet_scripted(lambda connection: None, timeout=0.1)


def test_a_node_that_hangs_up() -> None:
    with pytest.raises(BackendUnavailable, match="hung up"):
        _meet_scripted(lambda connection: connection.close())


def test_a_node_of_another_protocol() -> None:
    answer = messages.put_struct(messages.Welcome(major=PROTOCOL[0] + 1, minor=3, genie="9.9"))
    with pytest.raises(VersionMismatch) as caught:
        _meet_scripted(lambda connection: connection.send(frames.one(0, Kind.WELCOME, answer)))
    assert f"{PROTOCOL[0] + 1}.3" in caught.value.message
    assert f"{PROTOCOL[0]}.{PROTOCOL[1]}" in caught.value.message
    assert caught.value.hint


def test_a_node_of_another_framing() -> None:
    header = bytearray(frames.one(0, Kind.WELCOME))
    header[2] = 77
    with pytest.raises(VersionMismatch, match="77"):
        _meet_scripted(lambda connection: connection.send(header))


@pytest.mark.parametrize(
    "answer",
    [frames.one(0, Kind.WELCOME, b"\xc1"), frames.one(0, Kind.VALUE), frames.one(0, 200), b"\xa7G\x01" + bytes(13)],
)
def test_a_node_that_greets_with_garbage(answer: bytes) -> None:
    with pytest.raises((ProtocolError, LimitExceeded)):
        _meet_scripted(lambda connection: connection.send(answer))


def test_a_client_of_another_protocol_is_told(node: Node) -> None:
    connection = node.transport.connect(node.server.address, 5.0)
    hello = messages.put_struct(messages.Hello(major=PROTOCOL[0] + 4, minor=0, genie="9.9", device=0))
    connection.send(frames.one(0, Kind.HELLO, hello))
    kind, error = _dismissal(connection)
    assert kind == Kind.ERROR
    assert isinstance(error, VersionMismatch)
    assert f"{PROTOCOL[0] + 4}.0" in error.message
    connection.close()


def test_a_device_that_is_not_there(node: Node) -> None:
    with pytest.raises(NodeError, match="no device 7"):
        meet(node.transport, node.server.address, 7, 5.0)


def test_a_crowded_node(make_node: Callable[..., Node]) -> None:
    node = make_node(max_sessions=2)
    first, second = node.client(), node.client()
    with pytest.raises(LimitExceeded, match="2 sessions"):
        node.client()
    assert first.get(first.put([1])) == second.get(second.put([1])) == [1]
    first.session.close()
    node.wait_for_sessions(1)
    node.client()


def test_a_draining_node_takes_nobody_and_keeps_its_own(node: Node) -> None:
    caller = node.client()
    assert not node.server.drain(0.01)
    with pytest.raises(BackendUnavailable, match="shutting down"):
        node.client()
    assert caller.get(caller.put([5])) == [5]
    caller.session.close()
    assert node.server.drain(5.0)


# --- in the middle -------------------------------------------------------------------------------


def test_a_node_that_dies(node: Node) -> None:
    caller = node.client()
    handle = caller.put([1, 2])
    assert caller.get(handle) == [1, 2]
    node.server.close()
    started = time.monotonic()
    with pytest.raises(ConnectionLost) as caught:
        caller.get(handle)
    assert time.monotonic() - started < 5
    assert caught.value.where
    for _ in range(2):  # and it stays so, quickly and clearly
        with pytest.raises(ConnectionLost, match="over") as caught:
            caller.get(handle)
        assert node.server.address in str(caught.value)
        assert caught.value.hint
    caller.session.close()


def test_a_node_that_does_not_answer(scripted: Scripted) -> None:
    session = scripted(lambda connection: hear(connection), timeout=0.1)
    with pytest.raises(DeadlineExceeded, match="SYNC"):
        session.synchronize()


def test_an_answer_that_comes_too_late_is_not_taken_for_another(scripted: Scripted) -> None:
    late = messages.put_result(spec(1))
    right = messages.put_result(spec(2))

    def script(connection: Connection) -> None:
        first, _ = hear(connection)
        second, _ = hear(connection)
        connection.send(frames.one(first, Kind.VALUE, late, 4), (b"late",))
        connection.send(frames.one(second, Kind.VALUE, right, 8), (b"in-time!",))

    session = scripted(script, timeout=0.1)
    with pytest.raises(DeadlineExceeded):
        session.fetch(1)
    session._conversation.timeout = 5.0
    assert bytes(session.fetch(2).data) == b"in-time!"


@pytest.mark.parametrize(
    ("answer", "data"),
    [
        (lambda seq: frames.one(seq, Kind.VALUE, b"\xc1", 4), b"data"),
        (lambda seq: frames.one(seq, Kind.VALUE, b"\xff\xff", 4), b"data"),
        (lambda seq: frames.one(seq, Kind.VALUE, messages.put_result(spec(2)), 4), b"data"),
        (lambda seq: frames.one(seq, Kind.VALUE, messages.put_result(spec(1), b"data"), 4), b"data"),
        (lambda seq: frames.one(seq, Kind.VALUE, messages.put_result(spec(1))), None),
        (lambda seq: frames.one(seq, Kind.VALUE, messages.put_result(spec(1), b"dat")), None),
        (lambda seq: frames.one(seq, Kind.VALUE, b""), None),
        (lambda seq: frames.one(seq, Kind.DONE), None),
        (lambda seq: frames.one(seq, Kind.HELLO), None),
        (lambda seq: frames.one(seq + 9, Kind.VALUE, messages.put_result(spec(1)), 4), b"data"),
        (lambda seq: frames.one(seq, Kind.DONE, b"", 4), b"data"),
        (lambda seq: frames.one(seq, 99), None),
        (lambda seq: frames.message(seq, 2, frames.record(Kind.DONE) * 2), None),
    ],
)
def test_a_node_that_answers_garbage(scripted: Scripted, answer: Callable[[int], bytes], data: bytes | None) -> None:
    def script(connection: Connection) -> None:
        seq, _ = hear(connection)
        connection.send(answer(seq), () if data is None else (data,))

    session = scripted(script)
    with pytest.raises(ProtocolError):
        session.fetch(1)
    with pytest.raises(ConnectionLost):
        session.fetch(1)


@pytest.mark.parametrize("bulk", [True, False])
def test_a_node_that_sends_more_than_was_asked_for(scripted: Scripted, bulk: bool) -> None:
    def script(connection: Connection) -> None:
        seq, _ = hear(connection)
        if bulk:
            connection.send(frames.one(seq, Kind.VALUE, messages.put_result(spec(4)), 16), (bytes(16),))
        else:
            connection.send(frames.one(seq, Kind.VALUE, messages.put_result(spec(4), bytes(16))))

    out = bytearray(b"untouched")
    with pytest.raises(ProtocolError):
        scripted(script).fetch(1, memoryview(out)[:8])
    assert out == b"untouched"


def test_the_node_says_why_it_hangs_up(scripted: Scripted) -> None:
    def script(connection: Connection) -> None:
        seq, _ = hear(connection)
        connection.send(frames.one(seq, Kind.BYE, messages.put_error(LimitExceeded("too many of them"))))
        connection.close()

    with pytest.raises(LimitExceeded, match="too many of them"):
        scripted(script).synchronize()


def test_a_closed_session_says_so(node: Node) -> None:
    caller = node.client()
    caller.session.close()
    with pytest.raises(SessionClosed):
        caller.put([1])


# --- clients that misbehave: the node is unharmed ------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        frames.one(7, Kind.SYNC),  # out of order
        frames.one(1, Kind.HELLO),
        frames.one(1, Kind.VALUE),
        frames.one(1, 250),
        frames.one(1, Kind.EXECUTE, b"\x05"),  # a plan never sent
        frames.one(1, Kind.EXECUTE, b""),
        frames.one(1, Kind.LOAD_PLAN, b"\x09"),
        frames.one(1, Kind.UPLOAD, b"\x01"),
        frames.one(1, Kind.UPLOAD, messages.put_value(1, spec(2), b"short")),
        frames.one(1, Kind.UPLOAD, messages.put_value(1, TensorSpec((1 << 62, 8), "float32"))),
        frames.one(1, Kind.UPLOAD_COMMIT, b"x"),
        frames.one(1, Kind.FREE, b"odd"),
        frames.one(1, Kind.SEED, b""),
        frames.one(1, Kind.SET_GENERATOR_STATE, b"x"),
    ],
)
def test_a_client_that_breaks_the_protocol_is_told_and_dismissed(node: Node, message: bytes) -> None:
    bystander = node.client()
    connection = _raw(node)
    connection.send(message)
    kind, error = _dismissal(connection)
    assert kind == Kind.BYE
    assert isinstance(error, ProtocolError | LimitExceeded)
    with pytest.raises(ConnectionLost):
        connection.receive(_none, 5.0)
    assert bystander.get(bystander.put([3])) == [3]


@pytest.mark.parametrize(
    "header",
    [
        frames.one(1, Kind.UPLOAD, messages.put_value(1, spec(2)), 4),  # not the value's size
        frames.one(1, Kind.UPLOAD_CHUNK, messages.put_chunk(bytes(32), 0), 4),  # not offered
        frames.one(1, Kind.SYNC, b"", 4),
        frames.message(1, 2, frames.record(Kind.SYNC) * 2, (4,)),
    ],
)
def test_bulk_data_nobody_asked_for(node: Node, header: bytes) -> None:
    connection = _raw(node)
    connection.send(header, (b"data",))
    kind, error = _dismissal(connection)
    assert kind == Kind.BYE
    assert isinstance(error, ProtocolError)


def test_a_tensor_beyond_the_nodes_limit_is_refused_before_it_is_sent(make_node: Callable[..., Node]) -> None:
    node = make_node(limits=Limits(tensor=1 << 20))
    caller = node.client()
    sent = caller.session.stats()["bytes_sent"]
    with pytest.raises(LimitExceeded, match="1048576"):
        caller.session.upload(caller.handles(), spec(1 << 20), bytes(4 << 20))
    assert caller.session.stats()["bytes_sent"] - sent < 1000
    assert caller.get(caller.put([1])) == [1]


def test_a_client_that_ignores_the_limit_is_dismissed(make_node: Callable[..., Node]) -> None:
    node = make_node(limits=Limits(tensor=1 << 20))
    connection = _raw(node)
    connection.send(frames.one(1, Kind.UPLOAD, messages.put_value(1, spec(1 << 20)), 4 << 20), (bytes(4 << 20),))
    kind, error = _dismissal(connection)
    assert kind == Kind.BYE
    assert isinstance(error, LimitExceeded)


# --- what fails in a session, and leaves it alive ------------------------------------------------


@pytest.mark.parametrize("size", [1 << 10, 1 << 18])
@pytest.mark.parametrize("shared", [False, True])
def test_an_upload_beyond_memory_is_told_by_its_handle(make_node: Callable[..., Node], size: int, shared: bool) -> None:
    caller = make_node(memory=size // 2).client()
    fine = caller.put([1, 2])
    handle = caller.handles()
    caller.session.upload(handle, spec(size, dtype="uint8"), bytes(size), shared=shared)
    assert caller.get(fine) == [1, 2]
    for look in (caller.session.fetch, caller.session.describe):
        with pytest.raises(OutOfMemory) as caught:
            look(handle)
        assert str(size) in caught.value.message
    caller.session.free([handle])
    assert caller.get(caller.run(_NEG, [fine])) == [-1, -2]


def test_work_on_a_failed_upload_tells_of_the_upload(make_node: Callable[..., Node]) -> None:
    caller = make_node(memory=1 << 10).client()
    handle = caller.handles()
    caller.session.upload(handle, spec(1 << 12), bytes(1 << 14))
    result = caller.run(_NEG, [handle])
    with pytest.raises(OutOfMemory):
        caller.get(result)


def test_a_plan_the_node_refuses_is_told_at_the_next_look(node: Node) -> None:
    caller = node.client()
    fine = caller.put([1, 2])
    caller.run(single("aten::nowhere", [spec(2)], spec(2)), [fine])
    with pytest.raises(PlanError, match="aten::nowhere"):
        caller.get(fine)
    assert caller.get(fine) == [1, 2]
    caller.run(single("aten::nowhere", [spec(2)], spec(2)), [fine])
    with pytest.raises(PlanError, match="aten::nowhere"):
        caller.get(fine)


def test_an_operators_failure_names_the_node_device(node: Node) -> None:
    caller = node.client()
    made = caller.run(
        single("aten::mm", [spec(2, 2), spec(3, 3)], spec(2, 3)), [caller.put([1] * 4, 2, 2), caller.put([1] * 9, 3, 3)]
    )
    with pytest.raises(RemoteOpError) as caught:
        caller.get(made)
    assert caught.value.device == "null:0"
    assert node.server.address in str(caught.value)


# --- queues --------------------------------------------------------------------------------------


def test_small_work_waits_for_company(node: Node) -> None:
    session = node.client().session
    assert isinstance(session, RemoteSession)
    before = session.traffic["messages_sent"]
    for handle in range(1, 101):
        session.upload(handle, spec(2), bytes(8))
    session.free(range(1, 50))
    assert session.traffic["messages_sent"] == before
    assert bytes(session.fetch(100).data) == bytes(8)
    assert session.traffic["messages_sent"] == before + 1
    assert session.traffic["round_trips"] == 1


def test_the_queue_is_bounded(node: Node) -> None:
    session = node.client().session
    assert isinstance(session, RemoteSession)
    before = session.traffic["messages_sent"]
    for handle in range(1, 101):
        session.upload(handle, spec(1 << 13), bytes(1 << 15))
    assert 10 < session.traffic["messages_sent"] - before < 20
    assert len(session.fetch(100).data) == 1 << 15


def test_nothing_waits_for_work_nobody_looks_at(node: Node) -> None:
    caller = node.client()
    assert isinstance(caller.session, RemoteSession)
    value = caller.put([1, 2])
    for _ in range(50):
        value = caller.run(_NEG, [value])
    assert caller.session.traffic["round_trips"] == 0
    assert caller.get(value) == [1, 2]
    assert caller.session.traffic["round_trips"] == 1
    assert caller.session.traffic["plans_sent"] == 1


def test_an_operator_and_a_look_are_one_message(node: Node) -> None:
    caller = node.client()
    assert isinstance(caller.session, RemoteSession)
    value = caller.put([1, 2])
    assert caller.get(caller.run(_NEG, [value])) == [-1, -2]
    for look in (lambda made: caller.get(made), caller.session.describe):
        before = caller.session.traffic
        made = caller.run(_NEG, [value], more=True)
        assert caller.session.traffic["messages_sent"] == before["messages_sent"]
        look(made)
        assert caller.session.traffic["messages_sent"] == before["messages_sent"] + 1
        caller.session.free([made])


def test_what_waits_for_a_look_is_bounded_and_leaves_with_the_session(node: Node) -> None:
    caller = node.client()
    assert isinstance(caller.session, RemoteSession)
    value = caller.put([1, 2])
    before = caller.session.traffic["messages_sent"]
    for _ in range(10_000):
        caller.session.free([caller.run(_NEG, [value], more=True)])
    assert 0 < caller.session.traffic["messages_sent"] - before < 10
    caller.session.close()
    node.wait_for_sessions(0)
    assert node.local.sessions[-1].stats()["executions"] == 10_000


def test_many_frees_do_not_pile_up(node: Node) -> None:
    session = node.client().session
    assert isinstance(session, RemoteSession)
    before = session.traffic["messages_sent"]
    for handle in range(1, 10_001):
        session.free([handle])
    assert session.traffic["messages_sent"] > before


def test_garbage_collection_may_free_while_the_session_works(node: Node) -> None:
    """A finalizer runs at any allocation, in the thread that holds the session's lock too."""
    caller = node.client()
    value = caller.put([1, 2])

    class Owner:
        def __init__(self, handle: int) -> None:
            self.handle = handle
            self.cycle = self

        def __del__(self) -> None:
            caller.session.free([self.handle])

    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(200):
            Owner(caller.put([1]))
            assert caller.get(caller.run(_NEG, [value])) == [-1, -2]
    finally:
        gc.set_threshold(*thresholds)


def test_a_plan_larger_than_the_node_takes(make_node: Callable[..., Node]) -> None:
    caller = make_node(limits=Limits(plan=64)).client()
    with pytest.raises(LimitExceeded, match="plan"):
        caller.load(_NEG)


def test_a_large_plan_travels_as_bulk(node: Node) -> None:
    caller = node.client()
    sources = tuple(f"program.py:{line}" + "x" * 200 for line in range(1000))
    graph = msgspec.structs.replace(_NEG, sources=sources)
    assert caller.get(caller.run(graph, [caller.put([1, 2])])) == [-1, -2]


def test_the_scripted_node_is_a_node(scripted: Scripted) -> None:
    """The scripts above fail for what they say, not for how the script's node greets."""

    def script(connection: Connection) -> None:
        seq, records = hear(connection)
        assert records[0][0] == Kind.SYNC
        connection.send(frames.one(seq, Kind.DONE))

    scripted(script).synchronize()
