"""What must hold of placements: what is asked for, and what keeps them exact."""

from __future__ import annotations

import re

import msgspec
import pytest
from core.dags import Fixed, Table, device, graph_of
from core.graph_examples import attention_step, graphs
from hypothesis import given, settings
from hypothesis import strategies as st

import genie
from genie.annotate import annotate
from genie.errors import ConfigError, PlanError, SchedulingError
from genie.graph import Const, Evidence, Graph, Input, Module, Node, Ref, Semantics, TensorSpec
from genie.graph.random import draws, spared
from genie.plan import Constraint, broken, conflict, exact, grouped, verify
from genie.schedule import Scheduler

A, B, C = device("a"), device("b"), device("c")
X = TensorSpec((4,), "float32")


def chain(count: int = 4, **changes) -> Graph:
    graph = graph_of([[i] for i in range(count)], [64] * (count + 1), 1, [count])
    modules = (Module("layers.0", "Block"), Module("layers.0.norm", "Norm"), Module("layers.10", "Block"))
    where = [0, 1, 2, -1]
    steps = tuple(
        msgspec.structs.replace(node, module=where[i % 4], **changes.get(f"node{i}", {}))
        for i, node in enumerate(graph.steps)
    )
    return msgspec.structs.replace(graph, steps=steps, modules=modules)


def plan_of(graph: Graph, devices=(A, B), latency=0.5, **asked):
    scheduler = Scheduler(devices)
    scheduler.set_cost_model(Table({(n.id, d.id): 1.0 for n in graph.steps for d in devices}, latency))
    return scheduler.schedule(graph, **asked)


# --- asked for ---------------------------------------------------------------------------------


def test_pins_by_node_and_by_module():
    plan = plan_of(chain(), pins={"layers.0": "b", 3: "a"})
    assert [plan.placement[i] for i in (0, 1, 3)] == ["b", "b", "a"]
    assert [held.text for held in plan.constraints] == ["pins={'layers.0': 'b'}", "pins={3: 'a'}"]
    assert plan.constraints[0].steps == (0, 1)  # not those of layers.10
    assert "constraint pins={3: 'a'}: #3 on a" in plan.text()


def test_exclusions():
    plan = plan_of(chain(), devices=(A, B, C), exclude={"layers": {"a", "b"}})
    assert [plan.placement[i] for i in (0, 1, 2)] == ["c", "c", "c"]
    assert plan_of(chain(), exclude={0: "a"}).placement[0] == "b"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"pins": {9: "a"}}, "no node 9"),
        ({"pins": {"layer": "a"}}, "in a module 'layer'"),
        ({"pins": {0: "x"}}, "no device 'x'"),
        ({"exclude": {0: {"a", "b"}}}, "leaves no device"),
        ({"homes": {1: "a"}}, "%1 is no input"),
        ({"homes": {0: "x"}}, "no device 'x'"),
        ({"draws": "x"}, "no device 'x'"),
    ],
)
def test_what_is_not_there_is_named(asked, said):
    graph = chain(node3={"operation": "aten::rand_like"})
    with pytest.raises(SchedulingError, match=re.escape(said)):
        plan_of(graph, **asked)


def test_one_device_is_asked_the_same_questions():
    assert set(plan_of(chain(), devices=(A,), pins={0: "a"}, homes={0: "a"}).placement.values()) == {"a"}
    with pytest.raises(SchedulingError, match="no device 'b'"):
        plan_of(chain(), devices=(A,), pins={0: "b"})


def test_marks_say_the_device():
    marked = Semantics(device="b", evidence=(Evidence("device", "user", "genie.mark"),))
    graph = msgspec.structs.replace(chain(node1={"mark": 0}), marks=(marked,))
    for each in (graph, annotate(graph)):
        plan = plan_of(each)
        assert plan.placement[1] == "b"
        assert plan.constraints == (Constraint("genie.mark(device='b')", (1,), (1,)),)
    assert annotate(graph).steps[1].semantics.device == "b"
    with pytest.raises(SchedulingError, match="no device 'b'"):
        plan_of(graph, devices=(A, C))
    with pytest.raises(ConfigError, match="is no value for device"):
        genie.mark(device="")


class Meddler:
    name, specificity = "meddler", 1

    def match(self, graph):
        return list(graph.steps)

    def annotate(self, nodes):
        return {node.id: {"device": "b"} for node in nodes}


def test_patterns_do_not_pin():
    assert all(node.semantics.device is None for node in annotate(chain(), [Meddler()]).steps)


def test_groups_of_caches_and_of_the_user_stay_together_others_may_part():
    def grouped_plan(group, source):
        evidence = (Evidence("colocation_group", source, "x"),)
        semantics = Semantics(colocation_group=group, evidence=evidence)
        graph = chain(node0={"semantics": semantics}, node3={"semantics": semantics})
        return plan_of(graph, pins={0: "a", 1: "b"})

    for group, source in (("kv_cache:0", "structure"), ("recurrent_state:1", "lineage"), ("towers", "user")):
        plan = grouped_plan(group, source)
        assert plan.placement[3] == "a"
        assert f"colocation group '{group}'" in [held.text for held in plan.constraints]
    assert grouped_plan("block:0", "structure").placement[3] == "b"


