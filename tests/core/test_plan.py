from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from core.graph_examples import CPU, GPU, attention_step, graphs
from hypothesis import given

from genie.annotate import annotate
from genie.errors import GraphError, PlanError
from genie.graph import Graph, Input, Node, Ref, TensorSpec
from genie.plan import ExecutionPlan, Link, Stage, Transfer, liveness, verify
from genie.schedule import Scheduler

GOLDEN = Path(__file__).parent.parent / "golden"
X = TensorSpec((4, 4), "float32")


class ByParity:
    """Even nodes on one device, odd ones on the other."""

    name = "parity"

    def place(self, graph, devices):
        return {node.id: devices[node.id % 2].id for node in graph.steps}


def chain() -> Graph:
    steps = (
        Node(0, "aten::mm", "", (Ref(0), Ref(0)), (1,)),
        Node(1, "aten::relu", "", (Ref(1),), (2,)),
        Node(2, "aten::add", "Tensor", (Ref(1), Ref(2), 1), (3,)),
    )
    return Graph((X, X, X, X), (Input(0, "x", "input"),), steps, (3,), name="chain")


def split() -> ExecutionPlan:
    scheduler = Scheduler([GPU, CPU])
    scheduler.set_placement_strategy(ByParity())
    return scheduler.schedule(annotate(chain()))


def whole() -> ExecutionPlan:
    return Scheduler([GPU, CPU]).schedule(annotate(attention_step()))


def change(plan: ExecutionPlan, **fields) -> ExecutionPlan:
    return msgspec.structs.replace(plan, **fields)


@pytest.mark.parametrize(("plan", "name"), [(whole, "attention_step.plan.txt"), (split, "chain.plan.txt")])
def test_the_text_is_stable(plan, name):
    made = plan()
    assert made.text() == str(made) == (GOLDEN / name).read_text()
    assert all(device.id in repr(made) for device in made.devices)


def test_a_plan_says_where_and_how_long():
    plan = split()
    assert dict(plan.placement) == {0: "gpu0", 1: "cpu0", 2: "gpu0"}
    assert plan.latency_ms == pytest.approx(plan.latency * 1e3)
    assert plan.latency > sum(move.seconds for move in plan.transfers)
    assert plan.stages == (Stage(0, (0,)), Stage(1, (1,)), Stage(0, (2,)))
    assert [(move.value, move.source, move.target, move.before) for move in plan.transfers] == [
        (1, 0, 1, 1),
        (2, 1, 0, 2),
    ]
    assert plan.fingerprint == chain().fingerprint


def test_a_plan_explains_itself():
    plan = split()
    why = plan.explain(1)
    assert (why.device, why.rule, why.source) == ("cpu0", "strategy parity", "roofline")
    assert why.seconds == plan.decisions[1].seconds
    assert set(why.elsewhere) == {"gpu0"}
    assert why.arrivals[0].startswith("%1 from gpu0: 64 bytes in ")
    assert plan.explain(plan.graph.get_node(1)) == why
    text = str(why)
    for part in (
        "#1 %2 float32[4, 4] = aten::relu(%1)",
        "cpu0",
        "strategy parity",
        "roofline",
        "on gpu0 it would take",
    ):
        assert part in text
    with pytest.raises(PlanError, match="no node 17"):
        plan.explain(17)


def test_values_are_forgotten_after_their_last_use():
    assert liveness(chain()) == ((), (), (1, 2))
    # %0 is donated, %4 a view still in use, %9 made for the caller.
    assert liveness(attention_step()) == ((0,), (3,), (), (5,), (), (4, 6), (7,), ())


@given(graphs())
def test_liveness_equals_the_definition(graph):
    releases = liveness(graph)
    gone = [value for values in releases for value in values]
    donated = {entry.value for entry in graph.inputs if entry.donated}
    made = {value for node in graph.steps for value in node.outputs if value >= 0}
    if graph.steps:
        assert sorted(gone) == sorted((donated | made) - set(graph.outputs))
    for step, values in enumerate(releases):
        for value in values:
            later = [node for node in graph.steps[step + 1 :] if value in node.operands()]
            here = value in graph.steps[step].operands() or value in graph.steps[step].outputs
            assert not later
            assert here or (step == 0 and value in donated)


