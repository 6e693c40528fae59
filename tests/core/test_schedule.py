from __future__ import annotations

import msgspec
import pytest
from core.graph_examples import CPU, GPU, attention_step, graphs
from hypothesis import given
from hypothesis import strategies as st

from genie.annotate import annotate
from genie.device import Device
from genie.errors import ConfigError, GraphError, SchedulingError
from genie.flops import nbytes
from genie.graph import Graph, Input, Many, Node, Ref, TensorSpec
from genie.interfaces import CostModel, PlacementStrategy, Policy
from genie.plan import liveness
from genie.schedule import Roofline, RooflineCostModel, Scheduler, SingleDevice, policy
from genie.schedule.evaluate import memory
from genie.schedule.policy import MinLatency

BIG = Device(id="big", type="GPU", memory_gb=80, compute_tflops=100, network_gbps=100, address="a:1")
GIB = 1 << 30


def matmul(size: int, weight: str = "parameter") -> Graph:
    square = TensorSpec((size, size), "float32")
    steps = (
        Node(0, "aten::mm", "", (Ref(0), Ref(1)), (2,)),
        Node(1, "aten::view", "", (Ref(2), Many((size * size,))), (3,), aliases=((3, 2),)),
        Node(2, "aten::relu", "", (Ref(3),), (4,)),
    )
    flat = TensorSpec((size * size,), "float32")
    inputs = (Input(0, "x", "input"), Input(1, "w", "parameter"))
    return annotate(Graph((square, square, square, flat, flat), inputs, steps, (4,), name="matmul"))


def first(graph: Graph) -> Node:
    return graph.steps[0]


# --- cost --------------------------------------------------------------------------------------


def test_the_roofline_is_the_formula():
    model = RooflineCostModel({"gpu0": Roofline(compute=0.5, memory=0.25, overhead=1e-6, knee=1e6)})
    device = Device(id="gpu0", type="GPU", memory_gb=16, compute_tflops=10, memory_bandwidth_gb_s=800)
    graph = matmul(1024)
    compute = (2 * 1024**3 + 1e6) / (10e12 * 0.5)
    assert model.estimate_compute(graph.steps[0], device) == pytest.approx(1e-6 + compute)
    moved = 2 * 4 * 1024**2
    assert model.estimate_compute(graph.steps[2], device) == pytest.approx(1e-6 + moved / (800e9 * 0.25))


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_more_work_never_takes_less_time(small, large):
    small, large = sorted((small, large))
    model = RooflineCostModel()
    for device in (CPU, GPU, BIG):
        assert model.estimate_compute(first(matmul(small)), device) <= model.estimate_compute(
            first(matmul(large)), device
        )


def test_a_faster_device_is_faster_when_there_is_work():
    model = RooflineCostModel()
    times = [model.estimate_compute(first(matmul(4096)), device) for device in (BIG, GPU, CPU)]
    assert times == sorted(times)
    assert times[0] < times[-1] / 20


def test_an_estimate_needs_a_device_and_facts():
    model = RooflineCostModel()
    bare = msgspec.structs.replace(first(matmul(8)), semantics=None)
    with pytest.raises(ValueError, match="device"):
        model.estimate_compute(first(matmul(8)))
    with pytest.raises(ValueError, match="annotate"):
        model.estimate_compute(bare, GPU)
    # A node that knows its graph has shapes, and so facts.
    graph = matmul(8)
    stripped = msgspec.structs.replace(graph, steps=(bare, *graph.steps[1:]))
    assert model.estimate_compute(stripped.nodes()[0], GPU) == model.estimate_compute(first(graph), GPU)


def test_transfers_take_the_slower_link_and_none_when_they_stay():
    model = RooflineCostModel()
    assert model.estimate_transfer(GPU, GPU, 1 << 30) == 0
    slow = model.estimate_transfer(GPU, CPU, 10**9)
    assert slow == pytest.approx(50e-6 + 8 / (10 * 0.9))
    assert slow == model.estimate_transfer(CPU, GPU, 10**9)
    neighbour = msgspec.structs.replace(GPU, id="gpu1", index=1)
    assert model.estimate_transfer(GPU, neighbour, 10**9) < slow / 5