# --- conflicts ---------------------------------------------------------------------------------


def test_a_smallest_set_in_conflict_is_named():
    cache = Semantics(colocation_group="kv_cache:0")
    graph = chain(node0={"semantics": cache}, node2={"semantics": cache})
    with pytest.raises(SchedulingError) as caught:
        plan_of(graph, pins={"layers.0": "a", 2: "b", 1: "a"}, exclude={3: "a"})
    message = caught.value.message
    assert message.startswith("these can't all hold: ")
    for part in ("pins={'layers.0': 'a'} (#0 #1 on a)", "pins={2: 'b'}", "colocation group 'kv_cache:0' (#0 #2 on one"):
        assert part in message
    assert "pins={1" not in message and "exclude" not in message
    assert "smallest set" in caught.value.hint


@settings(max_examples=200)
@given(
    st.lists(
        st.builds(
            lambda steps, devices: Constraint(f"{steps} {devices}", tuple(sorted(steps)), tuple(sorted(devices))),
            st.sets(st.integers(0, 5), min_size=1, max_size=3),
            st.sets(st.integers(0, 2), max_size=2),
        ),
        max_size=6,
    )
)
def test_conflicts_are_minimal_and_found_exactly_when_there_are_any(constraints):
    from itertools import product

    def possible(held):
        return any(broken(places, held) is None for places in product(range(3), repeat=6))

    found = conflict(6, 3, constraints)
    assert bool(found) == (not possible(constraints))
    if found:
        assert not possible(found)
        for left_out in range(len(found)):
            assert possible(found[:left_out] + found[left_out + 1 :])
    else:
        groups = grouped(6, 3, constraints)
        places = [(groups.allowed[group] & -groups.allowed[group]).bit_length() - 1 for group in groups.of]
        assert broken(places, constraints) is None


# --- exact -------------------------------------------------------------------------------------


def written() -> Graph:
    """A view of an input is written to; another node reads the input after."""
    steps = (
        Node(0, "aten::view", "", (Ref(0),), (1,), aliases=((1, 0),)),
        Node(1, "aten::add_", "Tensor", (Ref(1), 1), (-1,), mutates=(1,)),
        Node(2, "aten::relu", "", (Ref(0),), (2,)),
        Node(3, "aten::relu", "", (Ref(2),), (3,)),
    )
    return Graph((X,) * 4, (Input(0, "x", "state"),), steps, (3,))


def test_written_memory_stays_on_one_device_and_at_its_home():
    plan = plan_of(written(), pins={3: "b", 2: "a"})
    assert [plan.placement[i] for i in range(4)] == ["a", "a", "a", "b"]
    with pytest.raises(SchedulingError, match=r"pins=\{0: 'b'\}.*written in place"):
        plan_of(written(), pins={0: "b", 2: "a"})
    with pytest.raises(SchedulingError, match=r"pins=\{0: 'b'\}.*written in place, where %0 lives"):
        plan_of(written(), pins={0: "b"}, homes={0: "a"})
    assert plan_of(written(), homes={0: "b"}).placement[1] == "b"


def test_memory_that_outlives_the_graph_under_two_names_stays_on_one_device():
    steps = (
        Node(0, "aten::relu", "", (Ref(0),), (1,)),
        Node(1, "aten::view", "", (Ref(1),), (2,), aliases=((2, 1),)),
    )
    both = Graph((X,) * 3, (Input(0),), steps, (1, 2))
    with pytest.raises(SchedulingError, match="%1 and %2 share memory and may outlive the graph"):
        plan_of(both, pins={0: "a", 1: "b"})
    one = msgspec.structs.replace(both, outputs=(2,))
    assert plan_of(one, pins={0: "a", 1: "b"}).placement[1] == "b"
    # An input's memory may have names that the graph does not see, be it given away or not.
    kept = Graph((X,) * 2, (Input(0),), (Node(0, "aten::view", "", (Ref(0),), (1,), aliases=((1, 0),)),), (1,))
    with pytest.raises(SchedulingError, match="where %0 lives"):
        plan_of(kept, pins={0: "b"}, homes={0: "a"})
    given_away = msgspec.structs.replace(kept, inputs=(Input(0, donated=True),))
    with pytest.raises(SchedulingError, match="where %0 lives"):
        plan_of(given_away, pins={0: "b"}, homes={0: "a"})


def test_random_numbers_are_drawn_on_one_device():
    noisy = {"operation": "aten::rand_like"}
    graph = chain(node0=noisy, node2=noisy)
    with pytest.raises(SchedulingError, match="draw random numbers"):
        plan_of(graph, pins={0: "a", 2: "b"})
    plan = plan_of(graph, draws="b", pins={1: "a"})
    assert (plan.placement[0], plan.placement[2]) == ("b", "b")


