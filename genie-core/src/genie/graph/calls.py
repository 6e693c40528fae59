"""Weights, and the calls of the program's model that a graph holds, told by how the weights are used.

A program that runs a model in a loop uses the same weights again, in the same order. So a call begins where a table of
embeddings is looked up again by data of the program, or where the first weight of the call before is used again in
the way it was used first. No names are needed; a model that is called once is one call.
"""

from __future__ import annotations

from collections.abc import Iterator

from genie.graph.model import Graph, Node, Ref
from genie.graph.once import once
from genie.graph.regions import OPERATORS, carried_by, taken_by
from genie.graph.structure import Structure, structure

# Arguments that hold weights, by operator.
_SLOTS: dict[str, tuple[int, ...]] = {
    "linear": (1, 2),
    "embedding": (0,),
    "index": (0,),
    "index_select": (0,),
    "embedding_bag": (0,),
    "_embedding_bag": (0,),
    "_embedding_bag_forward_only": (0,),
    "addmm": (0, 2),
    "mm": (1,),
    "matmul": (1,),
    "convolution": (1, 2),
    "conv1d": (1, 2),
    "conv2d": (1, 2),
    "conv3d": (1, 2),
    "native_layer_norm": (2, 3),
    "layer_norm": (2, 3),
    "native_group_norm": (1, 2),
    "native_batch_norm": (1, 2, 3, 4),
    "_native_batch_norm_legit": (1, 2, 3, 4),
    "batch_norm": (1, 2, 3, 4),
    "rms_norm": (2,),
}
# Rows of a table by number; ``table[ids]`` is one, too.
LOOKUPS = frozenset("embedding embedding_bag _embedding_bag _embedding_bag_forward_only index index_select".split())
# Data that a program makes by itself.
DRAWS = frozenset(
    "rand randn randint randperm rand_like randn_like randint_like normal uniform random bernoulli".split()
)
_CONSTANTS = frozenset("full ones zeros full_like ones_like zeros_like new_full new_ones new_zeros".split())
_FEW_ROWS = 16
_SCALES = frozenset(("add", "mul", "sub", "div"))
_ALONE = _SCALES | frozenset(("rsqrt", "sqrt", "maximum", "reciprocal"))  # of weights alone, they make another
_VIEWS = frozenset(
    "t transpose detach _to_copy permute view unsqueeze squeeze select slice unbind split clone _unsafe_view".split()
)
_FILLS = frozenset(("index_copy", "index_put", "_index_put_impl", "scatter", "masked_scatter", "index_fill"))


class Weights:
    """Values that are weights. ``known``: the frontend says they are parameters or buffers. ``told``: they are used as
    weights are. What is computed from weights alone (cast, normalised, merged) is among them, too, and not listed."""

    __slots__ = ("_all", "_derived", "known", "told")

    def __init__(self, known: frozenset[int], told: frozenset[int], derived: frozenset[int] = frozenset()) -> None:
        self.known, self.told = known, told
        self._all, self._derived = known | told, derived

    def __contains__(self, value: int) -> bool:
        return value in self._all or value in self._derived

    def __iter__(self) -> Iterator[int]:
        return iter(self._all)

    def everything(self) -> frozenset[int]:
        """What is listed, and what is computed from it."""
        return self._all | self._derived


@once
def weights(graph: Graph) -> Weights:
    """The graph's inputs that are weights."""
    view = structure(graph)
    known = frozenset(entry.value for entry in graph.inputs if entry.origin in ("parameter", "buffer"))
    told: set[int] = set()
    gradient = gradients(graph)
    for entry in graph.inputs:
        value = entry.value
        spec = graph.values[value]
        if value in known or entry.origin in ("state", "constant") or entry.lineage not in ("", "kept"):
            continue
        if not spec.dtype.startswith(("float", "bfloat")) or not 1 <= len(spec.shape) <= 5 or _filled(view, value):
            continue
        if _used_as_weight(view, value, gradient):
            told.add(value)
    return Weights(known, frozenset(told), _derived(view, known | told))


def _derived(view: Structure, roots: frozenset[int]) -> frozenset[int]:
    """Values computed from weights alone; rows looked up in one are none any more."""
    found: set[int] = set()
    for at, node in enumerate(view.steps):
        operands = view.operands[at]
        if not operands or node.mutates or view.names[at] in LOOKUPS:
            continue
        if all(value in found or view.storage[value] in roots for value in operands):
            found.update(value for value in node.outputs if value >= 0)
    return frozenset(found)