# --- memory ------------------------------------------------------------------------------------


def test_memory_counts_views_once_and_says_where():
    need = memory(matmul(16))
    square = 16 * 16 * 4
    assert need == (2 * square, 4 * square, 2)


def test_donated_inputs_make_room():
    graph = matmul(16)
    donated = msgspec.structs.replace(graph, inputs=(Input(0, "x", "input", donated=True), graph.inputs[1]))
    assert memory(donated).peak == memory(graph).peak - 16 * 16 * 4


@given(graphs())
def test_memory_equals_the_definition(graph):
    """By brute force: at each step, the storages of all values alive."""
    storage = {entry.value: entry.value for entry in graph.inputs}
    for node in graph.steps:
        for value in node.outputs:
            storage.setdefault(value, value)
        for output, operand in node.aliases:
            storage[output] = storage[operand]
    alive = {entry.value for entry in graph.inputs}
    peak = sum(nbytes(graph.values[value]) for value in alive)
    for node, gone in zip(graph.steps, liveness(graph), strict=True):
        alive |= {value for value in node.outputs if value >= 0}
        peak = max(peak, sum(nbytes(graph.values[root]) for root in {storage[value] for value in alive}))
        alive -= set(gone)
    assert memory(graph).peak == peak


# --- the scheduler -----------------------------------------------------------------------------


def test_everything_goes_to_the_best_device_with_estimates_for_all():
    plan = Scheduler(devices=[CPU, BIG, GPU], policy="min_latency").schedule(matmul(2048))
    assert set(plan.placement.values()) == {"big"}
    assert plan.latency == pytest.approx(sum(made.seconds for made in plan.decisions))
    why = plan.explain(0)
    assert why.source == "roofline"
    assert "best of 3 devices" in why.rule
    assert set(why.elsewhere) == {"cpu0", "gpu0"}
    assert all(cost > why.seconds for cost in why.elsewhere.values())
    assert plan.peak_memory == (0, memory(matmul(2048)).peak, 0)


def test_policies_choose_differently():
    graph = matmul(64)
    slow = Device(id="slow", type="GPU", memory_gb=16, compute_tflops=1)
    fast = Device(id="fast", type="GPU", memory_gb=16, compute_tflops=1000)
    chosen = {
        name: Scheduler([slow, fast], name).schedule(graph).placement[0]
        for name in ("min_latency", "min_cost", "max_throughput")
    }
    assert chosen == {"min_latency": "fast", "min_cost": "slow", "max_throughput": "fast"}
    assert all(isinstance(policy(name), Policy) for name in chosen)
    with pytest.raises(ConfigError, match="no policy 'cheapest'"):
        Scheduler([slow], "cheapest")


def test_what_does_not_fit_is_passed_over_or_refused_with_need_and_have():
    tiny = Device(id="tiny", type="GPU", memory_gb=0.5, compute_tflops=1000)
    graph = matmul(16384)  # 1 GiB each: two inputs, one product, one result
    assert set(Scheduler([tiny, GPU]).schedule(graph).placement.values()) == {"gpu0"}
    with pytest.raises(SchedulingError) as caught:
        Scheduler([tiny]).schedule(graph)
    for part in ("needs 4 GiB", "2 GiB of weights and inputs", "2 GiB of results", "tiny has 0.5 GiB"):
        assert part in caught.value.message
    assert caught.value.where == "node 2"
    assert caught.value.hint


def test_a_chosen_device_is_obeyed():
    scheduler = Scheduler([CPU, BIG])
    scheduler.set_placement_strategy(SingleDevice("cpu0"))
    plan = scheduler.schedule(matmul(2048))
    assert set(plan.placement.values()) == {"cpu0"}
    assert "the device asked for" in plan.explain(0).rule
    scheduler.set_placement_strategy(SingleDevice("gpu9"))
    with pytest.raises(SchedulingError, match="no device 'gpu9'"):
        scheduler.schedule(matmul(8))


