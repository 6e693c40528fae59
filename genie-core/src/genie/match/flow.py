"""What flows where: how data enters a graph, and what each value is computed from."""

from __future__ import annotations

from collections.abc import Container
from typing import Literal, NamedTuple

from genie.graph import Graph
from genie.graph.calls import DRAWS, LOOKUPS, calls, given_data, index_of, weight_side, weights
from genie.graph.lineage import lineage
from genie.graph.once import once
from genie.graph.structure import Structure, structure

Way = Literal["ids", "rows", "image", "frames", "signal", "features"]
CONVOLUTIONS = frozenset("convolution conv1d conv2d conv3d _convolution mkldnn_convolution cudnn_convolution".split())
_BY_RANK: dict[int, Way] = {1: "signal", 2: "image", 3: "frames"}


class Entry(NamedTuple):
    """Data of the program meets weights for the first time, at node ``at``.

    ``ids``: integers look up one row for each position; ``rows``: integers look up rows of a bag or of one column;
    ``image``: a convolution over two dimensions, or patches of them; ``frames``: over three (video); ``signal``: over
    one (sound); ``features``: a product with a matrix.
    """

    at: int
    way: Way
    value: int  # the data
    table: int  # the weight
    call: int


class Flow(NamedTuple):
    """``entries``, and by value the entries it is computed from within its call, as bits in their order."""

    entries: tuple[Entry, ...]
    bits: list[int]
    past: list[int]  # the same of values of earlier calls it is computed from
    carried: bytearray  # whether it is computed from anything that was there before its call


@once
def flow(graph: Graph) -> Flow:
    """How data enters and where it goes."""
    view, heavy, call = structure(graph), weights(graph), calls(graph)
    weight = bytearray(len(graph.values))
    for value in heavy.everything():
        weight[value] = 1
    data = bytearray(given_data(graph))
    states = lineage(graph)
    bits = [0] * len(graph.values)
    past = [0] * len(graph.values)
    carried = bytearray(len(graph.values))
    for entry in graph.inputs:
        floats = graph.values[entry.value].dtype.startswith(("float", "bfloat"))
        carried[entry.value] = floats and not weight[entry.value] and (entry.origin == "state" or bool(entry.lineage))
    made_in = [-1] * len(graph.values)
    entries: list[Entry] = []
    numbers: dict[tuple[int, int, str], int] = {}  # (data, table, way) → entry; the same table is one entry in a call
    storage, names = view.storage, view.names
    for at, node in enumerate(view.steps):
        operands = view.operands[at]
        now = call[at]
        mask, before, given, kept = 0, 0, False, False
        for value in operands:
            if made_in[value] == now:
                mask |= bits[value]
                before |= past[value]
            else:
                before |= bits[value] | past[value]
                kept = kept or bool(bits[value] | past[value])
            kept = kept or bool(carried[value])
            if data[value]:
                given = True
        given = given or names[at] in DRAWS
        name = names[at]
        if given and (not mask or name in LOOKUPS):
            found = _entry(view, at, name, weight, data)
            if found is not None and found[0] in ("ids", "rows") and bits[found[1]] and made_in[found[1]] == now:
                found = None  # a choice of the model's own: of experts, say
            if found is not None and not (found[0] == "features" and _carried(view, call, found[1], now, states)):
                way, value, table = found
                key = (now, storage[table], way)
                number = numbers.get(key)
                if number is None:
                    number = numbers[key] = len(entries)
                    entries.append(Entry(at, way, value, table, now))
                mask = 1 << number
        if mask or given:
            for value in node.outputs:
                if value >= 0:
                    bits[value], past[value], made_in[value], carried[value] = mask, before, now, kept
                    data[value] = given
            for value in node.mutates:
                root = storage[value]
                bits[root] = mask | (bits[root] if made_in[root] == now else 0)
                past[root] |= before
                made_in[root] = now
                data[root] = data[value] = 1
                bits[value], past[value], made_in[value] = bits[root], past[root], now
        if node.aliases:
            for output, operand in node.aliases:
                root = storage[operand]
                if made_in[root] == now and bits[root]:
                    bits[output] |= bits[root]
                    made_in[output] = now
    return Flow(tuple(entries), bits, past, carried)


def result_of(view: Structure, at: int) -> int:
    """The value that a node is about: the first that it makes, or what it writes to; -1: none."""
    node = view.steps[at]
    for value in node.outputs:
        if value >= 0:
            return value
    return node.mutates[0] if node.mutates else -1


@once
def trained_calls(graph: Graph) -> frozenset[int]:
    """Calls that gradients are computed of."""
    call = calls(graph)
    return frozenset(
        call[at]
        for at, node in enumerate(graph.steps)
        if node.semantics is not None and node.semantics.phase in ("backward", "optimizer")
    )


def counted(view: Structure, value: int) -> bool:
    """Whether numbers are positions: made by counting, and arithmetic on what is counted."""
    front, seen = [value], {value}
    for _ in range(24):
        if not front:
            return False
        at = view.maker[front.pop()]
        if at < 0:
            continue
        if view.names[at] in ("arange", "cumsum"):
            return True
        if view.names[at] in ("cat", "argmax", "multinomial", "topk", "embedding"):
            continue
        for operand in view.operands[at]:
            if operand not in seen and view.dtype(operand).startswith(("int", "uint", "bool")):
                seen.add(operand)
                front.append(operand)
    return False


def _carried(view: Structure, call: list[int], value: int, now: int, states: Container[int]) -> bool:
    """Whether a value comes from an earlier call: then it is no data given to this one."""
    root = view.part[value]
    maker = view.maker[root]
    return root in states or view.storage[value] in states or (maker >= 0 and call[maker] < now)


def _entry(view: Structure, at: int, name: str, weight: bytearray, data: bytearray) -> tuple[Way, int, int] | None:
    operands = view.operands[at]
    if name in LOOKUPS:
        if len(operands) < 2 or not weight[view.storage[operands[0]]]:
            return None
        given = index_of(view, at)
        if not data[given] or not view.dtype(given).startswith(("int", "uint")) or counted(view, given):
            return None
        way: Way = "ids" if "bag" not in name and len(view.shape(given)) >= 2 else "rows"
        return way, given, operands[0]
    sides = operands[:2] if name == "mm" else operands[1:2]
    if len(operands) < 2 or not any(weight[view.storage[each]] for each in sides):
        if name in ("addmm", "_addmm_activation") and len(operands) == 3 and weight[view.storage[operands[2]]]:
            return "features", operands[1], operands[2]
        return None
    value, table = operands[0], operands[1]
    if name == "mm" and weight_side(view, at) == 0:
        value, table = table, value
    if not data[value] or not view.dtype(value).startswith(("float", "bfloat")):
        return None
    if name in CONVOLUTIONS:
        rank = len(view.shape(table)) - 2
        return _BY_RANK[min(max(rank, 1), 3)], value, table
    if name in ("linear", "mm", "matmul"):
        return "features", value, table
    return None
