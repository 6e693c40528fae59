"""What is known of branches and loops before they run: their work, labels, costs and memory."""

from __future__ import annotations

import pytest
from core.region_examples import ROW, TRUTH, chosen, doubled, halved, nested, region
from msgspec.structs import replace

from genie.annotate import annotate
from genie.device import Device
from genie.flops import sizes, trips, work
from genie.graph import Evidence, Graph, Input, Node, Ref, TensorSpec
from genie.graph.regions import COND, SCAN, WHILE_LOOP, cond, scan, while_loop
from genie.plan import bare, peaks, room, verify
from genie.schedule import Scheduler
from genie.schedule.evaluate import memory

SQUARE = TensorSpec((64, 64), "float32")
PRODUCT = 2 * 64**3
NEAR = Device(id="near", type="CPU", memory_gb=1, compute_tflops=0.1, network_gbps=10, address="10.0.0.1:8888")
FAR = Device(id="far", type="GPU", memory_gb=1, compute_tflops=10, network_gbps=100, address="10.0.0.2:8888")


def power(length: int, products: int = 1) -> Graph:
    """A matrix multiplied by another so many times: a scan whose body has some products."""
    calls = [("aten::mm", (Ref(at if at == 0 else at + 1), Ref(1)), SQUARE) for at in range(products)]
    body = region([SQUARE, SQUARE], calls, [1 + products])
    return Graph(
        values=(SQUARE, SQUARE, SQUARE),
        inputs=(Input(0), Input(1)),
        steps=(Node(0, SCAN, "", scan(body, [Ref(0)], [], [Ref(1)], length=length), (2,)),),
        outputs=(2,),
    )


def until(body: Graph) -> Graph:
    """The body as that of a while loop, whose second value is constant."""
    args = while_loop(region([SQUARE, SQUARE], [("aten::any", (Ref(0),), TRUTH)], [2]), body, [Ref(0)], [Ref(1)])
    return replace(power(1), steps=(Node(0, WHILE_LOOP, "", args, (2,)),))


def done(graph: Graph):
    return work(graph.steps[0], graph.values, sizes(graph))


def test_a_scans_work_is_its_bodys_as_often_as_it_runs():
    once = done(power(1, 3))
    assert once == (3 * PRODUCT, 6 * SQUARE.nbytes, 3 * SQUARE.nbytes)
    assert done(power(50, 3)) == tuple(50 * each for each in once)
    assert done(power(0)) == (0, 0, 0)
    assert trips(power(50).steps[0]) == 50


def test_a_conds_work_is_its_dearest_branchs():
    product = region([SQUARE], [("aten::mm", (Ref(0), Ref(0)), SQUARE)], [1])
    still = region([SQUARE], [("aten::neg", (Ref(0),), SQUARE)], [1])
    for branches in ([product, still], [still, product]):
        args = cond(Ref(0), branches, [Ref(1)])
        graph = Graph((TRUTH, SQUARE, SQUARE), (Input(0), Input(1)), (Node(0, COND, "", args, (2,)),), (2,))
        assert done(graph).flops == PRODUCT


def test_a_while_loops_work_is_that_of_one_iteration_and_says_so():
    graph = until(power(1).regions[0])
    assert trips(graph.steps[0]) is None
    (node,) = annotate(graph).nodes()
    assert node.semantics.flops == PRODUCT
    assert [why for why in node.semantics.evidence if why.label == "flops"] == [
        Evidence("flops", "structure", "how often the loop runs is not known before: one iteration", 0.1)
    ]
    (scanned,) = annotate(power(4)).nodes()
    assert not [why for why in scanned.semantics.evidence if why.label == "flops"]


def test_the_user_may_say_what_a_loop_costs():
    (node,) = annotate(until(power(1).regions[0]), marks={0: {"flops": 7 * PRODUCT}}).nodes()
    assert node.semantics.flops == 7 * PRODUCT
    assert [(why.label, why.source) for why in node.semantics.evidence if why.label == "flops"] == [("flops", "user")]


def test_nodes_of_regions_are_labelled():
    graph = annotate(nested(), marks={1: {"phase": "decode"}})
    (inner,) = (node for node in graph.regions[0].nodes())
    assert inner.semantics.phase == "decode"
    (_, body) = inner.regions
    assert {node.semantics.phase for node in body.nodes()} == {"decode"}
    assert all(node.semantics.bytes_read is not None for node in body.nodes())
    verify(Scheduler([NEAR]).schedule(graph))