def test_the_strategy_stands_alone_too():
    assert isinstance(SingleDevice(), PlacementStrategy)
    assert isinstance(RooflineCostModel(), CostModel)
    placed = SingleDevice().place(attention_step(), [GPU, CPU])
    assert list(placed) == list(range(8))
    assert len(set(placed.values())) == 1


def test_a_graph_without_facts_gets_the_same_estimates():
    bare = attention_step()
    one, other = Scheduler([GPU]).schedule(bare), Scheduler([GPU]).schedule(annotate(bare))
    assert [made.seconds for made in one.decisions] == [made.seconds for made in other.decisions]


@given(graphs())
def test_any_graph_is_scheduled_the_same_way_twice(graph):
    scheduler = Scheduler([GPU, CPU])
    plan = scheduler.schedule(graph)
    assert plan.text() == scheduler.schedule(graph).text()
    assert set(plan.placement) == {node.id for node in graph.steps}
    alone = [Scheduler([device]).schedule(graph).latency for device in (GPU, CPU)]
    assert plan.latency <= min(alone)


class AnyDevice:
    """A user's model, as the documentation shows it: no device, no transfers."""

    def estimate_compute(self, node):
        return 2 if node.metadata.get("compute_flops") else 1


class PerDevice:
    name = "table"

    def estimate_compute(self, node, device):
        return {"cpu0": 1.0, "gpu0": 2.0}[device.id]

    def estimate_transfer(self, src, dst, bytes):
        return 10.0


def test_cost_models_of_both_kinds():
    scheduler = Scheduler([GPU, CPU])
    scheduler.set_cost_model(AnyDevice())
    plan = scheduler.schedule(matmul(8))
    assert (plan.latency, plan.explain(0).source) == (4.0, "AnyDevice")
    scheduler.set_cost_model(PerDevice())
    plan = scheduler.schedule(matmul(8))
    assert (plan.latency, set(plan.placement.values())) == (3.0, {"cpu0"})
    assert plan.explain(1).elsewhere == {"gpu0": 2.0}


class Alternate:
    def place(self, graph, devices):
        return {node.id: devices[number % len(devices)].id for number, node in enumerate(graph.steps)}


def test_a_strategy_that_splits_gets_transfers_and_a_makespan():
    scheduler = Scheduler([GPU, CPU])
    scheduler.set_cost_model(PerDevice())
    scheduler.set_placement_strategy(Alternate())
    plan = scheduler.schedule(matmul(8))
    assert plan.explain(0).rule == "strategy Alternate"
    assert [(move.value, move.before, move.seconds) for move in plan.transfers] == [(2, 1, 10.0), (3, 2, 10.0)]
    assert plan.latency == 2 + 10 + 1 + 10 + 2
    # The view is of what arrived: its memory counts once.
    assert plan.peak_memory == (4 * 256, 256)


class Answers:
    """A plugin that answers with whatever it was given."""

    name = "answers"

    def __init__(self, answer):
        self.answer = answer

    def place(self, graph, devices):
        return self.answer

    def estimate_compute(self, node, device=None):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize("answer", [float("nan"), -1.0, float("inf"), None, "soon", KeyError("boom")])
def test_a_cost_model_that_gives_no_time_is_named(answer):
    scheduler = Scheduler([GPU])
    scheduler.set_cost_model(Answers(answer))
    with pytest.raises(SchedulingError, match="'answers'"):
        scheduler.schedule(matmul(8))


@pytest.mark.parametrize("answer", [{}, {0: "gpu0", 1: "gpu0", 2: "elsewhere"}, None, {0: ["gpu0"]}])
def test_a_strategy_that_places_badly_is_named(answer):
    scheduler = Scheduler([GPU])
    scheduler.set_placement_strategy(Answers(answer))
    with pytest.raises(SchedulingError, match="'answers' puts node"):
        scheduler.schedule(matmul(8))


