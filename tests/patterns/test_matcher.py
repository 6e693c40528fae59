"""The matcher by itself, over graphs written operator by operator."""

from __future__ import annotations

import pytest
from core.programs import Program
from structlog.testing import capture_logs

from genie.annotate import annotate
from genie.errors import GraphError
from genie.graph import Evidence, Graph, Module, Ref
from genie.match import Finder, Match, Rule, Structure, Table, activation, linear, op, structure


def roles(graph: Graph, *patterns) -> list[str | None]:
    return [node.semantics.role for node in annotate(graph, patterns).steps]


def found(graph: Graph, pattern) -> bool:
    view = structure(graph)
    return any(pattern.match(view, at, {}, []) for at in range(len(view.steps)))


def gated(order: int = 0, between: str = "", bias: bool = False) -> Graph:
    """A gated MLP: gate, its activation, up, their product, down."""
    p = Program()
    x, width = p.input((2, 4)), 8

    def product(x: int, out: int) -> int:
        weight = p.weight(out, p.values[x].shape[-1])
        if bias:
            turned = p.op("t", Ref(weight), shape=(p.values[x].shape[-1], out), view=True)
            return p.op("addmm", Ref(p.weight(out)), Ref(x), Ref(turned), shape=(2, out))
        return p.linear(x, weight)

    def passed(value: int) -> int:
        return p.op(between, Ref(value), shape=p.values[value].shape) if between else value

    gate = passed(product(x, width))
    gate = passed(p.op("silu", Ref(gate), shape=(2, width)))
    up = passed(product(x, width))
    pair = (gate, up) if order == 0 else (up, gate)
    both = p.op("mul", *map(Ref, pair), shape=(2, width))
    return p.graph(product(passed(both), 4))


GATED = linear(op("mul", op("silu", linear(as_="gate")), linear(as_="up")), as_="down")
TABLE = Table(
    "mine",
    [
        Rule(
            "gated MLP",
            GATED,
            {"gate": {"role": "gate"}, "up": {"role": "up"}, "down": {"role": "down"}, "": {"role": "rest"}},
        )
    ],
)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("order", [0, 1])
def test_a_table_of_one_rule_in_ten_lines(order, bias):
    graph = annotate(gated(order, bias=bias), [TABLE])
    its = [node.semantics.role for node in graph.steps if node.operation not in ("aten::t",)]
    assert its == ["gate", "rest", "up", "rest", "down"]
    why = graph.steps[-1].semantics.evidence
    assert Evidence("role", "structure", "gated MLP", 0.9) in why


@pytest.mark.parametrize("between", ["view", "clone", "_to_copy", "dropout", "contiguous", "unsqueeze"])
def test_what_changes_no_element_is_looked_through(between):
    assert found(gated(between=between), GATED)


@pytest.mark.parametrize("between", ["exp", "slice", "cumsum"])
def test_what_changes_elements_is_not(between):
    assert not found(gated(between=between), GATED)


def test_a_view_may_be_asked_for():
    p = Program()
    x = p.input((4, 4))
    turned = p.op("t", Ref(x), shape=(4, 4), view=True)
    y = p.op("neg", Ref(turned), shape=(4, 4))
    graph = p.graph(y)
    assert found(graph, op("neg", op("t")))
    assert not found(graph, op("neg", op("relu")))


@pytest.mark.parametrize(("name", "commutes"), [("add", True), ("mul", True), ("sub", False), ("div", False)])
def test_only_what_commutes_is_tried_both_ways(name, commutes):
    p = Program()
    x = p.input((2, 2))
    y, z = p.op("exp", Ref(x), shape=(2, 2)), p.op("neg", Ref(x), shape=(2, 2))
    graph = p.graph(p.op(name, Ref(y), Ref(z), shape=(2, 2)))
    assert found(graph, op(name, op("exp"), op("neg")))
    assert found(graph, op(name, op("neg"), op("exp"))) == commutes
    assert found(graph, op(name, None, op("neg")))
    assert not found(graph, op(name, None, None, None))


def test_in_place_operators_have_the_same_name():
    p = Program()
    x = p.input((2, 2))
    y = p.op("exp", Ref(x), shape=(2, 2))
    p.write("add_", Ref(y), Ref(x))
    assert found(p.graph(y), op("add", op("exp")))


