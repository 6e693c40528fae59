"""Clients that attack a node: each is refused before memory is asked for, and another client does not notice."""

from __future__ import annotations

import contextlib
import gzip
import socket
import struct
import tracemalloc
from collections.abc import Callable, Iterator

import blake3
import grpc
import pytest
from remote.peers import Node, hear

from genie import codec
from genie.errors import ConnectionLost, GenieError, LimitExceeded, NodeError, ProtocolError, SessionClosed
from genie.graph import TensorSpec
from genie.interfaces import Connection
from genie.remote.control import SERVICE, ControlPlane
from genie.remote.greeting import meet
from genie.testing import Caller, single
from genie.testing.plans import spec
from genie.wire import PROTOCOL, Kind, channels, frames, loops, messages
from genie.wire.messages import Back, Hello
from genie_backend_tcp import TcpTransport

_NEG = single("aten::neg", [spec(2)], spec(2))
_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1
_ALLOWED = 1 << 18  # bytes that refusing may take, besides 64 for each of the message
_DEEP = b"\x91" * 200_000
_MANY = b"\xdd\xff\xff\xff\xff"
_LONG = b"\xdb\xff\xff\xff\xff"


@pytest.fixture
def bystander(node: Node) -> Iterator[Caller]:
    """Another client of the node, whose values are as they were when the attacker is done."""
    caller = node.client()
    handle = caller.put([3, 4])
    yield caller
    assert caller.get(handle) == [3, 4]
    assert caller.get(caller.run(_NEG, [handle])) == [-3, -4]


def _attacker(node: Node) -> Connection:
    return meet(node.transport, node.server.address, 0, 5.0).connection


def _none(header: bytes, sizes: object) -> list[memoryview]:
    raise AssertionError("no data is due")


def _answer(connection: Connection) -> tuple[int, GenieError | None]:
    _, records = frames.split(connection.receive(_none, 10.0).header)
    kind, body = records[0]
    return kind, messages.get_error(body, "node") if kind in (Kind.ERROR, Kind.BYE) else None


def _dismissed(connection: Connection) -> GenieError:
    kind, error = _answer(connection)
    assert kind == Kind.BYE
    assert error is not None
    assert "the node failed" not in error.message
    with pytest.raises(ConnectionLost):
        connection.receive(_none, 10.0)
    return error


# --- bombs ------------------------------------------------------------------------------------------


def _upload(packed: bytes) -> bytes:
    return struct.pack("<QH", 1, min(len(packed), 0xFFFF)) + packed


def _planned(body: bytes) -> bytes:
    from genie_fuzz.targets.codec import headed

    return b"\0" + headed(2, body)


