"""A node's session told, and made anew on another node."""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from local.both import Program, data_of, spec_of
from local.stateful import Play, Player, bytes_of, looks, move, state, told

from genie.errors import NodeError, ProtocolError, RemoteOpError, UnsupportedOperation
from genie.graph import TensorSpec
from genie.interfaces import Replicating, Snapshotting
from genie.remote import NodeServer, RemoteBackend, RemoteSession
from genie.snapshots import STAGING, MemoryState, Snapshot, ValueState
from genie.testing import NullBackend
from genie_backend_local import LocalBackend
from genie_backend_tcp import TcpTransport

WEIGHT = torch.arange(64 * 64, dtype=torch.float32).reshape(64, 64)


class Pair:
    """Two nodes, and a client of both."""

    def __init__(self) -> None:
        transport = TcpTransport(stall_timeout=10.0)
        self.locals = [LocalBackend(), LocalBackend()]
        self.nodes = [NodeServer(each, transport, "127.0.0.1:0") for each in self.locals]
        for node in self.nodes:
            node.start()
        self.clients = [RemoteBackend("tcp", transport, (node.address,), timeout=20.0) for node in self.nodes]

    def session(self, number: int) -> RemoteSession:
        return self.clients[number].connect(self.clients[number].devices()[0])

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for node in self.nodes:
            node.close()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_both_go_on_alike(seed: int, pair: Pair) -> None:
    play = Play(seed, Player(pair.session(0)))
    draw = random.Random(seed)
    for _ in range(30):
        play.step()
        if draw.random() < 0.1:
            restored = pair.session(1)
            move(play.players[-1].session, restored)
            play.players.append(Player(restored))
    seen = [(state(player.session), looks(player.session, play.handles)) for player in play.players]
    assert all(each == seen[0] for each in seen)
    for player in play.players:
        player.session.close()


def test_the_protocols_are_met(pair: Pair) -> None:
    session = pair.session(0)
    assert isinstance(session, Snapshotting)
    assert isinstance(session, Replicating)
    session.close()


def test_weights_are_told_by_their_digest_until_they_are_written(pair: Pair) -> None:
    session, other = pair.session(0), pair.session(0)
    session.upload(1, spec_of(WEIGHT), data_of(WEIGHT), shared=True)
    session.upload(2, spec_of(WEIGHT), data_of(WEIGHT + 1), shared=True)
    assert all(each.digest for each in told(session).memories)
    program = Program()
    x = program.input(WEIGHT)
    program.write("aten::add_.Scalar", x, 1.0, 1, to=[x])
    Player(session).execute(program.graph(program.call("aten::transpose.int", x, 0, 1)), 3, [2])
    snapshot = told(session)
    assert [bool(each.digest) for each in snapshot.memories] == [True, False]

    asked: list[int] = []

    def memories(memory: MemoryState) -> bytes:
        asked.append(memory.id)
        return bytes(session.read_memory(memory.id))

    other.restore(snapshot, memories)
    assert asked == [snapshot.memories[1].id]
    assert state(other) == state(session)
    again = told(other)
    assert again == snapshot
    assert bytes(other.fetch(3).data) == data_of((WEIGHT + 2).t())
    session.close()
    assert other.traffic["bytes_sent"] < 3 * WEIGHT.nbytes
    other.close()


def test_a_digest_that_nobody_knows_is_sent_for(pair: Pair) -> None:
    session, other = pair.session(0), pair.session(1)
    weight = WEIGHT * 3
    session.upload(1, spec_of(weight), data_of(weight), shared=True)
    snapshot = told(session)
    with pytest.raises(NodeError, match="nobody has the 16384 bytes"):
        other.restore(snapshot, lambda memory: None)
    other.close()
    other = pair.session(1)
    other.restore(snapshot, lambda memory: session.read_memory(memory.id))
    assert told(other) == snapshot  # and the node found the digest itself
    for each in (session, other):
        each.close()


def test_errors_are_part_of_it(pair: Pair) -> None:
    session, other = pair.session(0), pair.session(1)
    session.upload(1, TensorSpec((4,), "float32"), data_of(torch.ones(4)))
    program = Program()
    x = program.input(torch.ones(4))
    graph = program.graph(program.call("aten::mm", x, x))
    Player(session).execute(graph, 3, [1])
    snapshot = move(session, other)
    assert [each.handle for each in snapshot.failures] == [3]
    for each in (session, other):
        with pytest.raises(RemoteOpError, match="must be a matrix|2D|2-D") as raised:
            each.fetch(3)
        assert raised.value.op == "aten::mm"
        assert bytes(each.fetch(1).data) == data_of(torch.ones(4))
        each.close()


