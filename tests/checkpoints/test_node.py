"""Checkpoints on another node: no byte of them crosses the client's links."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from local.both import Program, data_of, spec_of
from local.stateful import Play, Player, looks, state

from genie.checkpoints import CheckpointStore, NodeCheckpoints
from genie.errors import CheckpointError, GenieError
from genie.remote import NodeServer, RemoteBackend, RemoteSession
from genie_backend_local import LocalBackend
from genie_backend_tcp import TcpTransport

LARGE = 1 << 18  # elements


class Nodes:
    """Three nodes and a client of all."""

    def __init__(self, **limits: float) -> None:
        transport = TcpTransport(stall_timeout=10.0)
        self._servers = [NodeServer(LocalBackend(**limits), transport, "127.0.0.1:0") for _ in range(3)]  # type: ignore[arg-type]
        for server in self._servers:
            server.start()
        self._clients = [RemoteBackend("tcp", transport, (each.address,), timeout=20.0) for each in self._servers]

    def session(self, number: int) -> RemoteSession:
        return self._clients[number].connect(self._clients[number].devices()[0])

    def kill(self, number: int) -> None:
        self._servers[number].close()

    def close(self) -> None:
        for client in self._clients:
            client.close()
        for server in self._servers:
            server.close()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.close()


def put(session: RemoteSession, handle: int, tensor: torch.Tensor, *, shared: bool = False) -> None:
    session.upload(handle, spec_of(tensor), data_of(tensor), shared=shared)


def write(session: RemoteSession, handle: int) -> None:
    program = Program()
    x = program.input(torch.empty(1))
    program.write("aten::add_.Scalar", x, 1.0, 1, to=[x])
    Player(session).execute(program.graph(), 1, [handle])


def moved(*sessions: RemoteSession) -> int:
    return sum(session.traffic["bytes_sent"] + session.traffic["bytes_received"] for session in sessions)


def held(session: RemoteSession) -> int:
    return session.stats()["memory_bytes"]


def test_the_standby_becomes_the_session(nodes: Nodes) -> None:
    session, standby = nodes.session(0), nodes.session(1)
    put(session, 1, torch.rand(LARGE))
    put(session, 2, torch.rand(4))
    session.seed(0, 5)
    store = NodeCheckpoints(standby)
    assert isinstance(store, CheckpointStore)
    before = moved(session, standby)
    store.save(session)
    write(session, 1)
    checkpoint = store.save(session, b"later")
    assert moved(session, standby) - before < 10_000
    expected, seen = state(session), looks(session, [1, 2])
    assert store.checkpoints() == (checkpoint,)
    assert held(standby) == held(session)
    session.close()
    store.load(checkpoint, standby)
    assert looks(standby, [1, 2]) == seen
    assert state(standby) == expected
    with pytest.raises(CheckpointError, match="became the one"):
        store.save(standby)
    standby.close()


def test_only_what_changed_moves(nodes: Nodes) -> None:
    session, standby = nodes.session(0), nodes.session(1)
    for handle in (1, 2, 3):
        put(session, handle, torch.rand(LARGE))
    store = NodeCheckpoints(standby, keep=2)
    store.save(session)
    assert held(standby) == 3 * 4 * LARGE
    write(session, 2)
    store.save(session)
    assert held(standby) == 4 * 4 * LARGE
    session.free([3])
    third = store.save(session)
    assert held(standby) == 3 * 4 * LARGE
    write(session, 2)
    store.save(session)
    assert held(standby) == 3 * 4 * LARGE
    store.drop(third)
    assert held(standby) == 2 * 4 * LARGE
    store.close()
    assert held(standby) == 0
    for each in (session, standby):
        each.close()


def test_a_third_node_takes_over_and_is_saved_itself(nodes: Nodes) -> None:
    session, standby, third = (nodes.session(number) for number in range(3))
    weight = torch.rand(LARGE)
    put(session, 1, weight, shared=True)
    put(session, 2, torch.rand(LARGE))
    store = NodeCheckpoints(standby)
    checkpoint = store.save(session)
    expected = state(session)
    session.close()
    before = moved(third, standby)
    store.load(checkpoint, third)
    assert moved(third, standby) - before < 10_000
    assert state(third) == expected
    write(third, 2)
    have = held(standby)
    again = store.save(third)
    assert held(standby) == have
    store.load(again, standby)
    assert state(standby) == state(third)
    for each in (third, standby):
        each.close()


def test_a_weight_the_standbys_node_knows_is_not_sent(nodes: Nodes) -> None:
    session, standby, other = nodes.session(0), nodes.session(1), nodes.session(1)
    weight = torch.rand(LARGE)
    for each in (session, other):
        put(each, 1, weight, shared=True)
    other.synchronize()
    sent = session.stats()["fetched_bytes"]
    store = NodeCheckpoints(standby)
    checkpoint = store.save(session)
    assert session.stats()["fetched_bytes"] == sent
    store.load(checkpoint, standby)
    assert bytes(standby.fetch(1).data) == data_of(weight)
    assert standby.snapshot() == session.snapshot()  # it knows the digest, too
    for each in (session, standby, other):
        each.close()


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_saved_at_any_moment(seed: int, nodes: Nodes) -> None:
    standby = nodes.session(1)
    store = NodeCheckpoints(standby, keep=2)
    play = Play(seed, Player(nodes.session(0)))
    draw = random.Random(seed)
    for step in range(24):
        play.step()
        if draw.random() < 0.2 or step == 20:
            checkpoint = store.save(play.players[-1].session)
            if len(play.players) < 3:
                restored = nodes.session(draw.choice([0, 2]))
                store.load(checkpoint, restored)
                play.players.append(Player(restored))
    store.load(store.save(play.players[0].session), standby)
    play.players.append(Player(standby))
    for _ in range(5):
        play.step()
    seen = [(state(player.session), looks(player.session, play.handles)) for player in play.players]
    assert all(each == seen[0] for each in seen)
    for player in play.players:
        player.session.close()


def test_a_standby_without_room_keeps_the_last_one() -> None:
    nodes = Nodes(memory_limit_gb=4 * 3.5 * LARGE / (1 << 30))
    session, standby = nodes.session(0), nodes.session(1)
    put(session, 1, torch.rand(LARGE))
    put(session, 2, torch.rand(LARGE))
    store = NodeCheckpoints(standby)
    first = store.save(session)
    expected = state(session)
    write(session, 1)
    write(session, 2)
    with pytest.raises(CheckpointError, match="did not reach .*bytes"):
        store.save(session)
    assert held(standby) == 2 * 4 * LARGE
    put(session, 3, torch.rand(4))
    session.free([2])
    assert len(store.save(session).snapshot.memories) == 2
    store.drop(store.checkpoints()[-1])
    with pytest.raises(CheckpointError, match="not kept"):
        store.load(first, standby)
    assert len(expected[1]) == 2
    nodes.close()


def test_a_node_that_dies_while_it_is_saved_leaves_the_last_one() -> None:
    nodes = Nodes()
    session, standby = nodes.session(0), nodes.session(1)
    put(session, 1, torch.rand(LARGE))
    store = NodeCheckpoints(standby)
    first = store.save(session)
    expected = state(session)
    write(session, 1)
    nodes.kill(0)
    with pytest.raises(GenieError):
        store.save(session)
    assert store.checkpoints() == (first,)
    store.load(first, standby)
    assert state(standby) == expected
    nodes.close()


def test_mistakes_are_said(nodes: Nodes) -> None:
    local = LocalBackend()
    session = local.connect(local.devices()[-1])
    with pytest.raises(CheckpointError, match="does not pass its state on"):
        NodeCheckpoints(session)
    standby = nodes.session(1)
    store = NodeCheckpoints(standby)
    with pytest.raises(CheckpointError, match="does not pass its state on"):
        store.save(session)
    with pytest.raises(CheckpointError, match="at least one"):
        NodeCheckpoints(standby, keep=0)
    standby.close()
    local.close()
