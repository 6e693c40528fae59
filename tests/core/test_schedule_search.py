"""What holds of every placement the search finds."""

from __future__ import annotations

from array import array

import msgspec
import pytest
from core.dags import GIB, Table, device, every_plan, graph_of, plan_at, problems
from core.graph_examples import graphs
from hypothesis import given, settings
from hypothesis import strategies as st

from genie.errors import ConfigError, SchedulingError
from genie.graph.sizes import sizes
from genie.plan import Decision, Groups, Link, Links, liveness, peaks, timeline, transfers
from genie.schedule import Portfolio, Scheduler
from genie.schedule.problem import build

POLICIES = ("min_latency", "min_cost", "max_throughput")


def scheduled(graph, devices, model, policy="min_latency", asked=None, **given):
    scheduler = Scheduler(devices, policy, **given)
    scheduler.set_cost_model(model)
    return scheduler.schedule(graph, **(asked or {}))


def score(plan, policy):
    times = plan.timeline
    if policy == "min_latency":
        return times.makespan
    if policy == "min_cost":
        return sum(busy * each.compute_tflops for busy, each in zip(times.busy, plan.devices, strict=True))
    return max(map(max, zip(times.busy, times.sent, times.received, strict=True)))


# --- one evaluator -----------------------------------------------------------------------------


@settings(max_examples=300)
@given(graphs(most=20), st.data())
def test_the_native_evaluator_is_the_python_one_to_the_last_bit(graph, data):
    devices, steps = data.draw(st.integers(1, 4)), len(graph.steps)
    number = st.integers(0, 1000).map(lambda n: n / 7)
    seconds = [[data.draw(number) for _ in range(steps)] for _ in range(devices)]
    links = [
        Link(a, b, data.draw(number), data.draw(st.sampled_from([0.3, 7.0, 1e3, float("inf")])))
        for a in range(devices)
        for b in range(devices)
        if a != b
    ]
    places = [data.draw(st.integers(0, devices - 1)) for _ in range(steps)]
    homes = {entry.value: data.draw(st.integers(0, devices - 1)) for entry in graph.inputs if data.draw(st.booleans())}
    size, releases = sizes(graph), liveness(graph)
    moves = transfers(graph, places, Links(links), homes, size)
    decisions = [Decision(place, seconds[place][step], "") for step, place in enumerate(places)]
    python = timeline(graph, decisions, moves, devices)

    groups = Groups(list(range(steps)), [(1 << devices) - 1] * steps)
    problem = build(graph, seconds, links, [1 << 60] * devices, groups, homes, releases, size)
    native = problem.evaluate(array("i", places), traced=True)
    assert native["makespan"] == python.makespan
    assert tuple(native["busy"]) == python.busy
    assert tuple(native["sent"]) == python.sent
    assert tuple(native["received"]) == python.received
    assert list(zip(native["begin"], native["end"], strict=True)) == [(s.start, s.finish) for s in python.steps]
    assert native["moves"] == [
        (move.value, move.source, move.target, move.before, span.start, span.finish)
        for move, span in zip(moves, python.transfers, strict=True)
    ]
    assert tuple(native["peak"]) == peaks(graph, places, devices, releases, homes, size)


# --- never worse, never impossible -------------------------------------------------------------


@settings(max_examples=150)
@given(problems(tight=True), st.sampled_from(POLICIES))
def test_never_worse_than_a_single_device_and_never_over_memory(problem, policy):
    graph, devices, model = problem
    alone = []
    for each in devices:
        try:
            alone.append(score(plan_at(graph, devices, model, [each.id] * len(graph.steps)), policy))
        except SchedulingError:
            continue
    try:
        plan = scheduled(graph, devices, model, policy)
    except SchedulingError:
        assert not alone
        return
    assert all(peak <= each.memory_bytes for peak, each in zip(plan.peak_memory, devices, strict=True))
    if alone:
        assert score(plan, policy) <= min(alone) * (1 + 1e-9)


