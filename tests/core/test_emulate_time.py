"""Virtual time is the scheduler's own: what a plan says it takes is what it takes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genie.bindings import Prediction, parameters
from genie.device import CLIENT, Cluster, Device, LinkSpec
from genie.emulate import EmulatedBackend, Report
from genie.graph import Graph, Input, Node, Ref, TensorSpec
from genie.plan import ExecutionPlan
from genie.plan.timeline import timeline
from genie.schedule import Scheduler
from genie.schedule.stated import StatedTransfers, stated
from genie.spread import SpreadSession
from genie.testing import NullBackend
from genie.testing.plans import node, pack, spec

AUTO = Device("auto", "null", 1, 1)
EXACT = 1e-9


class Cost:
    """So long per element, by operator and device; links as stated."""

    name = "table"

    def __init__(self, links: Sequence[LinkSpec] = ()) -> None:
        self.transfers: StatedTransfers = stated(links)

    def estimate_compute(self, node: Node, device: Device | None = None) -> float:
        assert device is not None
        seconds = {"aten::neg": 1e-3, "aten::add": 3e-3, "aten::mul": 2e-4}[node.operation]
        return seconds / device.compute_tflops

    def estimate_transfer(self, src: Device, dst: Device, bytes: int) -> float:
        return self.transfers.seconds(src, dst, bytes)


class Told:
    name = "told"

    def __init__(self, place: Mapping[int, str]) -> None:
        self._place = place

    def place(self, graph: Graph, devices: Sequence[Device]) -> Mapping[int, str]:
        return self._place


class Emulated:
    """A cluster, one session spread over it, and plans run on it."""

    def __init__(self, devices: Sequence[Device], links: Sequence[LinkSpec]) -> None:
        self.cost = Cost(links)
        cluster = Cluster(devices=tuple(devices), links=tuple(links), backend="emulated")
        self.backend = EmulatedBackend(cluster, NullBackend, self.cost, timeout=10.0)
        self.session = SpreadSession(AUTO, [self.backend.connect(device) for device in self.backend.devices()])
        self._next = 1

    def plan(self, graph: Graph, places: Sequence[str]) -> ExecutionPlan:
        scheduler = Scheduler(self.backend.devices())
        scheduler.set_cost_model(self.cost)
        scheduler.set_placement_strategy(Told(dict(zip((each.id for each in graph.steps), places, strict=True))))
        return scheduler.schedule(graph)

    def run(self, plan: ExecutionPlan) -> Report:
        """The second run, whose inputs are where they are used; its time alone."""
        graph, number = plan.graph, self.session.load(plan)
        given = range(self._next, self._next + len(graph.inputs))
        for handle, entry in zip(given, graph.inputs, strict=True):
            its = graph.values[entry.value]
            self.session.upload(handle, its, pack([1.0] * (its.nbytes // 4)))
        prediction = Prediction(len(given), parameters(graph))
        first = given.stop
        for _ in range(2):
            self.session.synchronize()
            self.backend.restart()
            self.session.execute(number, prediction.encode([first, *given, *parameters(graph)]))
            first += len(graph.outputs)
        self._next = first
        return self.backend.report()


def working(report: Report) -> float:
    """Seconds from the first operator to the last."""
    spans = [span for span in report.trace if "→" not in span.where]
    return max(span.finish for span in spans) - min(span.start for span in spans)


@pytest.fixture
def emulate() -> Iterator[Callable[..., Emulated]]:
    made: list[Emulated] = []

    def make(devices: Sequence[Device], links: Sequence[LinkSpec]) -> Emulated:
        made.append(Emulated(devices, links))
        return made[-1]

    yield make
    for each in made:
        each.session.close()
        each.backend.close()


def devices(*speeds: float) -> list[Device]:
    return [Device(f"d{number}", "null", 1, speed) for number, speed in enumerate(speeds)]


def chain(length: int, *shape: int) -> Graph:
    value = spec(*shape)
    steps = tuple(node(step, "aten::neg", [Ref(step)], [step + 1]) for step in range(length))
    return Graph(tuple([value] * (length + 1)), (Input(0),), steps, (length,))


def test_a_chain_over_two_devices_takes_what_its_plan_says(emulate):
    cluster = emulate(devices(1, 4), [LinkSpec("d0", "d1", gbps=0.001, latency_ms=0.3)])
    plan = cluster.plan(chain(6, 64), ["d0", "d0", "d1", "d1", "d0", "d1"])
    report = cluster.run(plan)
    transfer = 0.3e-3 + 256 / (0.001e9 / 8)
    assert plan.latency == pytest.approx(3 * 1e-3 + 3 * 0.25e-3 + 3 * transfer, abs=EXACT)
    assert working(report) == pytest.approx(plan.latency, abs=EXACT)
    assert report.busy == pytest.approx({"d0": 3e-3, "d1": 0.75e-3})
    assert report.traffic["d0", "d1"] == pytest.approx((512, 2, 2 * transfer))
    assert report.traffic["d1", "d0"] == pytest.approx((256, 1, transfer))


def test_devices_work_side_by_side_while_values_travel(emulate):
    """Two halves, and their sum where the first one is."""
    graph = Graph(
        values=(spec(8), spec(8), spec(8), spec(8), spec(8)),
        inputs=(Input(0), Input(1)),
        steps=(
            node(0, "aten::neg", [Ref(1)], [2]),
            node(1, "aten::add.Tensor", [Ref(0), Ref(0), 1], [3]),
            node(2, "aten::add.Tensor", [Ref(2), Ref(3), 1], [4]),
        ),
        outputs=(4,),
    )
    cluster = emulate(devices(1, 1), [LinkSpec("d0", "d1", gbps=1, latency_ms=0.5)])
    plan = cluster.plan(graph, ["d1", "d0", "d0"])
    report = cluster.run(plan)
    assert plan.latency == pytest.approx(6e-3, abs=EXACT)  # the value from d1 arrived long before
    assert working(report) == pytest.approx(plan.latency, abs=EXACT)
    assert report.busy == pytest.approx({"d0": 6e-3, "d1": 1e-3})


def test_a_port_sends_one_value_at_a_time(emulate):
    """Two values made on d0, needed on d1 and d2 by the same link speed: the second leaves when the first is there."""
    graph = Graph(
        values=(spec(8), spec(8), spec(8), spec(8), spec(8)),
        inputs=(Input(0),),
        steps=(
            node(0, "aten::neg", [Ref(0)], [1]),
            node(1, "aten::neg", [Ref(0)], [2]),
            node(2, "aten::neg", [Ref(1)], [3]),
            node(3, "aten::neg", [Ref(2)], [4]),
        ),
        outputs=(3, 4),
    )
    links = [LinkSpec("d0", "d1", gbps=1, latency_ms=10), LinkSpec("d0", "d2", gbps=1, latency_ms=10)]
    cluster = emulate(devices(1, 1, 1), links)
    report = cluster.run(cluster.plan(graph, ["d0", "d0", "d1", "d2"]))
    transfer = 10e-3 + 32 / (1e9 / 8)
    # d0: 1 ms, then the first value leaves; the second, ready at 2 ms, at 1 ms + one transfer.
    assert working(report) == pytest.approx(1e-3 + 2 * transfer + 1e-3, abs=EXACT)


def test_a_port_receives_one_value_at_a_time(emulate):
    graph = Graph(
        values=(spec(8), spec(8), spec(8), spec(8), spec(8)),
        inputs=(Input(0), Input(1)),
        steps=(
            node(0, "aten::neg", [Ref(0)], [2]),
            node(1, "aten::neg", [Ref(1)], [3]),
            node(2, "aten::add.Tensor", [Ref(2), Ref(3), 1], [4]),
        ),
        outputs=(4,),
    )
    links = [LinkSpec("d0", "d2", gbps=1, latency_ms=10), LinkSpec("d1", "d2", gbps=1, latency_ms=4)]
    cluster = emulate(devices(1, 1, 1), links)
    report = cluster.run(cluster.plan(graph, ["d0", "d1", "d2"]))
    one, other = (latency + 32 / (1e9 / 8) for latency in (10e-3, 4e-3))
    assert working(report) == pytest.approx(1e-3 + one + other + 3e-3, abs=EXACT)


def random_graph(draw: random.Random) -> Graph:
    """Operators without side effects over values of three sizes."""
    shapes = [TensorSpec((size,), "float32") for size in (4, 64, 512)]
    values = list(shapes)
    steps = []
    for number in range(draw.randrange(2, 24)):
        one = draw.randrange(len(values))
        alike = [value for value, its in enumerate(values) if its == values[one]]
        made = len(values)
        match draw.randrange(3):
            case 0:
                steps.append(node(number, "aten::neg", [Ref(one)], [made]))
            case 1:
                steps.append(node(number, "aten::mul.Tensor", [Ref(one), 0.5], [made]))
            case _:
                steps.append(node(number, "aten::add.Tensor", [Ref(one), Ref(draw.choice(alike)), 1], [made]))
        values.append(values[one])
    outputs = tuple(value for value in range(3, len(values)) if draw.random() < 0.4)
    return Graph(tuple(values), (Input(0), Input(1), Input(2)), tuple(steps), outputs)


def random_cluster(draw: random.Random) -> Emulated:
    links = [
        LinkSpec(f"d{a}", f"d{b}", gbps=draw.choice([0.0005, 0.001, 0.004]), latency_ms=draw.choice([0.0, 0.1, 2.0]))
        for a in range(3)
        for b in range(a)
    ]
    return Emulated(devices(*(draw.choice([0.5, 1, 3]) for _ in range(3))), links)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30))
def test_any_plan_over_three_devices_takes_what_the_evaluator_says(seed):
    draw = random.Random(seed)
    cluster = random_cluster(draw)
    try:
        graph = random_graph(draw)
        plan = cluster.plan(graph, [f"d{draw.randrange(3)}" for _ in graph.steps])
        report = cluster.run(plan)
        made = {value for each in graph.steps for value in each.outputs}
        moves = [move for move in plan.transfers if move.value in made]  # the second run's inputs are there
        times = timeline(graph, plan.decisions, moves, len(plan.devices))
        assert working(report) == pytest.approx(times.makespan, abs=EXACT)
        assert list(report.busy.values()) == pytest.approx(list(times.busy), abs=EXACT)
    finally:
        cluster.session.close()
        cluster.backend.close()


@pytest.mark.parametrize("seed", range(8))
def test_two_runs_take_the_same_time_to_the_last_bit(seed):
    reports = []
    for _ in range(2):
        draw = random.Random(seed)
        cluster = random_cluster(draw)
        graph = random_graph(draw)
        plan = cluster.plan(graph, [f"d{draw.randrange(3)}" for _ in graph.steps])
        reports.append(cluster.run(plan))
        cluster.session.close()
        cluster.backend.close()
    assert reports[0] == reports[1]
    assert reports[0].trace


def test_looks_go_over_the_clients_link(emulate):
    (device,) = devices(1)
    cluster = emulate([device], [LinkSpec(CLIENT, "d0", gbps=0.001, latency_ms=5)])
    session, value = cluster.session.members[0], spec(1000)
    speed = 0.001e9 / 8
    session.upload(1, value, pack([1.0] * 1000))
    plan = session.load(cluster.plan(chain(1, 1000), ["d0"]))
    session.execute(plan, Prediction(1, ()).encode([2, 1]))
    session.fetch(2)
    report = cluster.backend.report()
    # Up, one operator, down; each way 5 ms and 4,000 bytes.
    assert report.seconds == pytest.approx(2 * (5e-3 + 4000 / speed) + 1e-3, abs=EXACT)
    assert report.traffic[CLIENT, "d0"].bytes == report.traffic["d0", CLIENT].bytes == 4000
    cluster.backend.restart()
    session.describe(2)
    assert cluster.backend.report().seconds == pytest.approx(10e-3, abs=EXACT)


def test_requests_follow_each_other_without_waiting(emulate):
    """Ten executions are asked for at once: their latency is one latency."""
    (device,) = devices(1)
    cluster = emulate([device], [LinkSpec(CLIENT, "d0", gbps=1, latency_ms=50)])
    session = cluster.session.members[0]
    session.upload(1, spec(4), pack([1.0] * 4))
    plan, prediction = session.load(cluster.plan(chain(1, 4), ["d0"])), Prediction(1, ())
    session.synchronize()
    cluster.backend.restart()
    for handle in range(2, 12):
        session.execute(plan, prediction.encode([handle, 1]))
    session.synchronize()
    assert cluster.backend.report().seconds == pytest.approx(0.1 + 10e-3, abs=EXACT)


def test_sessions_of_one_device_take_turns(emulate):
    (device,) = devices(1)
    cluster = emulate([device], [LinkSpec(CLIENT, "d0", gbps=1, latency_ms=0)])
    sessions = [cluster.session.members[0], cluster.backend.connect(device)]
    for session in sessions:
        session.upload(1, spec(4), pack([1.0] * 4))
        plan = session.load(cluster.plan(chain(1, 4), ["d0"]))
        session.synchronize()
    cluster.backend.restart()
    for session in sessions:
        session.execute(plan, Prediction(1, ()).encode([2, 1]))
    for session in sessions:
        session.synchronize()
    report = cluster.backend.report()
    assert report.seconds == pytest.approx(2e-3, abs=EXACT)
    assert [span.start for span in report.trace if span.where == "d0"] == pytest.approx([0.0, 1e-3], abs=EXACT)


def test_a_very_long_program_without_a_look_is_kept_in_bounds(emulate):
    (device,) = devices(1)
    cluster = emulate([device], [LinkSpec(CLIENT, "d0", gbps=1, latency_ms=0)])
    session = cluster.session.members[0]
    session.upload(1, spec(4), pack([1.0] * 4))
    plan, prediction = session.load(cluster.plan(chain(1, 4), ["d0"])), Prediction(1, ())
    cluster.backend.restart()
    count = 20_000
    for handle in range(2, 2 + count):
        session.execute(plan, prediction.encode([handle, 1]))
        session.free([handle])
    report = cluster.backend.report()
    assert report.busy["d0"] == pytest.approx(count * 1e-3)
    assert len(report.trace) == count


def test_measured_time_is_scaled_to_the_stated_speed():
    class Slow(Cost):
        def estimate_compute(self, node: Node, device: Device | None = None) -> float:
            assert device is not None
            return 1000.0 / device.compute_tflops

    cluster = Cluster.parse(
        {
            "cluster": {
                "devices": [
                    {"id": name, "type": "null", "memory_gb": 1, "compute_tflops": speed}
                    for name, speed in (("slow", 1e-3), ("same", 1.0))
                ],
                "backend": "emulated",
                "emulation": {"time": "measured"},
            }
        }
    )
    backend = EmulatedBackend(cluster, NullBackend, Slow(), timeout=10.0)
    for device in backend.devices():
        session = backend.connect(device)
        session.upload(1, spec(64, 64), pack([1.0] * 4096))
        scheduler = Scheduler([device])
        session.execute(session.load(scheduler.schedule(chain(1, 64, 64))), Prediction(1, ()).encode([2, 1]))
    busy = backend.report().busy
    assert 0 < busy["same"] < 1.0  # what Python takes for 4,096 numbers, not the cost model's 1,000 s
    assert busy["slow"] > 20 * busy["same"]
    backend.close()
