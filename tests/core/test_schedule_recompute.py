"""Values that are computed again, rather than sent."""

from __future__ import annotations

import msgspec
import pytest
from core.dags import Fixed, Table, device, graph_of, problems
from hypothesis import given, settings
from hypothesis import strategies as st

from genie.codec import decode, encode
from genie.errors import PlanError
from genie.graph import Graph, Input, Node, Ref, TensorSpec
from genie.plan import Again, Stage, bare, verify
from genie.schedule import Scheduler

A, B = device("a"), device("b")


def scheduled(graph, model, recompute=True, places="aaab", **asked):
    scheduler = Scheduler([A, B], recompute_ms=1e3 * recompute)
    scheduler.set_cost_model(model)
    scheduler.set_placement_strategy(Fixed(places))
    return scheduler.schedule(graph, **asked)


def table_for_both() -> Graph:
    """A table made of nothing, used by nodes on two devices."""
    x = TensorSpec((64,), "uint8")
    steps = (
        Node(0, "aten::arange", "", (), (1,)),
        Node(1, "aten::neg", "", (Ref(1),), (2,)),
        Node(2, "aten::add", "", (Ref(0), Ref(2)), (3,)),
        Node(3, "aten::add", "", (Ref(0), Ref(2)), (4,)),
    )
    return Graph((x,) * 5, (Input(0, donated=True),), steps, (3, 4))


def costs(cheap=0.125):
    return Table({(n, d): cheap if n < 2 else 4.0 for n in range(4) for d in "ab"}, latency=1.0)


def test_what_is_cheap_is_made_again():
    graph = table_for_both()
    shipped = scheduled(graph, costs(), recompute=False, homes={0: "b"})
    plan = scheduled(graph, costs(), homes={0: "b"})
    assert plan.again == (Again(0, 1, 3), Again(1, 1, 3))
    assert [move.value for move in shipped.transfers] == [0, 2]
    assert [move.value for move in plan.transfers] == [0]
    assert plan.timeline.again[1].finish == 0.25
    assert plan.timeline.steps[3].start == 0.25 < shipped.timeline.steps[3].start
    assert (plan.latency, shipped.latency) == (5.0, 5.25)
    assert plan.stages == (Stage(0, (0, 1)), Stage(0, (2,)), Stage(1, (0, 1, 3)))
    assert decode(encode(plan)) == plan
    assert "#1 aten::neg again: 125 ms" in plan.text()
    assert "recomputed on b" in str(plan.explain(1))
    assert plan.explain(3).waits == "%2 of #1, which b runs before"


def test_what_is_dear_is_sent():
    assert scheduled(table_for_both(), costs(cheap=0.75), homes={0: "b"}).again == ()


def table_for_two() -> Graph:
    """Two values of one table, each used on the other device when the table itself is gone."""
    x = TensorSpec((64,), "uint8")
    steps = (
        Node(0, "aten::arange", "", (), (1,)),
        Node(1, "aten::neg", "", (Ref(1),), (2,)),
        Node(2, "aten::abs", "", (Ref(1),), (3,)),
        Node(3, "aten::add", "", (Ref(0), Ref(2)), (4,)),
        Node(4, "aten::add", "", (Ref(4), Ref(3)), (5,)),
    )
    return Graph((x,) * 6, (Input(0, donated=True),), steps, (5,))


def test_what_is_gone_by_then_is_made_for_each():
    model = Table({(n, d): 0.125 if n < 4 else 4.0 for n in range(5) for d in "ab"}, latency=1.0)
    plan = scheduled(table_for_two(), model, places="aaabb", homes={0: "b"})
    assert plan.again == (Again(0, 1, 3), Again(1, 1, 3), Again(0, 1, 4), Again(2, 1, 4))
    assert not plan.transfers
    for node, device_ in ((1, "b"), (0, "b"), (3, "a"), (4, "a"), (2, "b")):
        verify(plan.pin(node, device_))


def test_what_is_still_there_is_made_once():
    graph = table_for_two()
    late = Node(5, "aten::add", "", (Ref(1), Ref(1)), (6,))  # the table's last use, on its own device
    graph = msgspec.structs.replace(
        graph, values=(*graph.values, graph.values[0]), steps=(*graph.steps, late), outputs=(5, 6)
    )
    model = Table({(n, d): 0.125 if n < 4 else 4.0 for n in range(6) for d in "ab"}, latency=1.0)
    plan = scheduled(graph, model, places="aaabba", homes={0: "b"})
    assert plan.again == (Again(0, 1, 3), Again(1, 1, 3), Again(2, 1, 4))
    pinned = plan.pin(3, "a")  # what was made for it was there for the next, too: now it is sent
    verify(pinned)
    assert pinned.again == (Again(2, 1, 4),)
    assert 1 in {move.value for move in pinned.transfers}


