"""Two graphs beside each other."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import msgspec
import pytest
from core.graph_examples import CPU, GPU, attention_step, graphs
from hypothesis import given
from hypothesis import strategies as st
from labelled import decoder, hostile

from genie import Scheduler
from genie.errors import GraphError
from genie.graph import Evidence, Graph, Many, Node, Ref, Semantics
from genie.inspect import compare
from genie.inspect.alignment import MAX_EDITS, align


def changed(graph: Graph, position: int, **fields: object) -> Graph:
    steps = list(graph.steps)
    steps[position] = msgspec.structs.replace(steps[position], **fields)
    return msgspec.structs.replace(graph, steps=tuple(steps))


def without(graph: Graph, position: int) -> Graph:
    """The graph without a node of one operand and one result: its users take what it took."""
    gone = graph.steps[position]
    [made], taken = gone.outputs, next(iter(gone.operands()))

    def other(value: int) -> int:
        value = taken if value == made else value
        return value - (value > made)

    def argument(arg: object) -> object:
        if isinstance(arg, Ref):
            return Ref(other(arg.value))
        return Many(tuple(map(argument, arg.items))) if isinstance(arg, Many) else arg  # type: ignore[arg-type]

    steps = [
        Node(
            node.id + 100,
            node.operation,
            node.overload,
            tuple(map(argument, node.args)),  # type: ignore[arg-type]
            tuple(map(other, node.outputs)),
            module=node.module,
            semantics=node.semantics,
        )
        for node in graph.steps
        if node is not gone
    ]
    return msgspec.structs.replace(
        graph,
        values=graph.values[:made] + graph.values[made + 1 :],
        meanings=graph.meanings[:made] + graph.meanings[made + 1 :],
        inputs=tuple(msgspec.structs.replace(entry, value=other(entry.value)) for entry in graph.inputs),
        steps=tuple(steps),
        outputs=tuple(map(other, graph.outputs)),
        sources=(),
        name="another",
    )


def test_equal_graphs_are_equal() -> None:
    found = compare(decoder(), decoder())
    assert not found
    assert found.text() == "equal: 18 nodes\n"


@given(graphs())
def test_any_graph_equals_itself(graph: Graph) -> None:
    assert not compare(graph, graph) or "nan" in graph.text()
    assert compare(graph, graph).same == len(graph.steps) or "nan" in graph.text()


def test_numbers_lines_and_names_do_not_count() -> None:
    graph = decoder()
    moved = msgspec.structs.replace(
        graph,
        name="other",
        sources=("elsewhere.py:99",),
        steps=tuple(msgspec.structs.replace(node, id=node.id * 3 + 5) for node in graph.steps),
    )
    assert not compare(graph, moved)


def test_a_node_less_is_one_difference_and_its_users_change() -> None:
    graph = decoder()
    gelu = next(i for i, node in enumerate(graph.steps) if node.operation == "aten::gelu")
    found = compare(graph, without(graph, gelu))
    assert [lone.id for lone in found.removed] == [gelu]
    assert found.added == ()
    # The node after it takes something else; all others are the same, though every number moved.
    assert [(change.before, [name for name, _, _ in change.fields]) for change in found.changed] == [
        (gelu + 1, ["arguments"])
    ]
    assert found.same == 16
    back = compare(without(graph, gelu), graph)
    assert ([lone.id for lone in back.added], back.removed) == ([gelu], ())


def test_another_operator_at_the_same_place_is_a_change() -> None:
    found = compare(decoder(), changed(decoder(), 7, operation="aten::relu"))
    assert (found.added, found.removed) == ((), ())
    [change] = found.changed
    assert change.fields == (("operator", "aten::gelu", "aten::relu"),)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"args": (Ref(2), 2, 3, 5, 1)}, ["arguments"]),
        ({"semantics": Semantics(priority=3)}, ["priority"]),
        ({"mutates": (2,)}, ["mutates"]),
        ({"aliases": ()}, ["aliases"]),
        ({"module": 1}, None),  # elsewhere: not the same node
        ({"source": 3}, []),
    ],
)
def test_what_changed_is_named(fields: dict[str, object], names: list[str] | None) -> None:
    found = compare(attention_step(), changed(attention_step(), 2, **fields))
    if names is None:
        assert ([lone.id for lone in found.removed], [lone.id for lone in found.added]) == ([2], [2])
    else:
        assert [name for change in found.changed for name, _, _ in change.fields] == names


def test_evidence_counts() -> None:
    why = Evidence("role", "user", "because")
    [change] = compare(attention_step(), changed(attention_step(), 4, semantics=Semantics(evidence=(why,)))).changed
    assert change.fields[-1] == ("evidence", "role: framework: the operator's name", "role: user: because")


def test_shapes_and_meanings_of_values_count() -> None:
    graph = decoder()
    values = list(graph.values)
    values[graph.steps[3].outputs[0]] = msgspec.structs.replace(values[0], shape=(1, 4, 9, 16))
    [change] = compare(graph, msgspec.structs.replace(graph, values=tuple(values))).changed
    assert change.fields == (("shape", "float32[1, 4, 7, 16]", "int64[1, 4, 9, 16]"),)
    bare = compare(graph, msgspec.structs.replace(graph, meanings=()))
    assert any(name == "value's residency" for each in bare.changed for name, _, _ in each.fields)


def test_inputs_are_compared_by_name() -> None:
    graph = decoder()
    inputs = list(graph.inputs)
    inputs[0] = msgspec.structs.replace(inputs[0], donated=True)
    inputs[1] = msgspec.structs.replace(inputs[1], name="tied.weight")
    found = compare(graph, msgspec.structs.replace(graph, inputs=tuple(inputs)))
    assert [(each.kind, each.fields) for each in found.changed if each.kind == "input"] == [
        ("input", (("donated", "False", "True"),))
    ]
    assert [lone.line for lone in found.added] == ["input %1 float32[64, 64] parameter tied.weight"]
    assert [lone.kind for lone in found.removed] == ["input"]


def test_devices_of_plans_are_compared() -> None:
    here, there = (Scheduler([device]).schedule(decoder()) for device in (GPU, CPU))
    found = compare(here, there)
    assert {change.fields for change in found.changed} == {(("device", "gpu0", "cpu0"),)}
    assert len(found.changed) == 18
    assert not compare(here, decoder())


def test_broken_graphs_are_refused() -> None:
    with pytest.raises(GraphError):
        compare(decoder(), Graph((), (), (Node(0, "aten::neg", "", (Ref(3),), ()),), ()))


def test_names_reach_no_terminal() -> None:
    text = compare(hostile(), decoder()).text() + compare(decoder(), hostile()).text()
    assert [c for c in text if not c.isprintable() and c != "\n"] == []


# --- alignment -----------------------------------------------------------------------------------


def longest_common(a: list[int], b: list[int]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        before = row
        row = [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(row[-1], before[j + 1]))
    return row[-1]


@given(st.lists(st.integers(0, 3), max_size=14), st.lists(st.integers(0, 3), max_size=14))
def test_an_alignment_is_ascending_equal_and_longest(a: list[int], b: list[int]) -> None:
    pairs = align(a, b)
    assert all(a[i] == b[j] for i, j in pairs)
    assert all(x[0] < y[0] and x[1] < y[1] for x, y in pairwise(pairs))
    assert len(pairs) == longest_common(a, b)


def test_what_differs_too_much_is_aligned_by_count() -> None:
    chance = random.Random(0)
    a = [chance.randrange(40) for _ in range(3 * MAX_EDITS)]
    b = [chance.randrange(40) for _ in range(3 * MAX_EDITS)]
    pairs = align(a, b)
    assert all(a[i] == b[j] for i, j in pairs)
    assert all(x[0] < y[0] and x[1] < y[1] for x, y in pairwise(pairs))
    assert len(pairs) > 100


@pytest.mark.parametrize("seed", range(3))
def test_five_thousand_nodes_take_seconds(seed: int) -> None:
    """Alike but for some, alike in nothing, and one operator over and over: none may take its time squared."""
    chance = random.Random(seed)
    graph = decoder(20, 242)
    assert len(graph.steps) == 5002
    steps = list(graph.steps)
    for position in chance.sample(range(len(steps)), [50, 5002, 1200][seed]):
        name = chance.choice(["aten::neg", "aten::mul", "aten::exp"])
        steps[position] = msgspec.structs.replace(steps[position], operation=name, module=-1 if seed else 3)
    start = time.process_time()
    found = compare(graph, msgspec.structs.replace(graph, steps=tuple(steps)))
    assert time.process_time() - start < 8
    assert found