@pytest.mark.parametrize(
    "record",
    [
        (Kind.UPLOAD, messages.put_value(1, TensorSpec((1 << 62, 8), "float32"))),
        (Kind.UPLOAD, messages.put_value(1, TensorSpec((1 << 40,), "uint8"))),
        (Kind.UPLOAD, messages.put_value(1, TensorSpec((1,) * 65, "uint8"), b"x")),
        (Kind.UPLOAD, messages.put_value(1, TensorSpec((-1,), "uint8"))),
        (Kind.UPLOAD, messages.put_value(1, TensorSpec((2,), "uint8", (-1,)), b"xx")),
        (Kind.UPLOAD, messages.put_value(1, TensorSpec((2,), "uint8", (1, 1)), b"xx")),
        (Kind.UPLOAD, messages.put_value(1, TensorSpec((2,), "nothing"), b"xx")),
        (Kind.UPLOAD, messages.put_value(0, spec(1), bytes(4))),
        (Kind.UPLOAD, messages.put_value(1 << 63, spec(1), bytes(4))),
        (Kind.UPLOAD, _upload(b"\x93" + _DEEP[:60_000])),
        (Kind.UPLOAD, _upload(b"\x93" + _MANY)),
        (Kind.UPLOAD, _upload(b"\x93\x90" + _LONG)),
        (Kind.UPLOAD_COMMIT, bytes(32) + _upload(b"\x93" + _MANY)),
        (Kind.LOOP, struct.pack("<III", _U32, _U32, _U32) + b"\0"),
        (Kind.LOOP, struct.pack("<III", 1, 1, len(_DEEP)) + b"\0" + _DEEP),
        (Kind.LOOP, struct.pack("<III", 1, 1, 6) + b"\0\x94" + _MANY),
        (Kind.OUTLET, b"\x82" + _LONG),
        (Kind.OUTLET, channels.put(channels.Outlet(number=1, target=channels.Target(token="t" * 5000)))),
        (Kind.FREE, b"\xff" * 100_000),
        (Kind.FREE, b"\x80"),
        (Kind.SEED, struct.pack("<QQ", 1 << 63, 1)),
        (Kind.SET_GENERATOR_STATE, struct.pack("<Q", _U64)),
        (Kind.TRACE, b"0" * 129),
        (Kind.HEARD, b"x"),
        (Kind.EXECUTE, b"\xff\xff\xff\xff\xff"),
        (Kind.EXECUTE, b"\xff\xff\xff\xff\x0f"),
        (Kind.LOAD_PLAN, b"\xff\xff\xff\xff\x0f"),
        (Kind.SEND, struct.pack("<QQ", 1, 1)),
        (Kind.RECEIVE, struct.pack("<QQQ", 1, 0, 1)),
        (Kind.UPLOAD_CHUNK, bytes(40)),
        (Kind.WAIT, b""),  # is the node's to say
        (Kind.WELCOME, b""),
        (Kind.MARKED, bytes(8)),
        (255, b""),
    ],
)
def test_a_record_that_no_client_sends_ends_its_session_before_memory_is_asked_for(
    node: Node, bystander: Caller, record: tuple[int, bytes]
) -> None:
    connection = _attacker(node)
    header = frames.one(1, *record)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        connection.send(header)
        error = _dismissed(connection)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(error, ProtocolError | LimitExceeded)
    assert peak - before < _ALLOWED + 64 * len(header)
    node.wait_for_sessions(1)


@pytest.mark.parametrize(
    "record",
    [
        (Kind.UPLOAD_BEGIN, struct.pack("<32sQ", bytes(32), 1 << 62)),
        (Kind.LOOP, loops.put_more(0)),
        (Kind.LOOP, loops.put_more(_U32)),
        (Kind.INLET, b"\x82" + _MANY),
        (Kind.GENERATOR_STATE, struct.pack("<Q", _U64)),
        (Kind.FETCH, struct.pack("<QQ", _U64, _U64)),
        (Kind.FETCH, struct.pack("<QQ", 0, _U64)),
        (Kind.DESCRIBE, struct.pack("<Q", 1 << 63)),
        (Kind.PROFILE, struct.pack("<d", float("nan"))),
        (Kind.FETCH, struct.pack("<QQ", 77, _U64)),
        (Kind.DESCRIBE, struct.pack("<Q", (1 << 63) - 1)),
    ],
)
def test_a_question_that_makes_no_sense_is_answered_and_the_session_goes_on(
    node: Node, bystander: Caller, record: tuple[int, bytes]
) -> None:
    connection = _attacker(node)
    connection.send(frames.one(1, *record))
    kind, error = _answer(connection)
    assert kind in (Kind.ERROR, Kind.LOOPED)
    assert error is None or "the node failed" not in error.message
    connection.send(frames.one(2, Kind.SYNC))
    assert _answer(connection)[0] == Kind.DONE
    connection.close()
    node.wait_for_sessions(1)


@pytest.mark.parametrize(
    "body",
    [_DEEP, _MANY, _LONG, b"\x81\xa5graph" + _MANY, b"\x8e" + b"\xa5graph" * 20_000, b"\xc7", b"\xdf\xff\xff\xff\xff"],
)
def test_a_plan_that_is_a_bomb_is_refused_and_the_session_goes_on(node: Node, bystander: Caller, body: bytes) -> None:
    connection = _attacker(node)
    planned = _planned(body)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        connection.send(frames.one(1, Kind.LOAD_PLAN, planned))
        connection.send(frames.one(2, Kind.FETCH, messages.put_pair(1, messages.ANY_SIZE)))
        kind, error = _answer(connection)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (kind, type(error).__name__) == (Kind.ERROR, "CodecError")
    assert peak - before < _ALLOWED + 64 * len(planned)
    connection.send(frames.one(3, Kind.SYNC))
    assert _answer(connection)[0] == Kind.DONE
    connection.close()


