"""Where values belong, how nodes stand to each other, and what a graph is, by annotation without any pattern."""

from __future__ import annotations

import sys
import threading
import time

import pytest
import structlog
from core.programs import Program, decoder, recurrent
from structlog.testing import capture_logs

import genie
from genie.annotate import annotate
from genie.annotate.supervise import TooSlow, supervised
from genie.errors import GraphError
from genie.graph import Evidence, Module, Ref, Semantics


def residency(graph, value):
    return graph.get_value(value).metadata.get("residency")


@pytest.mark.parametrize("options", [{}, {"static": True}, {"window": 1}])
def test_caches_are_told_by_what_becomes_of_them(options):
    graph = annotate(decoder(4, **options))
    _, keys, held = graph.outputs
    assert residency(graph, keys) == residency(graph, held) == "kv_cache"
    its = graph.get_value(keys).semantics
    assert its.colocation_group == graph.get_value(held).semantics.colocation_group
    [why] = its.evidence
    assert why.source == "lineage"
    assert "axis 2" in why.reason
    attending = [node for node in graph.nodes() if node.operation == "aten::scaled_dot_product_attention"]
    assert all(node.metadata["kv_cache_related"] for node in attending)
    assert {node.metadata["colocation_group"] for node in attending} == {its.colocation_group}


def test_state_that_is_replaced_is_recurrent():
    graph = annotate(recurrent(4))
    [state] = graph.outputs
    assert residency(graph, state) == "recurrent_state"


def test_inputs_weights_activations_and_scratch():
    p = Program()
    weight, x = p.weight(4, 4), p.input((2, 4), origin="input")
    turned = p.op("t", Ref(weight), shape=(4, 4), view=True)
    mask = p.op("ones", shape=(2, 4))
    y = p.op("mm", Ref(x), Ref(turned), shape=(2, 4))
    z = p.op("mul", Ref(y), Ref(mask), shape=(2, 4))
    w = p.op("add", Ref(z), Ref(y), 1, shape=(2, 4))
    graph = annotate(p.graph(w))
    assert [residency(graph, v) for v in (weight, turned, x, mask, y)] == [
        "weight",
        "weight",
        "input",
        "ephemeral",
        "activation",
    ]
    patterns = [graph.get_value(v).metadata["memory_pattern"] for v in (weight, mask, y, z)]
    assert patterns == ["persistent", "ephemeral", "reused", "streaming"]
    assert graph.get_value(weight).metadata["evidence"][0].source == "framework"
    with pytest.raises(GraphError, match="no value 99"):
        graph.get_value(99)


def test_independent_branches_and_the_longest_path():
    p = Program()
    x = p.input((64, 64))
    left = p.op("mm", Ref(x), Ref(x), shape=(64, 64))
    left = p.op("mm", Ref(left), Ref(x), shape=(64, 64))
    right = p.op("neg", Ref(x), shape=(64, 64))
    both = p.op("add", Ref(left), Ref(right), 1, shape=(64, 64))
    alone = p.op("relu", Ref(both), shape=(64, 64))
    nodes = annotate(p.graph(alone)).nodes()
    assert [node.metadata["can_parallelize"] for node in nodes] == [True, False, True, False, False]
    assert [node.metadata["critical_path"] for node in nodes] == [True, True, False, True, True]


def test_a_forward_pass_is_what_weights_do_and_calls_are_counted():
    nodes = annotate(decoder(3)).nodes()
    assert {node.metadata["call"] for node in nodes} == {0, 1, 2}
    linear = next(node for node in nodes if node.operation == "aten::linear")
    assert linear.metadata["phase"] == "forward"
    assert "phase" not in nodes[0].metadata or nodes[0].operation == "aten::embedding"


def test_what_the_framework_said_of_phases_stands():
    p = Program()
    weight = p.weight(4, 4)
    y = p.linear(p.input((2, 4)), weight)
    grad = p.op("mm", Ref(y), Ref(weight), shape=(2, 4))
    why = Evidence("phase", "framework", "recorded during autograd's backward pass")
    graph = p.graph(grad)
    steps = (graph.steps[0], genie_replace(graph.steps[1], Semantics(phase="backward", evidence=(why,))))
    graph = annotate(genie.Graph(graph.values, graph.inputs, steps, graph.outputs))
    assert [node.metadata["phase"] for node in graph.nodes()] == ["forward", "backward"]
    assert genie.summary(graph).training


