from __future__ import annotations

import msgspec
import pytest
from core.graph_examples import attention_step, graphs
from hypothesis import given
from structlog.testing import capture_logs

from genie.annotate import annotate
from genie.errors import GraphError
from genie.graph import Evidence, Graph, Input, Node, Ref, Semantics, TensorSpec, verify

X = TensorSpec((2, 3), "float32")


class Pattern:
    """Labels every node of one operator."""

    def __init__(self, operation, labels, name="pattern", specificity=0):
        self.operation, self.labels, self.name, self.specificity = operation, labels, name, specificity

    def match(self, graph):
        return [[node] for node in graph.nodes() if node.operation == self.operation]

    def annotate(self, nodes):
        return {node.id: self.labels for node in nodes}


def facts(*steps, values, inputs=2):
    graph = annotate(Graph(tuple(values), tuple(Input(v) for v in range(inputs)), steps, ()))
    return [(s.flops, s.bytes_read, s.bytes_written) for s in (node.semantics for node in graph.steps)]


def test_facts_come_from_shapes_alone():
    assert facts(
        Node(0, "aten::mm", "", (Ref(0), Ref(1)), (2,)),
        Node(1, "aten::t", "", (Ref(2),), (3,), aliases=((3, 2),)),
        Node(2, "aten::empty", "memory_format", (), (4,)),
        values=(X, TensorSpec((3, 5), "float32"), TensorSpec((2, 5), "float32"), TensorSpec((5, 2), "float32"), X),
    ) == [(2 * 2 * 3 * 5, 24 + 60, 40), (0, 0, 0), (0, 0, 0)]


def test_a_gather_reads_what_it_picks_and_a_write_moves_what_it_writes():
    table, index, picked = TensorSpec((1000, 8), "float32"), TensorSpec((3,), "int64"), TensorSpec((3, 8), "float32")
    assert facts(
        Node(0, "aten::embedding", "", (Ref(0), Ref(1), -1), (2,)),
        Node(1, "aten::index_copy_", "", (Ref(0), 0, Ref(1), Ref(2)), (-1,), mutates=(0,)),
        Node(2, "aten::copy_", "", (Ref(2), Ref(2)), (-1,), mutates=(2,)),
        Node(3, "aten::add_", "Tensor", (Ref(2), Ref(2), 1), (-1,), mutates=(2,)),
        values=(table, index, picked),
    ) == [(0, 96 + 24, 96), (0, 96 + 24, 96 + 24), (0, 0, 96), (0, 96, 96)]


def test_an_expanded_operand_is_as_small_as_its_memory():
    wide, out = TensorSpec((1024, 8), "float32", (0, 1)), TensorSpec((1024, 8), "float32")
    assert facts(Node(0, "aten::neg", "", (Ref(0),), (1,)), values=(wide, out), inputs=1) == [(0, 32, 32768)]


def test_shapes_that_make_no_sense_leave_flops_unknown():
    [(flops, *_)] = facts(Node(0, "aten::mm", "", (Ref(0), Ref(1)), (2,)), values=(X, TensorSpec((), "int8"), X))
    assert flops is None
    [(flops, *_)] = facts(Node(0, "aten::mm", "", (None, 3), (0,)), values=(X,), inputs=0)
    assert flops is None


@given(graphs())
def test_annotation_only_adds(graph):
    annotated = annotate(graph)
    verify(annotated)
    assert annotate(annotated) == annotated or "nan" in annotated.text()
    bare = [msgspec.structs.replace(node, semantics=None) for node in annotated.steps]
    was = [msgspec.structs.replace(node, semantics=None) for node in graph.steps]
    assert bare == was or "nan" in graph.text()
    for before, after in zip(graph.steps, annotated.steps, strict=True):
        for field in Semantics.__struct_fields__:
            known = getattr(before.semantics, field) if before.semantics else None
            if known is not None and field != "evidence":
                assert getattr(after.semantics, field) == known


def test_the_argument_is_left_alone():
    graph = attention_step()
    annotate(graph, [Pattern("aten::cat", {"role": "concat"})], {0: {"phase": "prefill"}})
    assert graph == attention_step()


def test_patterns_label_and_say_so():
    graph = annotate(attention_step(), [Pattern("aten::cat", {"semantic_role": "concat", "can_parallelize": True})])
    cat = graph.get_node(5)
    assert (cat.metadata["semantic_role"], cat.metadata["can_parallelize"]) == ("concat", True)
    assert Evidence("role", "structure", "pattern") in cat.semantics.evidence
    assert "modality" not in cat.metadata