def rule(plan: ExecutionPlan, step: int, **fields) -> ExecutionPlan:
    made = list(plan.decisions)
    made[step] = msgspec.structs.replace(made[step], **fields)
    return change(plan, decisions=tuple(made))


@pytest.mark.parametrize(
    ("plan", "broken"),
    [
        (change(split(), devices=(GPU, GPU)), "two devices have one id"),
        (change(split(), decisions=()), "0 decisions and 3 releases for 3 steps"),
        (change(split(), peak_memory=(1,)), "peak_memory"),
        (change(split(), latency=float("nan")), "latency nan"),
        (change(split(), rules=("x",) * 9), "too many rules"),
        (rule(split(), 1, device=2), "node 1 (aten::relu): device 2"),
        (rule(split(), 1, rule=1), "node 1 (aten::relu): rule 1"),
        (rule(split(), 1, seconds=-1.0), "an estimate is no time"),
        (rule(split(), 1, elsewhere=(1.0,)), "estimates for 1 of 2 devices"),
        (rule(split(), 1, error=-1.0), "is no share"),
        (change(split(), links=(Link(0, 7, 0.0, 1e9),)), "a link names a device"),
        (change(split(), links=(Link(0, 1, 0.0, 0.0),)), "no latency or speed"),
        (change(split(), releases=((), (), (0,))), "%0 is released after node 2, but it outlives"),
        (change(split(), releases=((), (), (3,))), "%3 is released after node 2, but it outlives"),
        (change(split(), releases=((), (1,), ())), "operand %1 was released before"),
        (change(split(), releases=((2,), (), ())), "%2 is released after node 0, where it does not live"),
        (change(split(), releases=((), (), (1, 1))), "%1 is released after node 2, where it does not live"),
        (change(split(), releases=((), (), (77,))), "%77"),
        (change(split(), transfers=()), "node 1 (aten::relu): operand %1 is not on its device"),
        (change(split(), transfers=(Transfer(1, 1, 0, 1, 64, 0.1),)), "a device that does not hold it"),
        (change(split(), transfers=(Transfer(9, 0, 1, 1, 64, 0.1),)), "not in the graph"),
        (change(split(), transfers=(Transfer(1, 0, 5, 1, 64, 0.1),)), "not in the plan's table"),
        (change(split(), transfers=(Transfer(1, 0, 1, 1, -1, 0.1),)), "no size or time"),
        (change(whole(), transfers=(Transfer(1, 0, 1, 1, 64, 0.1),)), "transfers in a plan that runs on one device"),
        (change(split(), peak_memory=(None, 1)), "wrong type"),
    ],
)
def test_each_rule_names_itself(plan, broken):
    with pytest.raises(PlanError, match=re.escape(broken)):
        verify(plan)


def test_written_memory_stays_on_one_device():
    graph = Graph(
        (X, X),
        (Input(0),),
        (
            Node(0, "aten::view", "", (Ref(0),), (1,), aliases=((1, 0),)),
            Node(1, "aten::relu_", "", (Ref(1),), (-1,), mutates=(1,)),
        ),
        (),
    )
    one = Scheduler([GPU, CPU]).schedule(annotate(graph))
    assert {made.device for made in one.decisions} == {1}
    moved = rule(one, 1, device=0)
    moved = change(moved, transfers=(Transfer(1, 1, 0, 1, 64, 0.1),))
    with pytest.raises(PlanError, match="shares memory that is written to"):
        verify(moved)


def test_a_plan_answers_for_its_graph():
    plan = split()
    with pytest.raises(GraphError, match="backend_type"):
        verify(change(plan, graph=msgspec.structs.replace(plan.graph, backend_type="x")))