def _filled(view: Structure, value: int) -> bool:
    """Whether a part of a value is written in place, as caches are; updates of weights are of all of it."""
    return any(
        view.names[at] in _FILLS or view.shape(view.steps[at].mutates[0]) != view.shape(value)
        for at in view.writes.get(value, ())
    )


def _used_as_weight(view: Structure, value: int, gradients: bytearray) -> bool:
    """Whether a value, and every view of it, is used in the place of weights only: while it is, not where it is
    updated."""
    front, seen = [value], False
    while front:
        each = front.pop()
        rank = len(view.shape(each))
        for at in view.users[each]:
            node, name = view.steps[at], view.names[at]
            if node.mutates and view.operands[at][0] == each:
                continue  # an update
            if _backward(node) or any(gradients[other] for other in view.operands[at]):
                continue
            if node.operation in OPERATORS:
                if not _weighs_within(node, each):
                    return False
                seen = True
            elif name in _VIEWS or (
                name in _ALONE and all(other == each or _entered(view, other) for other in view.operands[at])
            ):
                front += [made for made in node.outputs if made >= 0]
            elif not (_in_slot(view, at, each, rank) or (name in _SCALES and _spread(view, at, each, rank))):
                return False
            else:
                seen = True
    return seen


def _weighs_within(node: Node, value: int) -> bool:
    """Whether each region of a node that uses a value uses it as a weight; what a loop carries on is none."""
    used = False
    for region in node.regions:
        for entry, taken in zip(region.inputs, taken_by(node), strict=True):
            if taken == value and structure(region).users[entry.value]:
                if entry.value not in weights(region):
                    return False
                used = True
    return used and value not in carried_by(node)


def _backward(node: Node) -> bool:
    return node.semantics is not None and node.semantics.phase in ("backward", "optimizer")


@once
def gradients(graph: Graph) -> bytearray:
    """By value: whether the backward pass made it, or it is computed from what did."""
    found = bytearray(len(graph.values))
    for node in graph.steps:
        if _backward(node) or any(found[value] for value in node.operands()):
            for value in (*node.outputs, *node.mutates):
                if value >= 0:
                    found[value] = 1
    return found


def _entered(view: Structure, value: int) -> bool:
    """Whether a vector is an input, or another by a few operators on numbers or on other vectors that are."""
    front = [value]
    for _ in range(8):
        if not front:
            return True
        each = front.pop()
        at = view.maker[each]
        if _extent(view.shape(each)) > 1:
            return False
        if at >= 0:
            if view.names[at] not in _ALONE and view.names[at] not in _VIEWS:
                return False
            front += view.operands[at]
    return False


def _in_slot(view: Structure, at: int, value: int, rank: int) -> bool:
    slots = (weight_side(view, at),) if view.names[at] == "mm" else _SLOTS.get(view.names[at], ())
    held = [i for i, arg in enumerate(view.steps[at].args) if isinstance(arg, Ref) and arg.value == value]
    flat = rank == 2 or view.names[at] not in ("mm", "matmul", "index", "index_select")
    return bool(held) and flat and all(slot in slots for slot in held)


def weight_side(view: Structure, at: int) -> int:
    """Which operand of a product of matrices is in the place of a weight: the second, but for products written the
    other way round: of an input with what is no input, or one whose bias is along its first dimension."""
    if len(view.operands[at]) != 2:
        return 1
    one, other = (view.maker[view.source[value]] < 0 for value in view.operands[at])
    if one != other:
        return 0 if one else 1
    front = list(view.steps[at].outputs)
    for _ in range(3 if one else 0):
        following: list[int] = []
        for value in front:
            shape = view.shape(value)
            for user in view.users[value]:
                if view.names[user] in _VIEWS:
                    following += view.steps[user].outputs
                elif view.names[user] == "add":
                    for bias in view.operands[user]:
                        wide = (1,) * (len(shape) - len(view.shape(bias))) + view.shape(bias)
                        if bias != value and wide[:1] == shape[:1] and _extent(wide) == 1 and _extent(shape) > 1:
                            return 0
        front = following
    return 1


def _extent(shape: tuple[int, ...]) -> int:
    """How many dimensions have more than one element."""
    return len(shape) - shape.count(1)


