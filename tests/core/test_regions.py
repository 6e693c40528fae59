"""Graphs in graphs: their rules, and what of a graph counts them in."""

from __future__ import annotations

import hashlib
import struct

import msgspec
import pytest
from core.region_examples import (
    ALL,
    NUMBER,
    ROW,
    TRUTH,
    chosen,
    counted,
    doubled,
    halved,
    nested,
    number,
    region,
    summed,
)

from genie import codec
from genie.bindings import float_bits, parameters
from genie.errors import CodecError, GraphError
from genie.graph import Evidence, Graph, Input, Many, Node, Ref, Region, Semantics, TensorSpec, bare, verify
from genie.graph.random import drawing, generators
from genie.graph.regions import COND, MAX_NESTING, WHILE_LOOP, census, cond, form, scan, while_loop, with_regions
from genie.loops import parameters_are_float

replace = msgspec.structs.replace


def altered(graph: Graph, **fields: object) -> Graph:
    """The graph with other fields of its first region node."""
    at = next(at for at, node in enumerate(graph.steps) if node.regions)
    steps = list(graph.steps)
    steps[at] = replace(steps[at], **fields)
    return replace(graph, steps=tuple(steps))


def refused(graph: Graph, why: str) -> None:
    with pytest.raises(GraphError, match=why) as caught:
        verify(graph)
    assert "node" in str(caught.value)


@pytest.mark.parametrize("make", ALL)
def test_they_keep_the_rules_and_come_back_from_bytes(make):
    graph = make()
    verify(graph)
    data = codec.encode(graph)
    back = codec.decode_graph(data)
    assert back == graph
    assert codec.encode(back) == data
    assert (back.text(), back.fingerprint) == (graph.text(), graph.fingerprint)
    verify(bare(graph))


def test_a_graph_knows_its_regions():
    graph = nested()
    assert [one.name for one in graph.regions] == ["", "still"]
    assert [one.name for one in graph.regions[0].regions] == ["below", "body"]
    assert census(graph) == (2, 4, 3 + (1 + 1 + 2) + 1, 7 + (5 + 4 + 5) + 4)


def test_the_text_shows_what_regions_do():
    lines = nested().text().splitlines()
    assert '  #1 %4 int64[], %5 float32[3] = genie::cond(%3, [region "", region "still"], [%0, %1, %2])' in lines
    assert "      #0 %3 float32[3] = aten::neg(%1)" in lines
    assert '        region "below" lazy_dag' in lines


def test_a_graph_without_regions_is_encoded_as_ever():
    """The digest and the fingerprint are those of releases that knew none."""
    plain = replace(doubled(), name="plain")
    assert codec.digest(codec.encode(plain)) == "63da2feb2791f612aa165496828fb16a"
    assert plain.fingerprint == "f82ed2dc5581cf1ddcb8841c5c72afb6"


def test_parameters_of_regions_are_the_graphs_in_the_order_of_the_text():
    two, half = float_bits(2.0), float_bits(0.5)
    assert parameters(chosen()) == (two, half)
    assert parameters(nested()) == (3, 7, 1, 1, 1, 3)
    assert parameters(summed()) == (1, 4)
    assert parameters_are_float(chosen()) == (True, True)
    assert parameters_are_float(summed()) == (False, False)


def test_the_fingerprint_is_of_the_structure_of_regions_and_not_of_their_numbers():
    other = region([ROW], [("aten::mul.Tensor", (Ref(0), number(9.0)), ROW)], [1])
    assert chosen(branches=(doubled(), other)).fingerprint == chosen().fingerprint
    negated = region([ROW], [("aten::neg", (Ref(0),), ROW)], [1])
    assert chosen(branches=(doubled(), negated)).fingerprint != chosen().fingerprint
    assert chosen(branches=(negated, doubled())).fingerprint != chosen(branches=(doubled(), negated)).fingerprint
    assert counted(9).fingerprint == counted().fingerprint
    assert summed(True).fingerprint != summed().fingerprint


def test_arguments_are_read_by_name():
    node = summed(True).steps[0]
    call = form(node)
    assert (call.init, call.xs, call.additional, call.length, call.reverse) == ((0,), (1,), (2,), 4, True)
    replaced = replace(node, args=with_regions(node, [halved()]))
    assert replaced.regions == (halved(),)
    assert replaced.args[1:] == node.args[1:]


def test_drawing_in_a_region_is_drawing():
    assert drawing(chosen()) == ()
    draw = region([ROW], [("aten::bernoulli.p", (Ref(0), 0.5, None), ROW)], [1])
    assert drawing(chosen(branches=(halved(), draw))) == (0,)
    spared = region([ROW], [("aten::dropout", (Ref(0), 0.0, True), ROW)], [1])  # another number, and it draws
    assert drawing(chosen(branches=(halved(), spared))) == (0,)
    assert generators(chosen(branches=(halved(), draw))) == (0,)


def test_labels_of_regions_stay_behind_as_those_of_their_graph():
    known = Semantics(role="norm", phase="decode", evidence=(Evidence("role", "user", "so"),))
    inner = doubled()
    inner = replace(inner, steps=(replace(inner.steps[0], semantics=known),))
    assert bare(chosen(branches=(inner, halved()))).regions[0].steps[0].semantics == Semantics(phase="decode")


def test_what_a_region_takes_and_gives_is_what_its_node_says():
    long = TensorSpec((4,), "float32")
    wide = region([long], [("aten::neg", (Ref(0),), long)], [1])
    refused(chosen(branches=(doubled(), wide)), r"branch 1: operand 0 is float32\[3\], where float32\[4\] is wanted")
    grown = region([ROW], [("aten::repeat", (Ref(0), Many((2,))), TensorSpec((6,), "float32"))], [1])
    refused(chosen(branches=(grown, halved())), r"branch 0: result 0 is float32\[6\]")
    refused(chosen(branches=(region([ROW], [], [0, 0]), halved())), "branch 0: 2 results, where 1 are wanted")
    refused(altered(counted(), args=counted().steps[0].args[:3]), "3 arguments, not 4")
    refused(altered(summed(), outputs=(4, 3)), "result 0 is float32.3., where float32.4, 3. is wanted")


