"""Structured regions: nodes that run graphs of their own, so that branches and loops run where their values are.

Three operators, named after PyTorch's higher-order operators and meaning the same. A region is a closed graph: what it
takes is an operand of the node, ``init`` and ``carried`` first, then slices, then ``additional``.

``genie::cond(predicate, [branch, …], operands)``
    One of the branches, on the operands. A predicate of dtype bool takes the first of two branches where it is true and
    the second where it is false; an integer one is the number of the branch, counted from 0.

``genie::while_loop(condition, body, carried, additional)``
    The body on what is carried and ``additional``, again and again as long as the condition, on the same, gives true;
    what it gives is carried on. The results are what is carried in the end.

``genie::scan(body, init, xs, additional, length, reverse)``
    The body ``length`` times: on what is carried, the i-th slice of each ``xs`` along its first dimension, and
    ``additional``. It gives what is carried on, then any number of further values. The results are what is carried in
    the end, then each further value of all iterations stacked along a new first dimension, the i-th for the i-th
    slice. With ``reverse`` the last slice comes first.

A predicate and what a condition gives have one element; a condition's is of dtype bool. A region writes to no input,
and a region node's results are fresh values: they share no memory with operands or with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from genie.errors import GraphError
from genie.graph.model import Arg, Graph, Many, Node, Ref, Region, TensorSpec
from genie.graph.once import once

COND: Final = "genie::cond"
WHILE_LOOP: Final = "genie::while_loop"
SCAN: Final = "genie::scan"
OPERATORS: Final = frozenset((COND, WHILE_LOOP, SCAN))

MAX_NESTING: Final = 8  # of regions in regions
MAX_REGIONS: Final = 1 << 12  # of one graph, those in regions counted
MAX_BRANCHES: Final = 1 << 8


class Cond(NamedTuple):
    """A node ``genie::cond``: values and graphs in their order."""

    predicate: int
    branches: tuple[Graph, ...]
    operands: tuple[int, ...]


class WhileLoop(NamedTuple):
    """A node ``genie::while_loop``."""

    condition: Graph
    body: Graph
    carried: tuple[int, ...]
    additional: tuple[int, ...]


class Scan(NamedTuple):
    """A node ``genie::scan``."""

    body: Graph
    init: tuple[int, ...]
    xs: tuple[int, ...]
    additional: tuple[int, ...]
    length: int
    reverse: bool


Form = Cond | WhileLoop | Scan


def cond(predicate: Ref, branches: Sequence[Graph], operands: Sequence[Ref]) -> tuple[Arg, ...]:
    """The arguments of a node ``genie::cond``."""
    return (predicate, Many(tuple(map(Region, branches))), Many(tuple(operands)))


def while_loop(
    condition: Graph, body: Graph, carried: Sequence[Ref], additional: Sequence[Ref] = ()
) -> tuple[Arg, ...]:
    """The arguments of a node ``genie::while_loop``."""
    return (Region(condition), Region(body), Many(tuple(carried)), Many(tuple(additional)))


def scan(
    body: Graph,
    init: Sequence[Ref],
    xs: Sequence[Ref],
    additional: Sequence[Ref] = (),
    *,
    length: int,
    reverse: bool = False,
) -> tuple[Arg, ...]:
    """The arguments of a node ``genie::scan``."""
    return (Region(body), Many(tuple(init)), Many(tuple(xs)), Many(tuple(additional)), length, reverse)


def form(node: Node) -> Form:
    """A region node's arguments by name. Raises :class:`GraphError`, which says what is wrong with them."""
    if node.operation == COND:
        _expect(node, 3)
        predicate, branches, operands = node.args
        if not isinstance(predicate, Ref):
            raise GraphError("its predicate is no value")
        if not isinstance(branches, Many) or not 2 <= len(branches.items) <= MAX_BRANCHES:
            raise GraphError(f"its branches are no list of 2 to {MAX_BRANCHES} regions")
        return Cond(
            predicate.value, tuple(_graph(one, "branch") for one in branches.items), _values(operands, "operands")
        )
    if node.operation == WHILE_LOOP:
        _expect(node, 4)
        condition, body, carried, additional = node.args
        return WhileLoop(
            _graph(condition, "condition"),
            _graph(body, "body"),
            _values(carried, "carried values"),
            _values(additional, "additional values"),
        )
    _expect(node, 6)
    body, init, xs, additional, length, reverse = node.args
    if type(length) is not int or length < 0 or type(reverse) is not bool:
        raise GraphError("its length is no number from 0 on, or whether it is reversed is not said")
    return Scan(
        _graph(body, "body"),
        _values(init, "initial values"),
        _values(xs, "scanned values"),
        _values(additional, "additional values"),
        length,
        reverse,
    )


def carried_by(node: Node) -> tuple[int, ...]:
    """The values that a loop starts with, and carries on; of a condition, none."""
    call = form(node)
    if isinstance(call, Cond):
        return ()
    return call.init if isinstance(call, Scan) else call.carried


def taken_by(node: Node) -> tuple[int, ...]:
    """The operand behind each input of a node's regions; -1 for what is carried: only its first is an operand."""
    call = form(node)
    if isinstance(call, Cond):
        return call.operands
    carried = (-1,) * len(carried_by(node))
    return (*carried, *call.xs, *call.additional) if isinstance(call, Scan) else (*carried, *call.additional)


def with_regions(node: Node, regions: Sequence[Graph]) -> tuple[Arg, ...]:
    """The node's arguments with these regions in place of its own, in their order."""
    left = iter(regions)

    def replaced(arg: Arg) -> Arg:
        if type(arg) is Region:
            return Region(next(left))
        if type(arg) is Many and any(type(item) is Region for item in arg.items):
            return Many(tuple(map(replaced, arg.items)))
        return arg

    return tuple(map(replaced, node.args))