def test_a_strategy_may_not_tear_written_memory_apart():
    scheduler = Scheduler([GPU, CPU])
    scheduler.set_placement_strategy(Alternate())
    with pytest.raises(SchedulingError, match="splits the memory of %"):
        scheduler.schedule(attention_step())


def test_a_split_that_does_not_fit_is_refused():
    tiny = Device(id="tiny", type="GPU", memory_gb=0.5, compute_tflops=1)
    scheduler = Scheduler([GPU, tiny])
    scheduler.set_placement_strategy(Alternate())
    with pytest.raises(SchedulingError, match=r"1 GiB on tiny, which has 0\.5 GiB"):
        scheduler.schedule(matmul(16384))


@pytest.mark.parametrize("devices", [[], [GPU, GPU]])
def test_devices_are_checked(devices):
    with pytest.raises(ConfigError):
        Scheduler(devices)


def test_things_that_are_no_plugins_are_refused():
    scheduler = Scheduler([GPU], MinLatency())
    with pytest.raises(ConfigError, match="estimate_compute"):
        scheduler.set_cost_model(object())
    with pytest.raises(ConfigError, match="place"):
        scheduler.set_placement_strategy(object())


def test_a_bad_graph_is_refused():
    with pytest.raises(GraphError):
        Scheduler([GPU]).schedule(Graph((), (), (), (3,)))


def test_many_devices_and_an_empty_graph():
    plan = Scheduler([GPU, CPU]).schedule(Graph((), (), (), ()))
    assert (plan.latency, plan.stages, dict(plan.placement)) == (0.0, (), {})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"devices": ["a"]}, r"devices\[0\] is no device: 'a'"),
        ({"devices": "gpu"}, "devices= must be a list of devices, not 'gpu'"),
        ({"devices": CPU}, "devices= must be a list of devices"),
        ({"devices": 5}, "devices= must be a list of devices, not 5"),
        ({"devices": []}, "at least one device"),
        ({"devices": [CPU, CPU]}, "two devices have one id: "),
        ({"policy": object()}, "neither a policy's name nor a policy"),
        ({"policy": MinLatency}, "neither a policy's name nor a policy"),
        ({"recompute_ms": float("nan")}, "recompute_ms must be a finite number from 0 on, not nan"),
        ({"recompute_ms": -1}, "recompute_ms must be"),
        ({"message_ms": float("inf")}, "message_ms must be"),
        ({"message_ms": "1"}, "message_ms must be"),
        ({"thrift": -0.1}, "thrift must be"),
        ({"thrift": True}, "thrift must be"),
        ({"latency_cap_ms": float("nan")}, "latency_cap_ms must be"),
        ({"reserved": [1]}, "reserved= must be a mapping"),
        ({"reserved": {"nope": 1}}, "reserved: there is no device 'nope'"),
    ],
)
def test_what_a_scheduler_is_given_is_checked(given, said):
    with pytest.raises(ConfigError, match=said):
        Scheduler(**{"devices": [CPU], **given})


@pytest.mark.parametrize("bad", [None, 5, "graph", object()])
def test_what_is_no_graph_is_said_to_be_none(bad):
    for stage in (Scheduler([CPU]).schedule, annotate):
        with pytest.raises(GraphError, match="this is no graph: "):
            stage(bad)
    with pytest.raises(GraphError, match="no graph: <ExecutionPlan"):
        Scheduler([CPU]).schedule(Scheduler([CPU]).schedule(matmul(4)))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"homes": [0]}, "homes= must be a mapping"),
        ({"pins": "a"}, "pins= must be a mapping"),
        ({"exclude": 3}, "exclude= must be a mapping"),
        ({"exclude": {0: 3}}, "not a device, nor several: 3"),
        ({"occupied": {CPU.id: float("nan")}}, "occupied: .* must be a number of bytes, not nan"),
        ({"like": 3}, "like= must be a plan"),
    ],
)
def test_what_is_asked_of_a_schedule_is_checked(asked, said):
    with pytest.raises(ConfigError, match=said):
        Scheduler([CPU, GPU]).schedule(matmul(4), **asked)