@pytest.mark.parametrize(
    ("body", "buffers", "records", "sizes"),
    [
        (_U32, 0, 1, ()),  # four gigabytes of records
        ((1 << 20) + 1, 0, 1, ()),
        (4, 0xFFFF, 1, ()),  # half a megabyte of sizes
        (4, 2, 1, ()),
        (4, 0, 0, ()),
        (4, 0, 0xFFFF, ()),
        (2, 1, 1, (_U64,)),
        (2, 1, 1, ((1 << 38) + 1,)),
    ],
)
def test_a_frame_that_claims_too_much_is_cut_off(
    make_node: Callable[..., Node], body: int, buffers: int, records: int, sizes: tuple[int, ...]
) -> None:
    node = make_node(transport=TcpTransport(stall_timeout=5.0), address="127.0.0.1:0", local=False)
    caller = node.client()
    handle = caller.put([3, 4])
    host, port = node.server.address.rsplit(":", 1)
    prefix = frames.PREFIX.pack(frames.MAGIC, frames.VERSION, 0, 0, body, buffers, records)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        with socket.create_connection((host, int(port)), 5.0) as stranger:
            stranger.settimeout(10.0)
            with contextlib.suppress(ConnectionError):  # cut off, with or without a reset
                stranger.sendall(prefix + struct.pack(f"<{len(sizes)}Q", *sizes) + bytes(min(body, 4)))
                while stranger.recv(1 << 16):
                    pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 1 << 20
    assert caller.get(handle) == [3, 4]


def test_the_control_plane_takes_nothing_compressed(node: Node) -> None:
    """The data plane knows no compression; gRPC does, and would unpack before it looks at the size."""
    plane = ControlPlane(node.server, lambda seconds: None)
    port = plane.start("127.0.0.1", 0)
    bomb = bytes(64 << 20)
    assert len(gzip.compress(bomb, 1)) < 1 << 20
    try:
        for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            with grpc.insecure_channel(f"127.0.0.1:{port}", compression=compression) as channel:
                call = channel.unary_unary(f"/{SERVICE}/Capabilities")
                with pytest.raises(grpc.RpcError) as caught:
                    call(bomb, timeout=20.0)
                assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/{SERVICE}/Capabilities")(bytes(2 << 20), timeout=20.0)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/{SERVICE}/Open")(_DEEP, timeout=20.0)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert channel.unary_unary(f"/{SERVICE}/Capabilities")(b"\x80", timeout=20.0)
    finally:
        plane.close()


# --- what is another's ------------------------------------------------------------------------------


def test_handles_of_another_session_are_no_handles(node: Node, bystander: Caller) -> None:
    theirs = [bystander.put([number, number]) for number in range(8)]
    attacker = node.client()
    for handle in range(64):
        with pytest.raises(GenieError):
            attacker.session.fetch(handle + 1)
        with pytest.raises(GenieError):
            attacker.session.describe(handle + 1)
    attacker.session.free(theirs)
    attacker.session.synchronize()
    mine = attacker.put([9, 9])
    assert attacker.get(attacker.run(_NEG, [mine])) == [-9, -9]
    assert [bystander.get(handle) for handle in theirs] == [[number, number] for number in range(8)]


def test_a_plan_runs_on_no_handle_of_another_session(node: Node, bystander: Caller) -> None:
    attacker = node.client()
    bystander.put([1, 2])
    attacker.run(_NEG, [2])
    with pytest.raises(NodeError, match="handle 2"):
        attacker.session.fetch(1)
    assert attacker.get(attacker.put([5])) == [5]


def test_plans_are_counted_by_each_session_for_itself(node: Node, bystander: Caller) -> None:
    bystander.load(_NEG)
    connection = _attacker(node)
    connection.send(frames.one(1, Kind.EXECUTE, b"\0\0"))
    assert "was never sent" in _dismissed(connection).message


