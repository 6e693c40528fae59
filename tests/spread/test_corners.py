"""Where spread executions went wrong once: inputs that leave, placings that fitted before, executions that broke off,
random numbers of plans that are gathered."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import pytest
from spread.programs import FLAT, X

from genie.device import Device
from genie.errors import BackendUnavailable, RemoteOpError
from genie.graph import Graph, Input, Many, Node, Ref
from genie.interfaces import Connection, Session
from genie.plan import ExecutionPlan
from genie.remote import NodeServer, RemoteBackend
from genie.remote.channels.outlets import Outlet
from genie.schedule import Scheduler
from genie.spread import Residency, SpreadSession
from genie.testing import MemoryTransport, NullBackend
from genie.testing.plans import pack, unpack

_UNHEARD = 10.0  # seconds; a receiver waits for half a minute
NEG = Graph((X, X), (Input(0),), (Node(0, "aten::neg", "", (Ref(0),), (1,)),), (1,))
DOUBLE = Graph((X,), (Input(0),), (Node(0, "aten::add_", "Tensor", (Ref(0), Ref(0), 1), (-1,), (0,)),), ())
VIEW = Graph((X, FLAT), (Input(0),), (Node(0, "aten::view", "", (Ref(0), Many((4,))), (1,), aliases=((1, 0),)),), (1,))


class Told:
    name = "told"

    def __init__(self, place: Mapping[int, str]) -> None:
        self._place = place

    def place(self, graph: Graph, devices: Sequence[Device]) -> Mapping[int, str]:
        return self._place


@pytest.fixture
def members() -> list[Session]:
    backend = NullBackend(devices=3)
    return [backend.connect(device) for device in backend.devices()]


@pytest.fixture
def at(members: list[Session]) -> Callable[..., ExecutionPlan]:
    """A plan of a graph with its nodes on these members."""

    def plan(graph: Graph, *places: int) -> ExecutionPlan:
        scheduler = Scheduler([member.device for member in members])
        ids = [members[place].device.id for place in places]
        scheduler.set_placement_strategy(Told({node.id: each for node, each in zip(graph.steps, ids, strict=True)}))
        return scheduler.schedule(graph)

    return plan


def session(members: list[Session], at: Callable[..., ExecutionPlan]) -> SpreadSession:
    numbers = {member.device.id: number for number, member in enumerate(members)}

    def planner(graph: Graph, known: Residency) -> ExecutionPlan:
        home = numbers[next(iter(known.homes.values()))]
        return at(graph, *[home] * len(graph.steps))

    return SpreadSession(Device(id="auto", type="null", memory_gb=1, compute_tflops=1), members, planner)


def look(spread: SpreadSession, handle: int) -> list[float]:
    return unpack(spread.fetch(handle).data)


@pytest.mark.parametrize("donated", [False, True])
def test_an_input_that_is_used_and_leaves(
    members: list[Session], at: Callable[..., ExecutionPlan], donated: bool
) -> None:
    graph = Graph((X, X), (Input(0, donated=donated),), NEG.steps, (0, 1))
    spread = session(members, at)
    plan = spread.load(at(graph, 1))
    spread.upload(1, X, pack([1.0, 2.0, 3.0, 4.0]))
    spread.execute_words(plan, [10, 1])
    assert (look(spread, 10), look(spread, 11)) == ([1.0, 2.0, 3.0, 4.0], [-1.0, -2.0, -3.0, -4.0])
    spread.free([10, 11] if donated else [1, 10, 11])
    spread.synchronize()
    assert sum(int(member.stats()["values"]) for member in members) == 0


def test_what_fitted_while_it_could_be_moved_is_planned_anew(
    members: list[Session], at: Callable[..., ExecutionPlan]
) -> None:
    spread = session(members, at)
    neg, double, view = (spread.load(at(graph, place)) for graph, place in ((NEG, 1), (DOUBLE, 0), (VIEW, 1)))
    spread.upload(1, X, pack([1.0, 2.0, 3.0, 4.0]))
    spread.execute_words(neg, [10, 1])
    spread.execute_words(double, [0, 10, 1])
    assert look(spread, 10) == [-2.0, -4.0, -6.0, -8.0]
    spread.execute_words(neg, [11, 1])
    spread.execute_words(view, [12, 11, 4])
    spread.execute_words(double, [0, 11, 1])
    assert look(spread, 11) == look(spread, 12) == [-2.0, -4.0, -6.0, -8.0]


def test_what_set_out_before_an_interrupt_is_not_taken_after_it(
    members: list[Session], at: Callable[..., ExecutionPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    spread = session(members, at)
    here, there, double = (spread.load(at(graph, place)) for graph, place in ((NEG, 0), (NEG, 1), (DOUBLE, 0)))
    spread.upload(1, X, pack([1.0, 2.0, 3.0, 4.0]))
    spread.execute_words(here, [10, 1])

    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(spread._values, "bring", interrupt)  # after the value has set out
        with pytest.raises(KeyboardInterrupt):
            spread.execute_words(there, [20, 10])
    spread.execute_words(double, [0, 10, 1])
    spread.execute_words(there, [30, 10])
    assert look(spread, 30) == [2.0, 4.0, 6.0, 8.0]


def test_a_gathered_plan_draws_from_the_one_stream(members: list[Session], at: Callable[..., ExecutionPlan]) -> None:
    """It writes to memory that it knows under a second name, and so runs where that is, drawing included."""
    rand = Node(2, "aten::rand", "", (Many((2, 2)),), (2,))
    steps = (
        Node(0, "aten::add_", "Tensor", (Ref(0), Ref(0), 1), (-1,), (0,)),
        Node(1, "aten::neg", "", (Ref(1),), (3,)),
        rand,
    )
    graph = Graph((X, FLAT, X, FLAT), (Input(0), Input(1)), steps, (2,))
    alone = Graph((X,), (), (Node(0, "aten::rand", "", (Many((2, 2)),), (0,)),), (0,))
    spread = session(members, at)
    neg, view, both, draw = (
        spread.load(at(graph, *places))
        for graph, places in ((NEG, (2,)), (VIEW, (2,)), (graph, (2, 1, 0)), (alone, (0,)))
    )
    spread.upload(1, X, pack([1.0, 2.0, 3.0, 4.0]))
    spread.execute_words(neg, [10, 1])
    spread.execute_words(view, [11, 10, 4])

    def drawn(*plans: tuple[int, list[int]]) -> list[list[float]]:
        spread.seed(0, 7)
        for plan, words in plans:
            spread.execute_words(plan, words)
        return [look(spread, words[0]) for _, words in plans]

    expected = drawn((draw, [20, 2, 2]), (draw, [21, 2, 2]), (draw, [22, 2, 2]))
    assert drawn((draw, [30, 2, 2]), (both, [31, 10, 11, 1, 2, 2]), (draw, [32, 2, 2])) == expected
    assert look(spread, 10) == [-2.0, -4.0, -6.0, -8.0]


def test_a_node_that_cannot_reach_another_is_told_of_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the look that waits for what it should have sent, and by each one after it."""
    transport = MemoryTransport(stall_timeout=10.0)
    nodes = [NodeServer(NullBackend(), transport, f"node{number}:0") for number in (0, 1)]
    for node in nodes:
        node.start()
    backend = RemoteBackend("memory", transport, [node.address for node in nodes], timeout=60.0)
    try:
        members: list[Session] = [backend.connect(device) for device in backend.devices()]
        monkeypatch.setattr(Outlet, "_connect", _cut_off)
        spread = SpreadSession(Device(id="auto", type="null", memory_gb=1, compute_tflops=1), members, None)
        scheduler = Scheduler([member.device for member in members])
        scheduler.set_placement_strategy(Told({0: members[0].device.id, 1: members[1].device.id}))
        twice = Graph((X, X, X), (Input(0),), (*NEG.steps, Node(1, "aten::neg", "", (Ref(1),), (2,))), (2,))
        plan = spread.load(scheduler.schedule(twice))
        spread.upload(1, X, pack([1.0, 2.0, 3.0, 4.0]))
        spread.execute_words(plan, [10, 1])
        started = time.monotonic()
        for _ in range(2):
            with pytest.raises(RemoteOpError, match=r"could not connect to node1:\d+, to send: cut off"):
                look(spread, 10)
        assert time.monotonic() - started < _UNHEARD
        assert look(spread, 1) == [1.0, 2.0, 3.0, 4.0]
    finally:
        backend.close()
        for node in nodes:
            node.close()


def _cut_off(_: Outlet) -> Connection:
    raise BackendUnavailable("cut off")