@settings(max_examples=60)
@given(problems(most=5, tight=True))
def test_only_what_is_really_infeasible_is_refused_and_tiny_graphs_are_placed_best(problem):
    graph, devices, model = problem
    possible = every_plan(graph, devices, model)
    if not possible:
        with pytest.raises(SchedulingError, match=r"needs .* has "):
            scheduled(graph, devices, model)
        return
    plan = scheduled(graph, devices, model)
    best = min(each.latency for each in possible)
    # A further device must gain what it takes to tell it.
    assert plan.latency <= best + model.latency * (len(devices) - 1) + 1e-9


@settings(max_examples=60)
@given(problems(most=5, tight=True), st.data())
def test_pins_and_exclusions_hold_and_only_impossible_ones_are_refused(problem, data):
    graph, devices, model = problem
    ids, nodes = [each.id for each in devices], range(len(graph.steps))
    pins = data.draw(st.dictionaries(st.sampled_from(nodes), st.sampled_from(ids), max_size=2))
    exclude = data.draw(st.dictionaries(st.sampled_from(nodes), st.sampled_from(ids), max_size=2))
    asked = {"pins": pins, "exclude": exclude}
    possible = every_plan(graph, devices, model, **asked)
    try:
        plan = scheduled(graph, devices, model, asked=asked)
    except SchedulingError:
        assert not possible
        return
    assert all(plan.placement[node] == where for node, where in pins.items())
    assert all(plan.placement[node] != where for node, where in exclude.items())
    assert possible


@settings(max_examples=150)
@given(problems(most=12), st.sampled_from(POLICIES))
def test_never_below_the_lower_bounds(problem, policy):
    graph, devices, model = problem
    plan = scheduled(graph, devices, model, policy)
    fastest = [min(model.seconds[node.id, each.id] for each in devices) for node in graph.steps]
    until = {}
    for node, took in zip(graph.steps, fastest, strict=True):
        done = max((until.get(value, 0.0) for value in node.operands()), default=0.0) + took
        until.update(dict.fromkeys(node.outputs, done))
    assert plan.latency >= max(until.values()) - 1e-9  # the longest chain, each step on its fastest device
    assert plan.latency >= sum(fastest) / len(devices) - 1e-9  # all work, shared perfectly
    assert plan.latency == plan.timeline.makespan


@settings(max_examples=40)
@given(problems(most=12), st.sampled_from(POLICIES))
def test_equal_questions_have_equal_answers(problem, policy):
    graph, devices, model = problem
    assert scheduled(graph, devices, model, policy).text() == scheduled(graph, devices, model, policy).text()


# --- what it finds -----------------------------------------------------------------------------


def towers(count: int, length: int):
    """Chains side by side, joined at the end."""
    uses, ends = [], []
    for tower in range(count):
        for at in range(length):
            uses.append([tower if at == 0 else count + len(uses) - 1])
        ends.append(count + len(uses) - 1)
    uses.append(ends)
    return graph_of(uses, [64] * (count + len(uses)), count, [count + len(uses) - 1])


def test_independent_towers_run_side_by_side():
    graph = towers(4, 10)
    devices = [device(f"d{n}") for n in range(4)]
    model = Table({(node.id, each.id): 1.0 for node in graph.steps for each in devices}, latency=0.01)
    plan = scheduled(graph, devices, model)
    assert len(set(plan.placement.values())) == 4
    assert plan.latency == pytest.approx(10 + 3 * 0.01 + 1)  # the last device receives three, one after the other
    assert plan.rules[0].endswith("by min_latency")