def test_a_content_that_was_not_brought_whole_is_nobody_s(node: Node, bystander: Caller) -> None:
    """Who names a digest without the bytes gets none, and spoils nothing for who has them."""
    data = bytes(range(256)) * 256
    digest, value = blake3.blake3(data).digest(), TensorSpec((len(data),), "uint8")
    connection = _attacker(node)
    connection.send(frames.one(1, Kind.UPLOAD_BEGIN, messages.put_chunk(digest, len(data))))
    assert _answer(connection)[0] == Kind.HELD
    connection.send(frames.one(2, Kind.UPLOAD_CHUNK, messages.put_chunk(digest, 0), len(data)), (bytes(len(data)),))
    connection.send(frames.one(3, Kind.UPLOAD_COMMIT, messages.put_commit(digest, 5, value)))
    connection.send(frames.one(4, Kind.FETCH, messages.put_pair(5, messages.ANY_SIZE)))
    kind, error = _answer(connection)
    assert kind == Kind.ERROR
    assert error is not None
    assert "digest" in error.message
    connection.close()
    handle = bystander.handles()
    bystander.session.upload(handle, value, data, shared=True)
    assert bytes(bystander.session.fetch(handle).data) == data


@pytest.mark.parametrize("token", ["", "0" * 32, "x" * 1000, "\0"])
def test_a_channel_s_token_is_not_guessed(node: Node, bystander: Caller, token: str) -> None:
    bystander.session.inlet("peer")  # type: ignore[attr-defined]
    if not token:  # then it is no channel at all, and without a device only asks
        assert meet(node.transport, node.server.address, -1, 5.0, channel=token).welcome.session == ""
        return
    with pytest.raises(NodeError, match="no such channel"):
        meet(node.transport, node.server.address, -1, 5.0, channel=token)


# --- messages said again, out of turn, by others ----------------------------------------------------


@pytest.mark.parametrize("seq", [0, 1, 3, 7, _U32])
def test_messages_come_once_and_in_order(node: Node, bystander: Caller, seq: int) -> None:
    connection = _attacker(node)
    connection.send(frames.one(1, Kind.SYNC))
    assert _answer(connection)[0] == Kind.DONE
    connection.send(frames.one(seq, Kind.UPLOAD, messages.put_value(1, spec(1), bytes(4))))
    assert f"message {seq} arrived where 2 was due" in _dismissed(connection).message


@pytest.mark.parametrize("count", [1, 2, 1 << 20, _U64])
def test_nobody_has_heard_what_was_not_said(make_node: Callable[..., Node], count: int) -> None:
    node = make_node(lease_seconds=5.0)
    connection = meet(node.transport, node.server.address, 0, 5.0, resumes=True).connection
    connection.send(frames.one(1, Kind.HEARD, messages.HANDLE.pack(count)))
    assert isinstance(_dismissed(connection), ProtocolError)
    node.wait_for_sessions(0)


@pytest.fixture
def kept(make_node: Callable[..., Node]) -> Node:
    return make_node(lease_seconds=20.0)


@pytest.mark.parametrize(
    "guess",
    [
        lambda session, key: Back(session=session, key="", heard=0, sent=0),
        lambda session, key: Back(session=session, key="0" * 32, heard=0, sent=0),
        lambda session, key: Back(session=session, key=key[:-1], heard=0, sent=0),
        lambda session, key: Back(session=session, key=key + "0", heard=0, sent=0),
        lambda session, key: Back(session=session, key=key.upper() + " ", heard=0, sent=0),
        lambda session, key: Back(session=session, key="\N{SNOWMAN}" * 32, heard=0, sent=0),
        lambda session, key: Back(session="", key=key, heard=0, sent=0),
        lambda session, key: Back(session=session + "0", key=key, heard=0, sent=0),
        lambda session, key: Back(session=session, key="0" * 32, heard=0, sent=0, probe=True),
    ],
)
def test_a_session_s_key_is_not_guessed(kept: Node, guess: Callable[[str, str], Back]) -> None:
    victim = meet(kept.transport, kept.server.address, 0, 5.0, resumes=True)
    with pytest.raises(SessionClosed):
        back = guess(victim.welcome.session, victim.welcome.key)
        meet(kept.transport, kept.server.address, 0, 5.0, back=back)
    victim.connection.send(frames.one(1, Kind.SYNC))
    assert _answer(victim.connection)[0] == Kind.DONE


