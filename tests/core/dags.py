"""Small graphs with times and links of their own, for tests of scheduling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from core import graph_examples as graph_examples  # the profile for Hypothesis
from hypothesis import strategies as st

from genie.device import Device
from genie.errors import SchedulingError
from genie.graph import Graph, Input, Node, Ref, TensorSpec
from genie.plan import ExecutionPlan
from genie.schedule import Scheduler

GIB = 1 << 30


class Table:
    """A cost model that is a table: seconds per node and device, and one link for all pairs."""

    name = "table"

    def __init__(self, seconds: Mapping[tuple[int, str], float], latency: float = 0.0, per_byte: float = 0.0) -> None:
        self.seconds = seconds
        self.latency = latency
        self.per_byte = per_byte

    def estimate_compute(self, node, device):
        return self.seconds[node.id, device.id]

    def estimate_transfer(self, src, dst, bytes):
        return self.latency + bytes * self.per_byte


def device(name: str, memory: float = 16.0, tflops: float = 1.0) -> Device:
    return Device(id=name, type="GPU", memory_gb=memory, compute_tflops=tflops)


def graph_of(
    uses: Sequence[Sequence[int]], sizes: Sequence[int], inputs: int, outputs: Sequence[int] = (), donated=()
) -> Graph:
    """Node ``i`` makes value ``inputs + i`` of ``sizes[inputs + i]`` bytes from the values it uses."""
    values = tuple(TensorSpec((size,), "uint8") for size in sizes)
    steps = tuple(
        Node(i, "aten::relu" if len(taken) == 1 else "aten::cat", "", tuple(map(Ref, taken)), (inputs + i,))
        for i, taken in enumerate(uses)
    )
    entries = tuple(Input(value, f"x{value}", "input", value in donated) for value in range(inputs))
    return Graph(values, entries, steps, tuple(outputs))


@st.composite
def problems(draw: st.DrawFn, most: int = 7, devices: int = 3, tight: bool = False):
    """A graph, devices and a table: (graph, devices, cost model)."""
    inputs = draw(st.integers(1, 3))
    count = draw(st.integers(1, most))
    uses = [draw(st.lists(st.integers(0, inputs + i - 1), min_size=1, max_size=3, unique=True)) for i in range(count)]
    unit = GIB // 8
    sizes = [draw(st.integers(1, 6)) * unit for _ in range(inputs + count)]
    used = {value for taken in uses for value in taken}
    outputs = [value for value in range(inputs, inputs + count) if value not in used or draw(st.booleans())]
    donated = [value for value in range(inputs) if draw(st.booleans())]
    graph = graph_of(uses, sizes, inputs, outputs, donated)
    names = [f"d{number}" for number in range(draw(st.integers(2, devices)))]
    memory = st.integers(4, 24) if tight else st.just(1000)
    found = [device(name, draw(memory) / 8, draw(st.sampled_from([1.0, 2.0, 5.0]))) for name in names]
    seconds = {(node, name): draw(st.integers(1, 20)) / 4 for node in range(count) for name in names}
    model = Table(seconds, draw(st.sampled_from([0.0, 0.125, 1.0])), draw(st.sampled_from([0.0, 0.5, 4.0])) / GIB)
    return graph, found, model


class Fixed:
    """A strategy that places as it is told."""

    name = "fixed"

    def __init__(self, places: Sequence[str]) -> None:
        self.places = places

    def place(self, graph, devices):
        return {node.id: place for node, place in zip(graph.steps, self.places, strict=True)}


def plan_at(graph: Graph, devices: Sequence[Device], model: object, places: Sequence[str], **asked) -> ExecutionPlan:
    scheduler = Scheduler(devices)
    scheduler.set_cost_model(model)
    scheduler.set_placement_strategy(Fixed(places))
    return scheduler.schedule(graph, **asked)


def every_plan(graph: Graph, devices: Sequence[Device], model: object, **asked) -> list[ExecutionPlan]:
    """All feasible plans there are."""
    found = []
    for places in product([each.id for each in devices], repeat=len(graph.steps)):
        try:
            found.append(plan_at(graph, devices, model, places, **asked))
        except SchedulingError:
            continue
    return found