def genie_replace(node, semantics):
    return type(node)(
        node.id, node.operation, node.overload, node.args, node.outputs, node.mutates, node.aliases, semantics=semantics
    )


def test_marks_of_a_graph_win_and_say_so():
    p = Program()
    x = p.input((2, 4))
    y = p.op("neg", Ref(x), shape=(2, 4))
    why = Evidence("phase", "user", 'genie.mark(phase="decode")')
    bare = p.graph(y)
    node = type(bare.steps[0])(0, "aten::neg", "", (Ref(x),), (y,), mark=0)
    marks = (Semantics(phase="decode", evidence=(why,)), Semantics(residency="kv_cache"))
    graph = genie.Graph(bare.values, bare.inputs, (node,), (y,), marks=marks, value_marks=((x, 1),))

    class Prefill:
        name, specificity = "always", 1 << 20

        def match(self, graph):
            return [graph.steps[0]]

        def annotate(self, nodes):
            return {nodes[0].id: {"phase": "prefill"}}

    annotated = annotate(graph, [Prefill()])
    assert annotated.get_node(0).metadata["phase"] == "decode"
    assert why in annotated.get_node(0).semantics.evidence
    assert residency(annotated, x) == "kv_cache"
    assert annotated.get_value(x).semantics.evidence[-1].source == "user"


class _Pattern:
    specificity = 0

    def __init__(self, name, match):
        self.name, self._match = name, match

    def match(self, graph):
        return self._match(graph)

    def annotate(self, nodes):
        return {node.id: {"role": self.name} for node in nodes}


def _spins(graph):
    while True:
        time.monotonic()


def test_a_pattern_that_never_ends_is_left_out_and_not_asked_again(monkeypatch):
    monkeypatch.setattr(sys.modules["genie.annotate"], "_PATIENCE", 0.2)
    endless = _Pattern("spins", _spins)
    good = _Pattern("good", lambda graph: [graph.steps[0]])
    before = threading.active_count()
    with capture_logs() as logs:
        graph = annotate(decoder(1), [endless, good])
        again = annotate(decoder(1), [endless, good])
        third = annotate(decoder(1), [endless, good])
    assert {each.steps[0].semantics.role for each in (graph, again, third)} == {"good"}
    reports = [entry for entry in logs if entry["log_level"] == "error"]
    assert [(report["pattern"], "TooSlow" in report["error"]) for report in reports] == [("spins", True)] * 2
    deadline = time.monotonic() + 10
    while threading.active_count() > before + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before + 1  # the thread that looped is gone


@pytest.mark.parametrize(
    ("match", "says"),
    [
        (lambda graph: iter(lambda: [graph.steps[0]], None), "matches more than"),
        (lambda graph: [decoder(3).steps[-1]], "no id of a node of this graph"),
    ],
)
def test_a_pattern_without_bounds_is_left_out(match, says):
    with capture_logs() as logs:
        graph = annotate(decoder(1), [_Pattern("greedy", match)])
    [report] = [entry for entry in logs if entry["log_level"] == "error"]
    assert says in report["error"]
    assert graph == annotate(decoder(1))


def test_an_unknown_phase_is_reported_with_the_known_ones():
    class Odd(_Pattern):
        def annotate(self, nodes):
            return {nodes[0].id: {"phase": "zork"}}

    with capture_logs() as logs:
        annotate(decoder(1), [Odd("odd", lambda graph: [graph.steps[0]])])
    [report] = [entry for entry in logs if entry["log_level"] == "error"]
    assert "no phase 'zork'" in report["error"]
    assert "prefill" in report["error"]


def test_tasks_after_one_that_is_too_slow_are_done():
    outcomes = supervised([lambda: 1, lambda: _spins(None), lambda: 1 / 0, lambda: 4], 0.2)
    assert [type(each.error) for each in outcomes] == [type(None), TooSlow, ZeroDivisionError, type(None)]
    assert (outcomes[0].result, outcomes[3].result) == (1, 4)


def test_a_summary_of_a_graph_without_labels_knows_nothing():
    found = genie.summary(decoder(2))
    assert (found.workload, found.fusion, dict(found.encoders), found.training) == (None, (), {}, False)
    assert [call.phase for call in found.calls] == [None]