class Census(NamedTuple):
    """A graph and all of its regions: how deep they are nested, and how much there is of them."""

    height: int
    regions: int
    nodes: int
    values: int


@once
def census(graph: Graph) -> Census:
    height, regions, nodes, values = 0, 0, len(graph.steps), len(graph.values)
    for node in graph.steps:
        if node.operation in OPERATORS:
            for region in node.regions:
                inner = census(region)
                height = max(height, 1 + inner.height)
                regions += 1 + inner.regions
                nodes += inner.nodes
                values += inner.values
    return Census(height, regions, nodes, values)


def mismatch(graph: Graph, node: Node) -> str:
    """What a verified region and its node disagree about, or nothing."""
    try:
        call = form(node)
    except GraphError as error:
        return str(error)
    if node.overload or node.mutates or node.aliases or any(value < 0 for value in node.outputs):
        return "it has an overload, effects, or results that are no fresh values"
    for number, region in enumerate(node.regions):
        if fault := _not_closed(region):
            return f"region {number}: {fault}"
    specs = graph.values
    results = [specs[value] for value in node.outputs]
    if isinstance(call, Cond):
        return _cond(call, specs, results)
    if isinstance(call, WhileLoop):
        return _while_loop(call, specs, results)
    return _scan(call, specs, results)


def _cond(call: Cond, specs: Sequence[TensorSpec], results: Sequence[TensorSpec]) -> str:
    predicate = specs[call.predicate]
    if predicate.nbytes == 0 or any(dim != 1 for dim in predicate.shape):
        return f"its predicate %{call.predicate} has not one element"
    if predicate.dtype == "bool" and len(call.branches) != 2:
        return f"a predicate of dtype bool chooses between two branches, not {len(call.branches)}"
    if predicate.dtype != "bool" and "int" not in predicate.dtype:
        return f"its predicate is of dtype {predicate.dtype}, neither bool nor an integer"
    taken = [specs[value] for value in call.operands]
    for number, branch in enumerate(call.branches):
        if fault := _agree(taken, _takes(branch), "operand") or _agree(_gives(branch), results, "result"):
            return f"branch {number}: {fault}"
    return ""


def _while_loop(call: WhileLoop, specs: Sequence[TensorSpec], results: Sequence[TensorSpec]) -> str:
    taken = [specs[value] for value in (*call.carried, *call.additional)]
    if fault := _agree(taken, _takes(call.condition), "operand"):
        return f"condition: {fault}"
    said = _gives(call.condition)
    if len(said) != 1 or said[0].dtype != "bool" or any(dim != 1 for dim in said[0].shape):
        return "condition: it does not give one value of dtype bool with one element"
    carried = taken[: len(call.carried)]
    fault = _agree(taken, _takes(call.body), "operand") or _agree(_gives(call.body), carried, "carried value")
    return f"body: {fault}" if fault else _agree(carried, results, "result")


def _scan(call: Scan, specs: Sequence[TensorSpec], results: Sequence[TensorSpec]) -> str:
    slices: list[TensorSpec] = []
    for value in call.xs:
        spec = specs[value]
        if not spec.shape or spec.shape[0] != call.length:
            return f"%{value} is scanned in {call.length} slices, but its shape is {list(spec.shape)}"
        slices.append(TensorSpec(spec.shape[1:], spec.dtype))
    carried = [specs[value] for value in call.init]
    taken = [*carried, *slices, *(specs[value] for value in call.additional)]
    made = _gives(call.body)
    fault = _agree(taken, _takes(call.body), "operand") or _agree(made[: len(carried)], carried, "carried value")
    if fault:
        return f"body: {fault}"
    stacked = [TensorSpec((call.length, *spec.shape), spec.dtype) for spec in made[len(carried) :]]
    return _agree([*carried, *stacked], results, "result")


def _not_closed(region: Graph) -> str:
    if any(entry.donated for entry in region.inputs):
        return "it takes donated inputs: what a region takes is its node's"
    return writes_to_input(region)


def writes_to_input(graph: Graph) -> str:
    """Which node writes to an input of its graph, in words; "" if none does."""
    root: dict[int, int] = {}
    inputs = {entry.value for entry in graph.inputs}
    for node in graph.steps:
        for output, operand in node.aliases:
            root[output] = root.get(operand, operand)
        for value in node.mutates:
            if root.get(value, value) in inputs:
                return f"node {node.id} ({node.target}) writes to an input"
    return ""


def _agree(given: Sequence[TensorSpec], wanted: Sequence[TensorSpec], what: str) -> str:
    if len(given) != len(wanted):
        return f"{len(given)} {what}s, where {len(wanted)} are wanted"
    for number, (one, other) in enumerate(zip(given, wanted, strict=True)):
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            return f"{what} {number} is {one.dtype}{list(one.shape)}, where {other.dtype}{list(other.shape)} is wanted"
    return ""


def _takes(region: Graph) -> list[TensorSpec]:
    return [region.values[entry.value] for entry in region.inputs]


def _gives(region: Graph) -> list[TensorSpec]:
    return [region.values[value] for value in region.outputs]


def _expect(node: Node, count: int) -> None:
    if len(node.args) != count:
        raise GraphError(f"it has {len(node.args)} arguments, not {count}")


def _graph(arg: Arg, what: str) -> Graph:
    if not isinstance(arg, Region):
        raise GraphError(f"its {what} is no region")
    return arg.graph


def _values(arg: Arg, what: str) -> tuple[int, ...]:
    if not isinstance(arg, Many) or not all(isinstance(item, Ref) for item in arg.items):
        raise GraphError(f"its {what} are no list of values")
    return tuple(item.value for item in arg.items if isinstance(item, Ref))
