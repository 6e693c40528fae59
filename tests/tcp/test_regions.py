"""Branches and loops on nodes: over sockets, and among nodes on several devices, as in the reference."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import pytest
import torch
from core.region_examples import chosen, counted, nested, summed
from local.both import Both
from msgspec.structs import replace
from spread.programs import spread

from genie.bindings import Prediction, parameters
from genie.device import Device
from genie.errors import PlanError, RemoteOpError
from genie.graph import Graph, Node, Ref
from genie.interfaces import Session
from genie.remote import NodeServer, RemoteBackend
from genie.schedule import Scheduler
from genie_backend_local import LocalBackend
from genie_backend_tcp import TcpTransport

ROW, MORE = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.25, 4.0, -1.0])
PROGRAMS = [
    (chosen(), (torch.tensor(True), ROW)),
    (chosen(), (torch.tensor(False), ROW)),
    (counted(9), (torch.tensor(0), ROW, MORE)),
    (summed(True), (ROW, torch.arange(12.0).reshape(4, 3), MORE)),
    (nested(), (torch.tensor(1), ROW, MORE)),
    (nested(), (torch.tensor(5), ROW, MORE)),
]


@pytest.fixture
def remote() -> Iterator[list[Session]]:
    transport = TcpTransport(stall_timeout=10.0)
    with (
        NodeServer(LocalBackend(), transport, "127.0.0.1:0") as one,
        NodeServer(LocalBackend(), transport, "127.0.0.1:0") as other,
    ):
        backend = RemoteBackend("tcp", transport, (one.address, other.address), timeout=10.0, shortcut=False)
        yield [backend.connect(device) for device in backend.devices()]
        backend.close()


def around(graph: Graph) -> Graph:
    """The graph with an operator after its last result, which may run elsewhere."""
    last = graph.outputs[-1]
    made = len(graph.values)
    steps = (*graph.steps, Node(graph.steps[-1].id + 1, "aten::neg", "", (Ref(last),), (made,)))
    return replace(graph, values=(*graph.values, graph.values[last]), steps=steps, outputs=(*graph.outputs, made))


class InTurns:
    """Steps on one device after the other."""

    name = "in turns"

    def __init__(self, first: int) -> None:
        self._first = first

    def place(self, graph: Graph, devices: Sequence[Device]) -> Mapping[int, str]:
        turns = itertools.islice(itertools.cycle(devices), self._first, None)
        return {node.id: device.id for node, device in zip(graph.steps, turns, strict=False)}


class Spread(Both):
    """A session over several devices, whose plans take turns among them."""

    def __init__(self, members: Sequence[Session], first: int) -> None:
        super().__init__(spread(members))
        self._scheduler = Scheduler([member.device for member in members])
        self._scheduler.set_placement_strategy(InTurns(first))

    def load(self, graph: Graph) -> int:
        made = self._scheduler.schedule(graph)
        assert len(made.stages) == len(graph.steps)
        plan = self.session.load(made)
        self._predictions.setdefault(plan, Prediction(len(graph.inputs), parameters(graph)))
        return plan


def test_a_node_runs_them(remote):
    both = Both(remote[0])
    for graph, inputs in PROGRAMS:
        both.check(*both.execute(graph, [both.put(tensor) for tensor in inputs]))
    assert both.session.stats()["plans"] < len(PROGRAMS)  # one plan, whatever the predicate says


@pytest.mark.parametrize("first", range(2))
def test_several_nodes_run_them(remote, first):
    both = Spread(remote, first)
    for graph, inputs in PROGRAMS:
        both.check(*both.execute(around(graph), [both.put(tensor) for tensor in inputs]))


def test_a_failure_in_a_region_comes_back(remote):
    both = Both(remote[0])
    made = both.execute_native(counted(3), [both.put(torch.tensor(0)), both.put(ROW), both.put(torch.ones(2))])
    with pytest.raises(RemoteOpError, match=r"in body, iteration 0, step 1 \(aten::add.Tensor\): The size of tensor"):
        both.session.fetch(made[1])


def test_a_node_refuses_regions_that_reach_outside(remote):
    graph = chosen()
    inner = graph.regions[0]
    hostile = replace(inner, steps=(replace(inner.steps[0], operation="aten::from_file", overload=""),))
    both = Both(remote[0])
    with pytest.raises(PlanError, match="region 0: .*not allowed"):
        (made,) = both.execute_native(
            chosen(branches=(hostile, graph.regions[1])), [both.put(torch.tensor(True)), both.put(ROW)]
        )
        both.session.fetch(made)