def test_what_draws_or_writes_is_sent():
    graph = table_for_both()
    noisy = msgspec.structs.replace(graph.steps[0], operation="aten::rand")
    twice = (noisy, *graph.steps[1:], Node(4, "aten::rand", "", (), (5,)))
    drawing = msgspec.structs.replace(graph, steps=twice, values=(*graph.values, graph.values[0]))
    model = Table({(n, d): 0.125 if n < 2 else 4.0 for n in range(5) for d in "ab"}, latency=1.0)
    assert all(each.step != 0 for each in scheduled(drawing, model, places="aaaba", homes={0: "b"}).again)
    writing = msgspec.structs.replace(graph.steps[1], operation="aten::neg_", outputs=(-1,), mutates=(1,))
    uses = tuple(
        msgspec.structs.replace(node, args=(Ref(0), Ref(1)), outputs=(n,)) for n, node in enumerate(graph.steps[2:], 2)
    )
    written = Graph(graph.values[:4], graph.inputs, (graph.steps[0], writing, *uses), (2, 3))
    assert scheduled(written, costs(), places="aaaa", homes={0: "b"}).again == ()


def test_exclusions_hold_for_what_is_made_again():
    assert scheduled(table_for_both(), costs(), homes={0: "b"}, exclude={1: "b"}).again == ()
    assert scheduled(table_for_both(), costs(), homes={0: "b"}, pins={1: "a"}).again == ()


def test_pins_keep_what_still_makes_sense():
    plan = scheduled(table_for_both(), costs(), homes={0: "b"})
    for node, device_ in ((2, "b"), (0, "a"), (3, "a"), (1, "b"), (0, "b")):
        verify(plan.pin(node, device_))
    assert plan.pin(2, "b").again == ()  # they are needed sooner there
    assert plan.pin(3, "a").again == ()


@pytest.mark.parametrize(
    ("again", "said"),
    [
        ((Again(7, 1, 3),), "does not have"),
        ((Again(3, 1, 3),), "does not have"),
        ((Again(0, 0, 3),), "not needed"),
        ((Again(0, 1, 2),), "not needed"),
        ((Again(1, 1, 3),), "where an operand of it is not"),
    ],
)
def test_a_plan_says_nothing_else_is_made_again(again, said):
    plan = scheduled(table_for_both(), costs(), homes={0: "b"})
    verify(plan)
    with pytest.raises(PlanError, match=said):
        verify(msgspec.structs.replace(plan, again=again))
    with pytest.raises(PlanError, match="does not hold it|not on its device"):
        verify(msgspec.structs.replace(plan, again=(), transfers=plan.transfers[:0]))


@settings(max_examples=120)
@given(problems(most=10, tight=True), st.sampled_from(["min_latency", "min_cost"]))
def test_a_plan_is_never_worse_for_it_and_keeps_every_rule(problem, policy):
    from genie.errors import SchedulingError

    graph, devices, model = problem
    plans = []
    for recompute in (False, True):
        scheduler = Scheduler(devices, policy, recompute_ms=1e3 * recompute)
        scheduler.set_cost_model(model)
        try:
            plans.append(scheduler.schedule(graph))
        except SchedulingError:
            return
    shipped, plan = plans
    assert plan.placement == shipped.placement
    if policy == "min_latency":
        assert plan.latency <= shipped.latency
    assert all(peak <= each.memory_bytes for peak, each in zip(plan.peak_memory, devices, strict=True))
    assert plan.latency == plan.timeline.makespan
    assert decode(encode(plan)) == plan


def test_graphs_without_repeats_are_as_before():
    graph = graph_of([[0], [1]], [8, 8, 8], 1, [2])
    model = Table({(n, d): 1.0 for n in range(2) for d in "ab"}, latency=0.5)
    assert scheduled(graph, model, places="aa").again == ()


def test_a_plan_without_estimates_still_says_what_is_made_again():
    plan = bare(scheduled(table_for_both(), costs(), homes={0: "b"}))
    assert len(plan.again) == 2
    assert decode(encode(plan)) == plan
    assert plan.timeline.makespan > 0  # of transfers alone