def test_devices_may_be_given_themselves():
    noisy = {"operation": "aten::rand_like"}
    plan = plan_of(chain(node2=noisy), homes={0: A}, pins={0: A}, exclude={1: B, 3: [B]}, draws=B)
    assert [plan.placement[i] for i in range(4)] == ["a", "a", "b", "a"]
    assert plan.constraints[0].text == "pins={0: 'a'}"


def test_a_conflict_says_module_and_line_and_what_to_do():
    noisy = {"operation": "aten::rand_like", "source": 0}
    graph = msgspec.structs.replace(chain(node1=noisy, node2={"source": 1}), sources=("net.py:7", "net.py:9"))
    with pytest.raises(SchedulingError, match="random numbers are drawn on b") as caught:
        plan_of(graph, pins={"layers.0": "a"}, draws="b")
    assert caught.value.where == "node 1 (aten::rand_like) in 'layers.0.norm' at net.py:7"
    assert "leave it unmarked, or mark it for that device" in caught.value.hint
    cache = Semantics(colocation_group="kv_cache:0")
    steps = [msgspec.structs.replace(node, semantics=cache) for node in graph.steps[1:3]]
    both = msgspec.structs.replace(graph, steps=(graph.steps[0], *steps, graph.steps[3]))
    with pytest.raises(SchedulingError) as caught:
        plan_of(both, pins={1: "a", 2: "b"})
    assert caught.value.where == (
        "node 1 (aten::rand_like) in 'layers.0.norm' at net.py:7; "
        f"node 2 ({graph.steps[2].target}) in 'layers.10' at net.py:9"
    )
    assert "random" not in caught.value.hint


@pytest.mark.parametrize("where", [None, 1.5, True, ()])
def test_what_is_neither_node_nor_module_is_refused(where):
    with pytest.raises(SchedulingError, match="neither a node's id nor a module's path: "):
        plan_of(chain(), pins={where: "a"})
    with pytest.raises(SchedulingError, match="the graph has no node 9") as caught:
        plan_of(chain(), pins={9: "a"})
    assert caught.value.hint == "ids go from 0 to 3"


def test_a_plan_that_is_not_exact_is_refused():
    noisy = {"operation": "aten::rand_like"}
    plan = plan_of(chain(), pins={0: "a", 1: "b", 2: "b", 3: "b"})
    bad = msgspec.structs.replace(plan, graph=chain(node0=noisy, node2=noisy), constraints=())
    with pytest.raises(PlanError, match="draw random numbers"):
        verify(bad)
    with pytest.raises(PlanError, match="pins={'layers.0': 'b'} does not hold|pins"):
        verify(msgspec.structs.replace(plan, constraints=(Constraint("pins={0: 'b'}", (0,), (1,)),)))
    for field, value in (("constraints", (Constraint("x", (9,)),)), ("homes", ((0, 7),)), ("homes", ((3, 0),))):
        with pytest.raises(PlanError):
            verify(msgspec.structs.replace(plan, **{field: value}))


def test_a_strategy_is_held_to_it():
    scheduler = Scheduler([A, B])
    scheduler.set_cost_model(Table({(n, d): 1.0 for n in range(4) for d in "ab"}))
    scheduler.set_placement_strategy(Fixed("abab"))
    with pytest.raises(SchedulingError, match=r"'fixed' does not keep what must hold: pins=\{0: 'b'\}"):
        scheduler.schedule(chain(), pins={0: "b"})


@settings(max_examples=100)
@given(graphs(most=12))
def test_any_graph_split_over_devices_is_exact(graph):
    plan = Scheduler([A, B, C]).schedule(graph)
    assert broken([made.device for made in plan.decisions], exact(graph, {})) is None


def call(name, *args):
    return Node(0, name, "", args, (1,))


@pytest.mark.parametrize(
    ("node", "drawing"),
    [
        (call("aten::relu", Ref(0)), False),
        (call("aten::bernoulli", Ref(0), None), True),
        (call("aten::dropout", Ref(0), 0.1, True), True),
        (call("aten::dropout", Ref(0), 0.1, False), False),
        (call("aten::native_dropout", Ref(0), 0.1, None), True),
        (call("aten::rrelu", Ref(0), 0.1, 0.3, False, None), False),
        (call("aten::rrelu", Ref(0)), False),
        (call("aten::scaled_dot_product_attention", Ref(0), Ref(0), Ref(0), None, 0.0, False), False),
        (call("aten::scaled_dot_product_attention", Ref(0), Ref(0), Ref(0), None, 0.1, False), True),
        (call("aten::scaled_dot_product_attention", Ref(0), Ref(0), Ref(0)), False),
        (call("aten::mine", Ref(0), Const("generator", "0")), True),
        (call("prims::normal", Ref(0)), True),
    ],
)
def test_who_draws(node, drawing):
    assert draws(node) is drawing


def test_probabilities_that_spare_a_draw_are_listed():
    # Numbers are parameters: another execution of the same plan may have others.
    assert spared(attention_step()) == ((4, 4),)