def test_what_was_done_in_place_is_seen_by_what_follows():
    """``nn.ReLU(inplace=True)``, as most vision models have it."""
    p = Program()
    x = p.input((2, 4))
    y = p.linear(x, p.weight(4, 4))
    p.write("relu_", Ref(y))
    graph = p.graph(p.linear(y, p.weight(4, 4)))
    assert found(graph, linear(op("relu", linear())))


def test_earlier_rules_stand():
    first = Rule("first", op("mul", as_="it"), {"it": {"role": "first"}})
    second = Rule("second", GATED, {"": {"role": "second"}})
    assert roles(gated(), Table("t", [first, second])) == [None, "second", None, "first", None]
    assert roles(gated(), Table("t", [second, first])) == [None, "second", None, "second", None]


def test_where_and_when_decide():
    def narrow(view: Structure, at: int) -> bool:
        return view.shape(view.steps[at].outputs[0])[-1] == 4

    def gate_first(view: Structure, bound) -> bool:
        return bound["gate"] < bound["up"]

    assert roles(gated(), Table("t", [Rule("r", linear(as_="x", where=narrow), {"x": {"role": "narrow"}})])) == [
        None,
        None,
        None,
        None,
        "narrow",
    ]
    late = Rule("r", GATED, {"down": {"role": "mlp"}}, when=lambda view, bound: not gate_first(view, bound))
    assert roles(gated(), Table("t", [late])) == [None] * 5
    early = Rule("r", GATED, {"down": {"role": "mlp"}}, when=gate_first)
    assert roles(gated(), Table("t", [early]))[-1] == "mlp"


def test_the_more_specific_table_wins():
    one = Table("one", [Rule("r", op("mul", as_="x"), {"x": {"role": "one"}})], specificity=1)
    two = Table("two", [Rule("r", op("mul", as_="x"), {"x": {"role": "two"}})], specificity=2)
    assert roles(gated(), two, one)[3] == roles(gated(), one, two)[3] == "two"


def test_activations_and_products_however_written():
    p = Program()
    x = p.input((2, 4))
    y = x
    for name in ("relu", "gelu", "silu", "tanh", "sigmoid"):
        y = p.op(name, Ref(p.linear(y, p.weight(4, 4))), shape=(2, 4))
    view = structure(p.graph(y))
    matches = [at for at in range(len(view.steps)) if activation(linear()).match(view, at, {}, [])]
    assert matches == [1, 3, 5, 7, 9]


def test_a_finder_labels_what_it_yields():
    class Odd(Finder):
        name, specificity = "odd", 3

        def find(self, view):
            yield Match([view.steps[at] for at in view.by_name.get("mul", ())], {"role": "odd"})

    assert roles(gated(), Odd()) == [None, None, None, "odd", None]
    with pytest.raises(AttributeError, match="find"):
        Finder().match(gated())


def test_a_rule_matches_every_time_it_occurs():
    p = Program()
    x = p.input((2, 4))
    for _ in range(3):
        x = p.op("relu", Ref(p.linear(x, p.weight(4, 4))), shape=(2, 4))
    rule = Rule("layer", op("relu", linear(as_="product"), as_="act"), {"product": {"role": "p"}, "act": {"role": "a"}})
    assert roles(p.graph(x), Table("t", [rule])) == ["p", "a"] * 3


def test_a_label_nobody_knows_drops_the_table_and_no_other():
    bad = Table("bad", [Rule("r", op("mul", as_="x"), {"x": {"phase": "zork"}})])
    with capture_logs():
        assert roles(gated(), bad, TABLE) == ["gate", "rest", "up", "rest", "down"]
    with pytest.raises(GraphError, match="zork"):
        annotate(gated(), (), {0: {"phase": "zork"}})


def test_a_rule_may_ask_for_a_module():
    p = Program()
    x = p.input((2, 4))
    y = p.op("relu", Ref(x), shape=(2, 4))
    p.op("relu", Ref(y), shape=(2, 4))
    bare = p.graph()
    inside = type(bare.steps[0])(1, "aten::relu", "", (Ref(y),), bare.steps[1].outputs, module=0)
    modules = (Module("layers.3.act", "Squash"),)
    graph = Graph(bare.values, bare.inputs, (bare.steps[0], inside), (), modules)
    table = Table(
        "t", [Rule("squash", op("relu", as_="it", module=r"layers\.\d+\.act \(Squash\)"), {"it": {"role": "x"}})]
    )
    assert [node.metadata.get("semantic_role") for node in annotate(graph, [table]).nodes()] == [None, "x"]
