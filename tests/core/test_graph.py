from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from core.graph_examples import attention_step, graphs
from hypothesis import given

from genie.errors import GraphError
from genie.graph import (
    Const,
    Evidence,
    Graph,
    Input,
    Many,
    Module,
    Node,
    Ref,
    ScalarTensor,
    Semantics,
    TensorSpec,
    verify,
)

GOLDEN = Path(__file__).parent.parent / "golden"
X = TensorSpec((2, 3), "float32")


def one(*args, outputs=(1,), values=(X, X), **more) -> Graph:
    """A graph of one node, ``aten::op``, over the input %0."""
    fields = {"operation": "aten::op", "overload": "", **more}
    return Graph(values, (Input(0),), (Node(5, args=args, outputs=outputs, **fields),), ())


def test_the_text_is_stable():
    graph = attention_step()
    assert graph.text() == str(graph) == (GOLDEN / "attention_step.graph.txt").read_text()
    assert "8 nodes" in repr(graph)


def test_nodes_know_their_graph():
    graph = attention_step()
    verify(graph)
    linear, view, _, copy, attention, cat, cast, _ = graph.nodes()
    assert [node.id for node in graph.nodes()] == list(range(8))
    assert graph.get_node(4) is attention
    assert (linear.operation, cat.target, cast.overload) == ("aten::linear", "aten::cat", "")
    assert copy.target == "aten::copy_"
    assert view.specs == (TensorSpec((1, 2, 1, 4), "float32"),)
    assert attention.module_path == "layers.0.attention"
    assert attention.source_line == "model.py:12"
    with pytest.raises(GraphError, match="no node 99"):
        graph.get_node(99)


def test_inputs_are_makers_and_last_writers():
    graph = attention_step()
    inputs = {node.id: node.inputs for node in graph.nodes()}
    assert inputs[0] == ()
    assert inputs[1] == (0,)
    assert inputs[3] == (2, 1)
    # %2 is an input of the graph, written to through the view that node 2 makes.
    assert inputs[4] == (1, 3)
    assert inputs[5] == (1, 4)


def test_a_write_orders_readers_of_every_view():
    graph = Graph(
        (X, X, X, X),
        (Input(0),),
        (
            Node(0, "aten::clone", "", (Ref(0),), (1,)),
            Node(1, "aten::view", "", (Ref(1),), (2,), aliases=((2, 1),)),
            Node(2, "aten::relu_", "", (Ref(1),), (-1,), mutates=(1,)),
            Node(3, "aten::neg", "", (Ref(2),), (3,)),
        ),
        (3,),
    )
    verify(graph)
    assert graph.get_node(3).inputs == (1, 2)


def test_metadata_has_what_is_known_and_nothing_else():
    node = attention_step().get_node(4)
    assert node.metadata["semantic_role"] == "attention"
    assert node.metadata.get("phase") == "decode"
    assert node.metadata["module_path"] == "layers.0.attention"
    assert node.metadata["module_type"] == "Attention"
    assert node.metadata["output_shapes"] == ((1, 2, 1, 4),)
    assert node.metadata.get("modality") is None
    assert "compute_flops" not in node.metadata
    known = msgspec.structs.replace(node, semantics=Semantics(flops=30, bytes_read=10, bytes_written=5)).metadata
    assert (known["compute_flops"], known["arithmetic_intensity"]) == (30, 2.0)
    with pytest.raises(TypeError):
        known["phase"] = "decode"