def test_one_s_own_key_opens_no_other_session(kept: Node) -> None:
    victim, attacker = (meet(kept.transport, kept.server.address, 0, 5.0, resumes=True) for _ in range(2))
    with pytest.raises(SessionClosed):
        back = Back(session=victim.welcome.session, key=attacker.welcome.key, heard=0, sent=0)
        meet(kept.transport, kept.server.address, 0, 5.0, back=back)
    victim.connection.send(frames.one(1, Kind.SYNC))
    assert _answer(victim.connection)[0] == Kind.DONE


@pytest.mark.parametrize(("heard", "sent"), [(-1, 0), (0, -1), (1 << 63, 0), (0, 1 << 63), (1 << 62, 0), (3, 0)])
def test_who_comes_back_with_impossible_counts_does_not_come_back(kept: Node, heard: int, sent: int) -> None:
    met = meet(kept.transport, kept.server.address, 0, 5.0, resumes=True)
    with pytest.raises((ProtocolError, SessionClosed)):
        back = Back(session=met.welcome.session, key=met.welcome.key, heard=heard, sent=sent)
        meet(kept.transport, kept.server.address, 0, 5.0, back=back)
    other = kept.client()
    assert other.get(other.put([1])) == [1]


def test_who_comes_back_twice_at_once_is_served_once(kept: Node) -> None:
    met = meet(kept.transport, kept.server.address, 0, 5.0, resumes=True)
    back = Back(session=met.welcome.session, key=met.welcome.key, heard=0, sent=0)
    first = meet(kept.transport, kept.server.address, 0, 5.0, back=back)
    second = meet(kept.transport, kept.server.address, 0, 5.0, back=back)
    second.connection.send(frames.one(1, Kind.SYNC))
    assert _answer(second.connection)[0] == Kind.DONE
    for gone in (met, first):
        with pytest.raises(ConnectionLost):
            gone.connection.receive(_none, 5.0)
    second.connection.send(frames.one(1, Kind.SYNC))  # and what was taken is not taken again
    assert "arrived where 2 was due" in _dismissed(second.connection).message


@pytest.mark.parametrize(
    "said",
    [
        _DEEP,
        b"\x83" + _MANY,
        b"\x81\xa5major" + _LONG,
        messages.put_struct(Hello(major=PROTOCOL[0], minor=PROTOCOL[1], device=1 << 62)),
        messages.put_struct(Hello(major=-(1 << 62), minor=1 << 62, device=0)),
        messages.put_struct(Hello(major=PROTOCOL[0], minor=PROTOCOL[1], device=0, client="c" * (1 << 19))),
        b"",
    ],
)
def test_greetings_that_are_none(node: Node, bystander: Caller, said: bytes) -> None:
    connection = node.transport.connect(node.server.address, 5.0)
    connection.send(frames.one(0, Kind.HELLO, said))
    _, records = hear(connection)
    assert records[0][0] in (Kind.ERROR, Kind.WELCOME)
    if records[0][0] == Kind.ERROR:
        assert "the node failed" not in messages.get_error(records[0][1], "node").message
    else:  # a long name is a name
        assert len(node.server.sessions()[-1].client) <= 128
    connection.close()
    node.wait_for_sessions(1)


def test_a_graph_is_no_plan(node: Node, bystander: Caller) -> None:
    connection = _attacker(node)
    connection.send(frames.one(1, Kind.LOAD_PLAN, b"\0" + codec.encode(_NEG)))
    connection.send(frames.one(2, Kind.FETCH, messages.put_pair(1, messages.ANY_SIZE)))
    kind, error = _answer(connection)
    assert kind == Kind.ERROR
    assert "a graph, not a plan" in str(error)
    connection.close()