def test_what_a_region_takes_belongs_where_it_belongs_outside():
    graph = power(3)
    graph = replace(graph, inputs=(graph.inputs[0], replace(graph.inputs[1], origin="parameter")))
    body = annotate(graph).regions[0]
    carried, weight = (body.get_value(entry.value) for entry in body.inputs)
    assert weight.semantics.residency == "weight"
    assert carried.semantics.residency == "recurrent_state"  # the same weight in every turn makes the next of it
    assert body.steps[0].semantics.phase == "forward"
    assert body.inputs == graph.regions[0].inputs


def test_patterns_see_regions():
    class Negations:
        name = "negations"

        def match(self, graph):
            return [node for node in graph.nodes() if node.operation == "aten::neg"]

        def annotate(self, nodes):
            return {node.id: {"role": "turn"} for node in nodes}

    graph = annotate(nested(), patterns=[Negations()])
    assert [node.semantics.role for node in graph.regions[1].nodes()] == ["turn"]


def test_a_regions_estimate_is_made_of_its_nodes():
    """A loop of small operators costs their starts, not one."""

    def planned(graph):
        return Scheduler([NEAR]).schedule(annotate(graph)).decisions[0]

    one, many = planned(power(1)), planned(power(100))
    assert many.seconds == pytest.approx(100 * one.seconds)
    assert many.source == "100 iterations, roofline"
    assert planned(until(power(1).regions[0])).source == "one iteration, nobody knows how many there are, roofline"
    assert planned(chosen()).source == "its dearest branch, roofline"


def test_a_region_node_is_placed_whole():
    plan = Scheduler([NEAR, FAR]).schedule(annotate(power(1000)))
    verify(plan)
    assert plan.placement == {0: "far"}
    assert "1000 iterations, roofline" in str(plan.explain(0))
    assert bare(plan).graph.regions[0].steps[0].operation == "aten::mm"


def test_memory_counts_what_regions_make_while_they_run():
    graph = power(5, products=3)  # of the body's three values two live at once; the last is the result
    assert room(graph) == {0: 2 * SQUARE.nbytes}
    need = memory(graph)
    assert need.peak == need.inputs + 3 * SQUARE.nbytes
    assert peaks(graph, [0], 1, [()], {}) == (need.peak,)
    assert room(chosen(branches=(doubled(), halved()))) == {0: 0}
    small = Device(id="small", type="GPU", memory_gb=1e-4, compute_tflops=100, network_gbps=100, address="10.0.0.3:1")
    tight = region([SQUARE] * 2, [("aten::cat", (Ref(0),), TensorSpec((640, 64), "float32"))], [0])
    loop = replace(power(3), steps=(Node(0, SCAN, "", scan(tight, [Ref(0)], [], [Ref(1)], length=3), (2,)),))
    assert Scheduler([small, NEAR]).schedule(annotate(loop)).placement == {0: "near"}


def test_a_view_in_a_region_keeps_what_it_is_a_view_of():
    turned = Node(1, "aten::t", "", (Ref(2),), (3,), aliases=((3, 2),))
    body = Graph(
        values=(SQUARE,) * 6,
        inputs=(Input(0), Input(1)),
        steps=(
            Node(0, "aten::mm", "", (Ref(0), Ref(1)), (2,)),
            turned,
            Node(2, "aten::neg", "", (Ref(3),), (4,)),  # its operand is a view; the product lives by it
            Node(3, "aten::add", "Tensor", (Ref(4), Ref(3), 1), (5,)),
        ),
        outputs=(5,),
    )
    loop = replace(power(3), steps=(Node(0, SCAN, "", scan(body, [Ref(0)], [], [Ref(1)], length=3), (2,)),))
    assert room(loop) == {0: 3 * SQUARE.nbytes}


def test_a_region_that_draws_runs_where_all_that_draw_run():
    draw = region([ROW], [("aten::bernoulli.p", (Ref(0), 0.5, None), ROW)], [1])
    graph = chosen(branches=(draw, halved()))
    steps = (*graph.steps, Node(1, "aten::bernoulli", "p", (Ref(2), 0.5, None), (3,)))
    graph = replace(graph, values=(*graph.values, ROW), steps=steps, outputs=(3,))
    plan = Scheduler([NEAR, FAR]).schedule(annotate(graph))
    assert len(set(plan.placement.values())) == 1
    (home,) = set(plan.placement.values())
    other = "near" if home == "far" else "far"
    assert set(plan.pin(0, other).placement.values()) == {other}
