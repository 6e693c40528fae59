"""Graphs with branches and loops, one of each kind, and a loop in a branch."""

from __future__ import annotations

from collections.abc import Sequence

from genie.graph import Arg, Graph, Input, Many, Node, Ref, ScalarTensor, TensorSpec
from genie.graph.regions import COND, SCAN, WHILE_LOOP, cond, scan, while_loop

ROW = TensorSpec((3,), "float32")
ROWS = TensorSpec((4, 3), "float32")
NUMBER = TensorSpec((), "int64")
TRUTH = TensorSpec((), "bool")


def region(
    takes: Sequence[TensorSpec],
    calls: Sequence[tuple[str, tuple[Arg, ...], TensorSpec]],
    gives: Sequence[int],
    name: str = "",
) -> Graph:
    """A graph of operators with one result each, numbered after what it takes."""
    steps = []
    for at, (target, args, _) in enumerate(calls):
        operation, _, overload = target.partition(".")
        steps.append(Node(at, operation, overload, args, (len(takes) + at,)))
    return Graph(
        values=(*takes, *(spec for _, _, spec in calls)),
        inputs=tuple(map(Input, range(len(takes)))),
        steps=tuple(steps),
        outputs=tuple(gives),
        name=name,
    )


def number(value: float, dtype: str = "float64") -> ScalarTensor:
    return ScalarTensor(dtype, value, True)


def doubled() -> Graph:
    return region([ROW], [("aten::mul.Tensor", (Ref(0), number(2.0)), ROW)], [1], "doubled")


def halved() -> Graph:
    return region([ROW], [("aten::mul.Tensor", (Ref(0), number(0.5)), ROW)], [1], "halved")


def chosen(predicate: TensorSpec = TRUTH, branches: Sequence[Graph] = ()) -> Graph:
    """One branch or another on a row."""
    args = cond(Ref(0), branches or (doubled(), halved()), [Ref(1)])
    return Graph(
        values=(predicate, ROW, ROW),
        inputs=(Input(0), Input(1)),
        steps=(Node(0, COND, "", args, (2,)),),
        outputs=(2,),
    )


def below(limit: int) -> Graph:
    """Whether the first of three is below a limit."""
    return region([NUMBER, ROW, ROW], [("aten::lt.Scalar", (Ref(0), limit), TRUTH)], [3], "below")


def counted(limit: int = 5) -> Graph:
    """A row that grows by another until so many iterations are done."""
    body = region(
        [NUMBER, ROW, ROW],
        [
            ("aten::add.Tensor", (Ref(0), number(1, "int64"), 1), NUMBER),
            ("aten::add.Tensor", (Ref(1), Ref(2), 1), ROW),
        ],
        [3, 4],
        "body",
    )
    args = while_loop(below(limit), body, [Ref(0), Ref(1)], [Ref(2)])
    return Graph(
        values=(NUMBER, ROW, ROW, NUMBER, ROW),
        inputs=(Input(0), Input(1), Input(2)),
        steps=(Node(0, WHILE_LOOP, "", args, (3, 4)),),
        outputs=(3, 4),
    )


def summed(reverse: bool = False) -> Graph:
    """Running sums of rows, each scaled by a further row."""
    body = region(
        [ROW, ROW, ROW],
        [
            ("aten::add.Tensor", (Ref(0), Ref(1), 1), ROW),
            ("aten::mul.Tensor", (Ref(3), Ref(2)), ROW),
        ],
        [3, 4],
        "body",
    )
    args = scan(body, [Ref(0)], [Ref(1)], [Ref(2)], length=4, reverse=reverse)
    return Graph(
        values=(ROW, ROWS, ROW, ROW, ROWS),
        inputs=(Input(0), Input(1), Input(2)),
        steps=(Node(0, SCAN, "", args, (3, 4)),),
        outputs=(3, 4),
    )


def nested() -> Graph:
    """A branch that loops, between operators of the graph itself."""
    loop = counted(7)
    still = region([NUMBER, ROW, ROW], [("aten::neg", (Ref(1),), ROW)], [0, 3], "still")
    args = cond(Ref(3), [loop, still], [Ref(0), Ref(1), Ref(2)])
    return Graph(
        values=(NUMBER, ROW, ROW, TRUTH, NUMBER, ROW, ROW),
        inputs=(Input(0), Input(1), Input(2)),
        steps=(
            Node(0, "aten::lt", "Scalar", (Ref(0), 3), (3,)),
            Node(1, COND, "", args, (4, 5)),
            Node(2, "aten::view", "", (Ref(5), Many((3,))), (6,), aliases=((6, 5),)),
        ),
        outputs=(4, 6),
    )


ALL = (chosen, counted, summed, nested)