def test_what_was_told_to_nobody_is_told_after(pair: Pair) -> None:
    """An execution that could not begin."""
    session, other = pair.session(0), pair.session(1)
    session.upload(1, TensorSpec((4,), "float32"), data_of(torch.ones(4)))
    program = Program()
    x = program.input(torch.ones(4))
    Player(session).execute(program.graph(program.call("aten::neg", x)), 3, [77])
    snapshot = move(session, other)
    assert [each.handle for each in snapshot.failures] == [0]
    for each in (session, other):
        with pytest.raises(NodeError, match="handle 77"):
            each.fetch(1)
        assert bytes(each.fetch(1).data) == data_of(torch.ones(4))
        each.close()


def test_large_memories_and_states(pair: Pair) -> None:
    session, other = pair.session(0), pair.session(1)
    big = torch.arange(3 << 20, dtype=torch.int32)
    session.upload(1, spec_of(big), data_of(big))
    for handle in range(2, 3000):
        session.upload(handle, TensorSpec((), "int64"), handle.to_bytes(8, "little"))
    snapshot = move(session, other)
    assert len(snapshot.memories) == 2999
    assert bytes(other.fetch(1).data) == data_of(big)
    assert int.from_bytes(other.fetch(2999).data, "little") == 2999
    memory = snapshot.memories[0]
    out = memoryview(bytearray(memory.bytes))
    assert session.read_memory(memory.id, out) == data_of(big)
    assert bytes(session.read_memory(memory.id, None, 4, 8)) == data_of(big)[4:12]
    for each in (session, other):
        each.close()


def test_a_memory_reaches_another_node_by_itself(pair: Pair) -> None:
    session, standby = pair.session(0), pair.session(1)
    big = torch.rand(1 << 18)
    session.upload(1, spec_of(big), data_of(big))
    (memory,) = told(session).memories
    inlet = standby.inlet("the session")
    outlet = session.outlet(inlet)
    before = session.traffic["bytes_sent"] + standby.traffic["bytes_sent"]
    session.send_memory(outlet, memory.id, memory.version)
    standby.receive(inlet, 0, STAGING)
    assert bytes(standby.fetch(STAGING).data) == data_of(big)
    assert session.traffic["bytes_sent"] + standby.traffic["bytes_sent"] - before < 1000
    session.send_memory(outlet, memory.id, memory.version + 1)
    standby.receive(inlet, 1, STAGING + 1)
    with pytest.raises(RemoteOpError, match="written to since"):
        standby.describe(STAGING + 1)
    standby.free([STAGING + 1])
    standby.restore_staged(told(session), {memory.id: STAGING})
    assert state(standby) == state(session)
    for each in (session, standby):
        each.close()


def test_a_refused_state_leaves_the_session(pair: Pair) -> None:
    session = pair.session(0)
    session.upload(1, TensorSpec((64,), "uint8"), bytes(64))
    for snapshot in (
        Snapshot((MemoryState(5, 64, 5),), (ValueState(1, 5, TensorSpec((9, 9), "uint8")),)),
        Snapshot((MemoryState(5, 32, 5),), (ValueState(1, 5, TensorSpec((4,), "uint8")),)),
    ):
        with pytest.raises((NodeError, ProtocolError)):
            session.restore_staged(snapshot, {5: 1})
        assert bytes(session.fetch(1).data) == bytes(64)
    session.close()


def test_backends_that_tell_no_state_say_so() -> None:
    transport = TcpTransport(stall_timeout=10.0)
    with NodeServer(NullBackend(), transport, "127.0.0.1:0") as server:
        client = RemoteBackend("tcp", transport, (server.address,), timeout=10.0)
        session = client.connect(client.devices()[0])
        with pytest.raises(UnsupportedOperation, match="tells no session's state"):
            session.snapshot()
        session.upload(1, TensorSpec((2,), "uint8"), b"ab")
        assert bytes(session.fetch(1).data) == b"ab"
        session.speaks(0)
        with pytest.raises(UnsupportedOperation, match=r"version 1\.0"):
            session.snapshot()
        client.close()


def test_equal_states_are_equal_bytes(pair: Pair) -> None:
    session = pair.session(0)
    session.upload(1, TensorSpec((4,), "float32"), data_of(torch.ones(4)))
    first = told(session)
    assert told(session) == first == msgspec.msgpack.decode(msgspec.msgpack.encode(first), type=Snapshot)
    assert bytes_of(session, first) == {first.memories[0].id: data_of(torch.ones(4))}
    session.close()