def test_what_no_device_holds_alone_is_split_where_little_crosses():
    # Four layers with weights of 6 GiB on two devices of 13 GiB.
    uses = [[0, 1], [5, 2], [6, 3], [7, 4]]
    graph = graph_of(uses, [GIB // 64, 6 * GIB, 6 * GIB, 6 * GIB, 6 * GIB, 64, 64, 64, 64], 5, [8])
    devices = [device("a", 13), device("b", 13)]
    model = Table({(node, each.id): 1.0 for node in range(4) for each in devices}, 0.1, 1.0 / GIB)
    plan = scheduled(graph, devices, model)
    assert plan.placement[0] == plan.placement[1] != plan.placement[2] == plan.placement[3]
    assert all(peak <= 13 * GIB for peak in plan.peak_memory)


def test_a_pipeline_for_throughput_is_balanced():
    graph = towers(1, 12)
    devices = [device("a"), device("b"), device("c")]
    model = Table({(node.id, each.id): 1.0 for node in graph.steps for each in devices}, latency=0.1)
    latency, throughput = (scheduled(graph, devices, model, policy) for policy in ("min_latency", "max_throughput"))
    assert len(set(latency.placement.values())) == 1
    assert sorted(throughput.timeline.busy) == [4.0, 4.0, 5.0]


def test_a_split_must_gain_what_it_takes_to_hand_over():
    graph = graph_of([[0], [1]], [8, 8, 8, 8], 2, [2, 3])
    devices = [device("a"), device("b")]
    seconds = {(node, each.id): 1.0 for node in range(2) for each in devices}
    assert len(set(scheduled(graph, devices, Table(seconds, latency=0.5)).placement.values())) == 2
    assert len(set(scheduled(graph, devices, Table(seconds, latency=1.5)).placement.values())) == 1


def test_homes_cost_a_transfer_elsewhere_and_memory_at_home():
    graph = graph_of([[0]], [GIB, 64], 1, [1])
    devices = [device("a"), device("b")]
    slow_at_home = Table({(0, "a"): 3.0, (0, "b"): 1.0}, latency=0.5, per_byte=1.0 / GIB)
    plan = scheduled(graph, devices, slow_at_home, asked={"homes": {0: "a"}})
    assert plan.placement[0] == "b"
    assert [(move.source, move.target, move.before) for move in plan.transfers] == [(0, 1, 0)]
    assert plan.latency == 2.5
    assert plan.peak_memory == (GIB, GIB + 64)
    assert plan.homes == ((0, 0),)
    near = msgspec.structs.replace(plan.devices[0], id="a")
    assert (
        scheduled(
            graph, [near, devices[1]], Table({(0, "a"): 2.0, (0, "b"): 1.0}, 0.5, 1.0 / GIB), asked={"homes": {0: "a"}}
        ).placement[0]
        == "a"
    )


# --- policies ----------------------------------------------------------------------------------


def chain_of_two():
    graph = graph_of([[0], [1], [2]], [8, 8, 8, 8], 1, [3])
    devices = [device("cheap", tflops=1), device("fast", tflops=10)]
    model = Table({(node, name): took for node in range(3) for name, took in (("cheap", 4.0), ("fast", 1.0))}, 0.125)
    return graph, devices, model


def test_a_cap_on_latency_is_kept_at_the_least_cost():
    graph, devices, model = chain_of_two()
    free = scheduled(graph, devices, model, "min_cost")
    assert (free.latency, score(free, "min_cost")) == (12.0, 12.0)
    capped = scheduled(graph, devices, model, "min_cost", latency_cap_ms=10_000)
    assert capped.latency <= 10.0
    assert score(capped, "min_cost") == 18.0  # one of three on the fast one
    assert len(capped.rules) == 1


def test_a_cap_nothing_keeps_is_said_or_refused():
    graph, devices, model = chain_of_two()
    plan = scheduled(graph, devices, model, "min_cost", latency_cap_ms=1000)
    assert plan.latency == 3.0  # as near as can be
    assert "a latency of 1000 ms is exceeded: 3e+03 ms" in plan.rules
    with pytest.raises(SchedulingError, match=r"no placement keeps the caps; .* a latency of 1000 ms is exceeded"):
        scheduled(graph, devices, model, "min_cost", latency_cap_ms=1000, strict=True)
    assert scheduled(graph, devices, model, cost_cap=20).latency <= 12.0
    with pytest.raises(ConfigError, match="latency_cap_ms must be a positive number"):
        Scheduler(devices, latency_cap_ms=-1)


class Odd:
    """A user's policy: as much of the time as possible on one device, and nothing longer than a bound."""

    name = "odd"

    def __init__(self, bound=float("inf"), error=None):
        self.bound, self.error = bound, error

    def score(self, makespan, device_seconds, devices):
        if self.error:
            raise self.error
        return -device_seconds["cheap"]

    def feasible(self, makespan, device_seconds, devices):
        return makespan <= self.bound


def test_a_policy_of_somebody_elses_is_searched_by():
    graph, devices, model = chain_of_two()
    assert set(scheduled(graph, devices, model, Odd()).placement.values()) == {"cheap"}
    bounded = scheduled(graph, devices, model, Odd(10))
    assert bounded.timeline.busy == (8.0, 1.0)
    assert bounded.policy == "odd"
    for policy, said in (
        (Odd(error=KeyError("x")), "'odd' failed: KeyError"),
        (Odd(error=ZeroDivisionError()), "'odd'"),
    ):
        with pytest.raises(SchedulingError, match=said):
            scheduled(graph, devices, model, policy)


def test_reserved_memory_is_not_there():
    graph = graph_of([[0]], [4 * GIB, 64], 1, [1])
    devices = [device("a", 8), device("b", 8)]
    model = Table({(0, "a"): 1.0, (0, "b"): 2.0})
    assert scheduled(graph, devices, model).placement[0] == "a"
    plan = scheduled(graph, devices, model, reserved={"a": 5 * GIB})
    assert plan.placement[0] == "b"
    assert plan.capacities == (3 * GIB, 8 * GIB)
    with pytest.raises(SchedulingError, match=r"a has 3 GiB, b has 1 GiB"):
        scheduled(graph, devices, model, reserved={"a": 5 * GIB, "b": 7 * GIB})
    for bad in ({"c": 1}, {"a": -1}, {"a": 0.5}):
        with pytest.raises(ConfigError, match="reserved"):
            Scheduler(devices, reserved=bad)


def test_the_strategy_stands_alone():
    placed = Portfolio().place(towers(2, 3), [device("a"), device("b")])
    assert set(placed) == set(range(7))
    with pytest.raises(ConfigError, match="effort"):
        Portfolio(effort=-1)


@settings(max_examples=60)
@given(problems(most=14), st.integers(0, 3))
def test_what_the_search_reckons_is_what_the_evaluator_says(problem, seed):
    """It runs only what a change can affect: to the last bit, that is the whole."""
    graph, devices, model = problem
    count, steps = len(devices), len(graph.steps)
    seconds = [[model.estimate_compute(node, each) for node in graph.steps] for each in devices]
    links = [
        Link(a, b, model.latency, 1 / model.per_byte if model.per_byte else float("inf"))
        for a in range(count)
        for b in range(count)
        if a != b
    ]
    groups = Groups(list(range(steps)), [(1 << count) - 1] * steps)
    native = build(graph, seconds, links, [1 << 60] * count, groups, {}, liveness(graph), sizes(graph))
    answer = native.search(objective="min_latency", price=[1.0] * count, budget=200 * steps, seed=seed)
    assert native.evaluate(array("i", answer["place"]))["makespan"] == answer["score"]


def test_tiny_graphs_are_placed_best_of_all():
    graph = graph_of([[0], [0], [1, 2], [3]], [8] * 5, 1, [4])
    devices = [device("a"), device("b"), device("c")]
    model = Table({(n, d): 1.0 + n * 0.3 + "abc".index(d) * 0.7 for n in range(4) for d in "abc"}, latency=0.25)
    best = min(plan.latency for plan in every_plan(graph, devices, model))
    plan = scheduled(graph, devices, model)
    assert plan.latency == best
    assert "the best of all placements" in plan.rules[0] or "one device" in plan.rules[0]