def test_what_a_label_overrules_is_told_and_how_often(monkeypatch):
    # At any level: what other tests configured must not matter.
    loud = structlog.wrap_logger(None, wrapper_class=structlog.BoundLogger)
    monkeypatch.setattr(sys.modules["genie.annotate.labels"], "log", loud)
    weak = _Pattern("weak", lambda graph: graph.steps[:3])
    strong = _Pattern("strong", lambda graph: graph.steps[:3])
    strong.specificity = 5
    with capture_logs() as logs:
        annotate(decoder(1), [weak, strong])
    [report] = [entry for entry in logs if entry["event"] == "label overruled"]
    assert (report["kept_by"], report["by"], report["nodes"], report["log_level"]) == ("strong", "weak", 3, "debug")


def test_only_the_user_speaks_for_the_user():
    class Poses(_Pattern):
        specificity = 99

        def annotate(self, nodes):
            return {node.id: {"role": "mine", "evidence": (Evidence("role", "user", "so I say"),)} for node in nodes}

    with capture_logs() as logs:
        graph = annotate(decoder(1), [Poses("poses", lambda graph: graph.steps[:1])], {0: {"role": "yours"}})
    assert graph.steps[0].semantics.role == "yours"
    assert [entry["pattern"] for entry in logs if entry["log_level"] == "error"] == ["poses"]


def test_labels_filled_anew_for_each_node_are_read_anew():
    shared = {}

    class Refills(_Pattern):
        def annotate(self, nodes):
            shared["role"] = f"r{nodes[0].id}"
            return {nodes[0].id: shared}

    graph = annotate(decoder(1), [Refills("refills", lambda graph: [[node] for node in graph.steps])])
    assert [node.semantics.role for node in graph.steps] == [f"r{node.id}" for node in graph.steps]


def test_a_users_forward_is_no_guess():
    graph = decoder(2)
    marks = {node.id: {"phase": "forward"} for node in graph.steps}
    marked = annotate(graph, (), marks)
    assert {node.semantics.phase for node in marked.steps} == {"forward"}
    assert all(why.source == "user" for node in marked.steps for why in node.semantics.evidence if why.label == "phase")


def test_a_long_chain_of_views_and_an_unrolled_loop():
    p = Program()
    value = p.input((4, 4), origin="input")
    for _ in range(3000):
        value = p.op("t", Ref(value), shape=(4, 4), view=True)
    annotate(p.graph(value))
    annotate(recurrent(4000))  # 16,000 nodes: done before the tests' time limit if time is linear in them


def test_operators_of_other_namespaces_and_odd_arity():
    p = Program()
    x = p.input((2, 2))
    steps = (type(decoder(1).steps[0])(0, "mine::cat", "", (Ref(x),), ()),)
    annotate(genie.Graph(tuple(p.values), tuple(p.inputs), steps, ()))
    odd = (type(steps[0])(0, "aten::cat", "", (), ()),)
    with pytest.raises(GraphError, match="fewer operands or results"):
        annotate(genie.Graph(tuple(p.values), tuple(p.inputs), odd, ()))


def test_names_of_classes_agree_and_decide_nothing():
    p = Program()
    x = p.input((2, 4), origin="input")
    p.op("rsqrt", Ref(x), shape=(2, 4))
    bare = p.graph()
    inside = type(bare.steps[0])(0, "aten::rsqrt", "", (Ref(x),), bare.steps[0].outputs, module=0)

    def labelled(kind, role):
        graph = genie.Graph(bare.values, bare.inputs, (inside,), (), (Module("a.b", kind),))
        finds = _Pattern("finds", lambda graph: graph.steps)
        finds.annotate = lambda nodes: {0: {"role": role}}
        [node] = annotate(graph, [finds] if role else []).steps
        assert annotate(annotate(graph, [finds] if role else [])).steps == (node,)
        return node.semantics.role, [why.reason for why in node.semantics.evidence if why.label == "role"]

    assert labelled("LlamaRMSNorm", "norm") == ("norm", ["finds", "issued from a LlamaRMSNorm"])
    assert labelled("Zork", "norm") == ("norm", ["finds"])
    assert labelled("LlamaRMSNorm", None) == (None, [])