def test_the_fingerprint_ignores_parameters_and_nothing_structural():
    def of(*args, **more):
        return one(*args, **more).fingerprint

    base = of(Ref(0), 1, 2.0, Many((3,)), ScalarTensor("int64", 4, True))
    assert of(Ref(0), -7, 0.5, Many((9,)), ScalarTensor("int64", 5, True)) == base
    assert of(Ref(0), 1, 2.0, Many((3,)), ScalarTensor("int64", 4, True), values=(X, TensorSpec((9,), "int8"))) == base
    others = [
        of(Ref(0), 1.0, 2.0, Many((3,)), ScalarTensor("int64", 4, True)),
        of(Ref(0), True, 2.0, Many((3,)), ScalarTensor("int64", 4, True)),
        of(Ref(0), 1, 2.0, Many((3, 3)), ScalarTensor("int64", 4, True)),
        of(Ref(0), 1, 2.0, Many((3,)), ScalarTensor("int64", 4, False)),
        of(Ref(0), "i", 2.0, Many((3,)), ScalarTensor("int64", 4, True)),
        of(Ref(0), 1, 2.0, Many((3,)), ScalarTensor("int64", 4, True), mutates=(0,)),
        of(Ref(0), 1, 2.0, Many((3,)), ScalarTensor("int64", 4, True), overload="out"),
    ]
    assert len({base, *others}) == 1 + len(others)


@pytest.mark.parametrize(
    ("graph", "rule"),
    [
        (one(Ref(1)), "node 5 (aten::op): operand %1 is not defined before it"),
        (one(Ref(-1)), "operand %-1"),
        (one(Ref(99)), "operand %99"),
        (one(Many((Ref(1),))), "operand %1 is not defined"),
        (one(outputs=(7,)), "output %7 is no value"),
        (one(outputs=(-2,)), "output %-2"),
        (one(outputs=(0, 1)), "output %0 is defined already"),
        (one(outputs=(1, 1)), "output %1 is defined already"),
        (one(outputs=()), "value %1 is defined by no input and no node"),
        (one(operation="system"), "'namespace::name'"),
        (one(operation="aten::../x"), "'namespace::name'"),
        (one(overload="a b"), "overload"),
        (one(2**63), "does not fit a signed 64-bit"),
        (one(ScalarTensor("int64", -(2**63) - 1, False)), "does not fit 64 bits"),
        (one(ScalarTensor("int65", 1, False)), "no dtype is called 'int65'"),
        (one(Const("dtype", "float31")), "'float31' is no dtype"),
        (one(Const("device", "cuda:0; rm")), "is no device"),
        (one(Const("generator", "x")), "is no generator"),
        (one(Const("memory_format", "torch.channels_last")), "is no memory_format"),
        (one("x" * 70000), "a text of 70000 characters"),
        (one(*[None] * 2000), "2000 arguments"),
        (one([1, 2]), "a list is no argument"),
        (one(b"x"), "a bytes is no argument"),
        (one(Ref(0), mutates=(1,)), "write to %1, which is no operand"),
        (one(Ref(0), aliases=((0, 0),)), "%0 shares memory, which is no output"),
        (one(aliases=((1, 0),)), "share the memory of %0, which is no operand"),
        (one(aliases=((-1, 0),), outputs=(1, -1)), "%-1 shares memory"),
        (one(module=0), "module, source or mark"),
        (one(source=-2), "module, source or mark"),
        (one(semantics=Semantics(flops=-1)), "-1 is no number of operations"),
        (one(semantics=Semantics(priority=2**63)), "priority"),
        (one(semantics=Semantics(role="x" * 5000)), "a label is longer"),
        (one(semantics=Semantics(evidence=(Evidence("role", "user", "x", 1.5),))), "confidence 1.5"),
        (one(values=(X, TensorSpec((1,), "float31"))), "value %1: no dtype is called 'float31'"),
        (one(values=(X, TensorSpec((-1,), "int8"))), "value %1: -1 is no dimension"),
        (one(values=(X, TensorSpec((1,) * 65, "int8"))), "rank 65"),
        (one(values=(X, TensorSpec((2**40, 2**40), "int8"))), "does not fit 64 bits"),
        (one(values=(X, TensorSpec((2,), "int8", (2**63,)))), "does not fit 64 bits"),
        (one(values=(X, TensorSpec((2, 2), "int8", (1,)))), "1 strides for rank 2"),
        (one(values=(X, TensorSpec((2,), "int8", (-1,)))), "-1 is no stride"),
        (one(values=(X, TensorSpec([2], "int8"))), "wrong type"),
        (Graph((X,), (Input(1),), (), ()), "input %1 is no value"),
        (Graph((X,), (Input(0), Input(0)), (), ()), "input %0 is listed twice"),
        (Graph((X,), (Input(0),), (), (1,)), "output %1 is not defined"),
        (Graph((), (), (), (), backend_type="onnx"), "backend_type"),
        (Graph((), (), (), (), modules=(Module("x" * 5000, "y"),)), "module"),
        (Graph((), (), (), (), sources=("x" * 5000,)), "source"),
        (Graph((), (), (Node(3, "a::b", "", (), ()), Node(3, "a::b", "", (), ())), ()), "node 3.*not above 3"),
        (Graph((), (), (Node(-1, "a::b", "", (), ()),), ()), "node -1"),
        (Graph((), (), ("node",), ()), "not str"),
    ],
)
def test_each_rule_names_the_node_and_itself(graph, rule):
    with pytest.raises(GraphError, match=rule if ".*" in rule else re.escape(rule)):
        verify(graph)


