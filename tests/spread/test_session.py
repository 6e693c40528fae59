"""Spread over devices, programs give what they give on one."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from spread.programs import Program, placed, spread

from genie.errors import UnsupportedOperation
from genie.graph import Graph
from genie.interfaces import Session
from genie.remote import NodeServer, RemoteBackend
from genie.schedule import Scheduler
from genie.testing import MemoryTransport, NullBackend


def on_one(seed: int) -> Program:
    backend = NullBackend()
    session = backend.connect(backend.devices()[0])

    def prepare(graph: Graph, handles: Sequence[int]) -> int:
        return session.load(Scheduler([session.device]).schedule(graph))

    return Program(session, prepare, seed)


def on_several(members: Sequence[Session], seed: int) -> Program:
    session = spread(members, seed)
    devices = [member.device for member in members]
    draw = random.Random(seed)

    def prepare(graph: Graph, handles: Sequence[int]) -> int:
        return session.load(placed(graph, devices, session.residency(graph, handles), draw))

    return Program(session, prepare, seed)


@contextlib.contextmanager
def spared() -> Iterator[None]:
    """Two families of views on two devices, written to by one operator: refused. Such programs say nothing here; were
    there many of them, hypothesis would say so."""
    try:
        yield
    except UnsupportedOperation as refusal:
        assert "share their memory" in refusal.message
        reject()


def alike(one: Program, other: Program, steps: int) -> None:
    for program in (one, other):
        program.upload()
        program.upload()
    for number in range(steps):
        for program in (one, other):
            with spared():
                program.step()
            if number % 3 == 2:
                program.drop()
        assert one.look() == other.look()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1 << 30))
def test_a_program_gives_the_same_on_three_devices(seed: int) -> None:
    backend = NullBackend(devices=3)
    members = [backend.connect(device) for device in backend.devices()]
    several = on_several(members, seed)
    alike(on_one(seed), several, 8)
    several.session.free(list(several.values))
    several.session.synchronize()
    assert sum(member.stats()["values"] for member in members) == 0


@pytest.fixture
def nodes() -> Iterator[Callable[[int], list[Session]]]:
    transport = MemoryTransport(stall_timeout=10.0)
    started: list[NodeServer] = []
    backends: list[RemoteBackend] = []

    def start(count: int) -> list[Session]:
        for number in range(count):
            started.append(NodeServer(NullBackend(), transport, f"node{number}:0"))
            started[-1].start()
        backends.append(RemoteBackend("memory", transport, tuple(node.address for node in started), timeout=10.0))
        return [backends[-1].connect(device) for device in backends[-1].devices()]

    yield start
    for backend in backends:
        backend.close()
    for node in started:
        node.close()


@pytest.mark.parametrize("seed", range(12))
def test_a_program_gives_the_same_on_three_nodes(nodes: Callable[[int], list[Session]], seed: int) -> None:
    members = nodes(3)
    several = on_several(members, seed)
    alike(on_one(seed), several, 10)
    stats = several.session.stats()
    assert stats["values_moved"] > 0 and stats["values_carried"] == 0
    several.session.free(list(several.values))
    several.session.synchronize()
    assert sum(member.stats()["values"] for member in members) == 0