def test_the_more_specific_pattern_wins_in_either_order():
    general = Pattern("aten::cat", {"role": "concat"}, "general", 1)
    special = Pattern("aten::cat", {"role": "kv_append"}, "special", 5)
    for patterns in ([general, special], [special, general]):
        assert annotate(attention_step(), patterns).get_node(5).semantics.role == "kv_append"


def test_a_tie_keeps_the_first_and_is_reported():
    first, second = (Pattern("aten::cat", {"role": name}, name, 2) for name in ("first", "second"))
    with capture_logs() as logs:
        assert annotate(attention_step(), [first, second]).get_node(5).semantics.role == "first"
    [report] = [entry for entry in logs if entry["log_level"] == "warning"]
    assert report["node"] == 5
    assert ("first" in report["kept"], "second" in report["dropped"]) == (True, True)


def test_evidence_decides_before_specificity():
    # The frontend said role=attention of node 4, with evidence of the framework.
    guess = Pattern("aten::scaled_dot_product_attention", {"role": "guess"}, specificity=99)
    assert annotate(attention_step(), [guess]).get_node(4).semantics.role == "attention"
    lineage = Evidence("role", "lineage", "grew by one along axis 2")
    traced = Pattern("aten::cat", {"role": "kv_append", "evidence": (lineage,)}, specificity=0)
    looks = Pattern("aten::cat", {"role": "concat"}, specificity=99)
    cat = annotate(attention_step(), [looks, traced]).get_node(5)
    assert cat.semantics.role == "kv_append"
    assert [why for why in cat.semantics.evidence if why.label == "role"] == [lineage]


def test_the_user_has_the_last_word():
    pattern = Pattern("aten::scaled_dot_product_attention", {"role": "guess"}, specificity=99)
    marked = annotate(attention_step(), [pattern], {4: {"semantic_role": "mine", "priority": 3}}).get_node(4)
    assert (marked.semantics.role, marked.metadata["priority"]) == ("mine", 3)
    assert Evidence("role", "user", "user mark") in marked.semantics.evidence
    again = annotate(marked.graph, [pattern])
    assert again.get_node(4).semantics.role == "mine"


@pytest.mark.parametrize(
    ("marks", "says"),
    [
        ({99: {"role": "x"}}, "no node 99"),
        ({0: {"rôle": "x"}}, "no label 'rôle'"),
        ({0: {"role": 3}}, "must be of type str"),
        ({0: {"compute_flops": -1}}, "out of range"),
        ({0: "role"}, "no mapping"),
    ],
)
def test_a_wrong_mark_is_the_users_error(marks, says):
    with pytest.raises(GraphError, match=says):
        annotate(attention_step(), (), marks)


class _Raises(Pattern):
    def match(self, graph):
        raise KeyError("boom")


class _Nonsense(Pattern):
    def __init__(self, answer):
        super().__init__("", {}, "nonsense")
        self.answer = answer

    def match(self, graph):
        return [list(graph.nodes())]

    def annotate(self, nodes):
        return self.answer


@pytest.mark.parametrize(
    "broken",
    [
        _Raises("", {}, "nonsense"),
        _Nonsense(None),
        _Nonsense({5: {"role": "half"}, 99: {"role": "unknown node"}}),
        _Nonsense({5: {"role": "half"}, 6: {"no such": "label"}}),
        _Nonsense({5: {"role": 7}}),
        _Nonsense({5: {"can_parallelize": 1}}),
        _Nonsense({5: {"role": "x" * 5000}}),
        _Nonsense({5: {"role": "x", "evidence": (Evidence("role", "hearsay", "x"),)}}),
        _Nonsense({5: {"role": "x", "evidence": (Evidence("role", "user", "x", 7.0),)}}),
        _Nonsense({"5": {"role": "x"}}),
        _Nonsense({5: None}),
        object(),
    ],
)
def test_a_broken_pattern_is_named_and_leaves_nothing_behind(broken):
    good = Pattern("aten::add", {"role": "sum"})
    with capture_logs() as logs:
        graph = annotate(attention_step(), [broken, good])
    [report] = [entry for entry in logs if entry["log_level"] == "error"]
    assert report["pattern"] == getattr(broken, "name", "object")
    assert graph == annotate(attention_step(), [good])


def test_a_graph_that_breaks_a_rule_is_refused():
    with pytest.raises(GraphError, match="output %3"):
        annotate(Graph((), (), (), (3,)))


def test_a_node_alone_is_a_match():
    class Alone(Pattern):
        def match(self, graph):
            return [node for node in graph.nodes() if node.operation == self.operation]

    graph = Graph((X, X), (Input(0),), (Node(0, "aten::neg", "", (Ref(0),), (1,)),), (1,))
    (node,) = annotate(graph, [Alone("aten::neg", {"phase": "decode"})]).nodes()
    assert node.metadata["phase"] == "decode"