def test_lists_nest_only_so_deep():
    arg = 1
    for _ in range(8):
        arg = Many((arg,))
    verify(one(Ref(0), arg))
    with pytest.raises(GraphError, match="nested deeper than 8"):
        verify(one(Ref(0), Many((arg,))))


def test_a_broken_rule_is_located_in_the_users_program():
    graph = Graph((X,), (), (Node(0, "aten::op", "", (Ref(0),), (), source=0),), (), sources=("train.py:3",))
    with pytest.raises(GraphError) as caught:
        verify(graph)
    assert caught.value.where == "train.py:3"


def test_bound_nodes_do_not_belong_in_a_graph():
    graph = attention_step()
    with pytest.raises(GraphError, match="steps hold Node values"):
        verify(msgspec.structs.replace(graph, steps=graph.nodes()))


def test_a_passed_check_is_remembered_by_that_value_alone():
    graph = attention_step()
    verify(graph)
    with pytest.raises(GraphError):
        verify(msgspec.structs.replace(graph, inputs=()))


def test_sizes_in_bytes():
    assert TensorSpec((2, 3), "bfloat16").nbytes == 12
    assert TensorSpec((), "complex128").nbytes == 16
    assert TensorSpec((0, 3), "float32").nbytes == 0


@given(graphs())
def test_any_graph_that_keeps_the_rules_passes_prints_and_orders(graph):
    verify(graph)
    text = graph.text()
    assert text.count("\n  #") == len(graph.steps)
    for node in graph.nodes():
        assert all(maker < node.id for maker in node.inputs)
        assert dict(node.metadata)


def test_text_from_elsewhere_does_not_reach_the_terminal():
    graph = Graph(
        (X,), (Input(0),), (Node(0, "aten::op", "", ("\x1b[2J",), (), source=0),), (), sources=("a\n\x1b[31m",)
    )
    verify(graph)
    assert "\x1b" not in graph.text()
    assert graph.text().splitlines()[2] == r'  #0 aten::op("\u001b[2J")  @ a\n\x1b[31m'


@dataclass
class _Oracle:
    """What a node sees, by brute force over byte sets: every value owns the storages of what it aliases."""

    graph: Graph

    def depends(self) -> dict[int, set[int]]:
        storage = {entry.value: frozenset([entry.value]) for entry in self.graph.inputs}
        maker: dict[int, int] = {}
        writes: list[tuple[int, frozenset[int]]] = []
        found = {}
        for node in self.graph.steps:
            operands = set(node.operands())
            needed = {maker[value] for value in operands if value in maker}
            for value in operands:
                hits = [by for by, touched in writes if touched & storage[value]]
                needed |= {hits[-1]} if hits else set()
            found[node.id] = needed
            for value in node.outputs:
                if value >= 0:
                    maker[value] = node.id
                    storage[value] = frozenset([value])
            for output, operand in node.aliases:
                storage[output] = storage[operand]
            writes += [(node.id, storage[value]) for value in node.mutates]
        return found


@given(graphs())
def test_dependencies_equal_the_oracle(graph):
    expected = _Oracle(graph).depends()
    assert {node.id: set(node.inputs) for node in graph.nodes()} == expected