def _spread(view: Structure, at: int, value: int, rank: int) -> bool:
    """Whether a vector scales or shifts something larger, or rows of positions are added to a batch."""
    others = [each for each in view.operands[at] if each != value]
    extent = _extent(view.shape(value)) or 1
    if not others or extent > 2 or (extent == 2 and view.names[at] != "add"):
        return False
    other = view.shape(others[0])
    return len(other) > rank or (len(other) == rank and _extent(other) > extent)


@once
def calls(graph: Graph) -> list[int]:
    """By position: which call of its model a node belongs to, counted from 0."""
    view, heavy = structure(graph), weights(graph)
    weight = bytearray(len(graph.values))  # by storage
    for value in heavy:
        weight[value] = 1
    storage, names = view.storage, view.names
    data = given_data(graph)
    call = [0] * len(view.steps)
    last = [-1] * len(graph.values)  # the last call whose weights a value depends on
    fixed = bytearray(len(view.steps))
    current = 0
    used: dict[tuple[int, str], int] = {}  # by table: the ids looked up
    first: tuple[int, str] | None = None
    worked = False  # whether the call has used a weight that is no table
    for at, node in enumerate(view.steps):
        deepest = -1
        key = None
        for value in view.operands[at]:
            if last[value] > deepest:
                deepest = last[value]
            if weight[storage[value]] and key is None:
                key = (storage[value], names[at])
        computes = key is not None and not (node.aliases and not node.mutates)
        backward = _backward(node)
        if computes and not backward:
            assert key is not None
            lookup = names[at] in LOOKUPS
            if not lookup or _index_is_data(view, at, data):
                given = view.source[view.operands[at][-1]] if lookup else -1
                if key == first and (worked or not lookup) or (lookup and worked and used.get(key, given) != given):
                    current += 1
                    used.clear()
                    first, worked = None, False
                first = first or key
                worked = worked or not lookup
                used[key] = given
            fixed[at] = 1
            deepest = current
        elif backward:
            fixed[at] = 1
        call[at] = current
        for value in node.outputs:
            if value >= 0:
                last[value] = deepest
        for value in node.mutates:
            last[value] = max(last[value], deepest)
    if current:
        _pull(view, call, last, fixed)
    return call


def _pull(view: Structure, call: list[int], last: list[int], fixed: bytearray) -> None:
    """What prepares a call (masks, positions) belongs to it, though it comes before its first weight."""
    for at in range(len(call) - 1, -1, -1):
        if fixed[at]:
            continue
        needed = -1
        for value in view.steps[at].outputs:
            if value >= 0:
                if last[value] >= call[at]:
                    needed = -1
                    break
                for user in view.users[value]:
                    if needed < 0 or call[user] < needed:
                        needed = call[user]
        if needed > call[at]:
            call[at] = needed


@once
def given_data(graph: Graph) -> bytearray:
    """By value: whether it is given by the program (random numbers are, too), or computed from what is."""
    view, heavy = structure(graph), set(weights(graph))
    data = bytearray(len(graph.values))
    for entry in graph.inputs:
        data[entry.value] = entry.value not in heavy
    names = view.names
    for at, node in enumerate(view.steps):
        given = names[at] in DRAWS
        for value in view.operands[at]:
            if data[value]:
                given = True
                break
        if given:
            for value in node.outputs:
                if value >= 0:
                    data[value] = 1
            for value in node.mutates:
                data[view.storage[value]] = data[value] = 1
    _starts(view, data)
    return data


def _index_is_data(view: Structure, at: int, data: bytearray) -> bool:
    given = index_of(view, at)
    return given >= 0 and bool(data[given])


def index_of(view: Structure, at: int) -> int:
    """The numbers of the rows that a look-up looks up; -1: there are none."""
    operands = view.operands[at]
    if len(operands) < 2:
        return -1
    return operands[-1 if view.names[at].startswith("index") else 1]


def _starts(view: Structure, data: bytearray) -> None:
    """A constant that looks up a table which data looks up, too, stands for data: a start token. Small tables are of
    kinds (of segments, of modalities), not of words."""
    lookups = [at for name in LOOKUPS & view.by_name.keys() for at in view.by_name[name] if index_of(view, at) >= 0]
    spoken = {view.storage[view.operands[at][0]] for at in lookups if data[index_of(view, at)]}
    for at in lookups:
        given = index_of(view, at)
        constant = view.made_by(view.source[given]) in _CONSTANTS
        table = view.storage[view.operands[at][0]]
        if constant and not data[given] and table in spoken and view.shape(table)[0] > _FEW_ROWS:
            data[given] = 1