def test_a_predicate_is_one_truth_or_one_number():
    verify(chosen(TensorSpec((1, 1), "bool")))
    verify(chosen(NUMBER, (doubled(), halved(), doubled())))
    refused(chosen(TRUTH, (doubled(), halved(), doubled())), "between two branches, not 3")
    refused(chosen(TensorSpec((2,), "bool")), "has not one element")
    refused(chosen(TensorSpec((0,), "int64")), "has not one element")
    refused(chosen(TensorSpec((), "float32")), "neither bool nor an integer")
    refused(chosen(branches=(doubled(),)), "no list of 2 to")


def test_a_condition_gives_one_truth():
    graph = counted()
    call = form(graph.steps[0])
    for gives in ([0], [], [3, 3]):
        wrong = replace(call.condition, outputs=tuple(gives))
        args = while_loop(wrong, call.body, [Ref(0), Ref(1)], [Ref(2)])
        refused(altered(graph, args=args), "condition: it does not give one value of dtype bool")


def test_what_is_scanned_has_as_many_slices_as_there_are_iterations():
    graph = summed()
    body = form(graph.steps[0]).body
    args = scan(body, [Ref(0)], [Ref(1)], [Ref(2)], length=5)
    refused(altered(graph, args=args), r"%1 is scanned in 5 slices, but its shape is \[4, 3\]")
    refused(altered(graph, args=(*args[:4], -1, False)), "no number from 0 on")
    refused(altered(graph, args=(*args[:4], 4, 0)), "whether it is reversed")


def test_a_region_is_closed():
    written = Graph(
        values=(ROW, ROW),
        inputs=(Input(0),),
        steps=(
            Node(0, "aten::view", "", (Ref(0), Many((3,))), (1,), aliases=((1, 0),)),
            Node(1, "aten::neg_", "", (Ref(1),), (-1,), mutates=(1,)),
        ),
        outputs=(1,),
    )
    refused(chosen(branches=(doubled(), written)), r"region 1: node 1 \(aten::neg_\) writes to an input")
    donated = replace(doubled(), inputs=(Input(0, donated=True),))
    refused(chosen(branches=(donated, halved())), "region 0: it takes donated inputs")
    dangling = region([ROW], [("aten::neg", (Ref(7),), ROW)], [1])
    refused(chosen(branches=(dangling, halved())), "region 0: node 0 .aten::neg.: operand %7")
    fresh = replace(written, steps=(Node(0, "aten::neg", "", (Ref(0),), (1,)), written.steps[1]))
    verify(chosen(branches=(doubled(), fresh)))


def test_regions_belong_to_the_operators_that_run_them():
    plain = Graph((ROW, ROW), (Input(0),), (Node(0, "aten::neg", "", (Ref(0), Region(doubled())), (1,)),), (1,))
    refused(plain, "a region is no argument of this operator")
    refused(altered(chosen(), overload="out"), "an overload, effects")
    refused(altered(chosen(), aliases=((2, 1),)), "an overload, effects")
    refused(altered(chosen(), args=(None, *chosen().steps[0].args[1:])), "predicate is no value")
    refused(altered(chosen(), args=cond(Ref(0), [doubled(), 3], [Ref(1)])), "is no region|a int")


def deep(levels: int) -> Graph:
    graph = replace(doubled(), values=(ROW, ROW), name="")
    for _ in range(levels):
        args = while_loop(region([ROW], [("aten::any", (Ref(0),), TRUTH)], [1]), graph, [Ref(0)])
        graph = Graph((ROW, ROW), (Input(0),), (Node(0, WHILE_LOOP, "", args, (1,)),), (1,))
    return graph


def test_nesting_and_number_are_bounded():
    verify(deep(MAX_NESTING))
    refused_deep = deep(MAX_NESTING + 1)
    with pytest.raises(GraphError, match="nested deeper"):
        verify(refused_deep)
    inner = deep(MAX_NESTING)
    verify(inner)  # remembered: its depth counts all the same
    with pytest.raises(GraphError, match="nested deeper"):
        verify(chosen(branches=(inner, inner)))
    with pytest.raises(GraphError, match="nested deeper"):
        verify(deep(300))
    graph = region([NUMBER, ROW], [("aten::neg", (Ref(1),), ROW)], [2])
    for _ in range(3):  # 40 branches of 40 branches of 40
        args = cond(Ref(0), [graph] * 40, [Ref(0), Ref(1)])
        graph = Graph((NUMBER, ROW, ROW), (Input(0), Input(1)), (Node(0, COND, "", args, (2,)),), (2,))
    with pytest.raises(GraphError, match="regions, those in regions counted"):
        verify(graph)


def test_a_bomb_of_regions_is_refused():
    outermost = msgspec.msgpack.decode(codec.encode(deep(1))[codec.HEADER :])
    step = outermost["steps"][0]
    bomb = b"\xc0"
    for _ in range(1000):
        step[3] = [["g", msgspec.Raw(bomb)]]
        bomb = msgspec.msgpack.encode(outermost)
    prefix = struct.pack("<5sBBBQ4x", b"GENIE", 1, 1, 0, len(bomb))
    with pytest.raises(CodecError, match="does not decode"):
        codec.decode(prefix + hashlib.blake2b(prefix + bomb, digest_size=16).digest() + bomb)
