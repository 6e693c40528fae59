"""Norms and MLPs that are written out: by what is computed, whatever the order of sums and factors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from genie.graph import Evidence
from genie.match import ACTIVATION, LINEAR, Finder, Match, Structure, weights

_LINEAR = frozenset(LINEAR.split())
_NONLINEAR = frozenset(ACTIVATION.split()) | frozenset("erf erfc exp maximum minimum where log1p softmax".split())
# Each element of the result is made of elements in its place.
_ELEMENTWISE = _NONLINEAR | frozenset(
    "add sub mul div pow square neg rsub abs reciprocal clamp gt ge lt le ne eq isnan expm1".split()
)
_PARTS = frozenset("slice split split_with_sizes chunk select unbind".split())
_REDUCES = frozenset("sum mean var var_mean".split())
_STATISTICS = _REDUCES | frozenset("add sub mul div pow square maximum clamp clamp_min abs rsub".split())
_SQUARES = frozenset("pow square mul abs".split())
_FARTHEST = 24  # nodes of one activation, or of one norm


class Written(Finder):
    """Norms around the root of a variance, and products whose data is a nonlinear function of other products."""

    name = "llm-written"
    specificity = 5

    def find(self, view: Structure) -> Iterator[Match]:
        yield from _norms(view)
        yield from _mlps(view)


def _labels(role: str, reason: str, confidence: float) -> dict[str, object]:
    return {"role": role, "evidence": (Evidence("role", "structure", reason, confidence),)}


# --- norms


_NORM = _labels("norm", "less its mean and divided by its deviation, written out", 0.9)
_SCALED = _labels("norm", "divided by its root mean square, written out", 0.9)
_KEPT = _labels("norm", "less a mean that is kept and divided by a deviation that is kept, written out", 0.9)


def _norms(view: Structure) -> Iterator[Match]:
    for name in ("rsqrt", "sqrt"):
        for at in view.by_name.get(name, ()):
            if _learns(view, at):
                continue
            found = _statistics(view, at)
            if found is not None:
                yield from _norm(view, at, found)


class _Statistics(NamedTuple):
    nodes: Sequence[int]
    of: int  # what they are of; -1: they are kept
    centred: bool


def _statistics(view: Structure, root: int) -> _Statistics | None:
    """What a square root is of: the mean of the squares of something, less that of its mean or not."""
    heavy = weights(view.graph)
    if all(value in heavy for value in view.operands[root]):
        return _Statistics((), -1, True)
    nodes: list[int] = []
    front = [view.operands[root][0]]
    squared, centred = False, False
    sources: list[int] = []
    while front and len(nodes) < _FARTHEST:
        value = view.source[front.pop()]
        at = view.maker[value]
        if at < 0 or view.names[at] not in _STATISTICS:
            continue
        if at in nodes:
            continue
        nodes.append(at)
        if view.names[at] not in _REDUCES:
            front += view.operands[at]
            centred = centred or view.names[at] == "sub"
            continue
        of = view.source[view.operands[at][0]]
        maker = view.maker[of]
        if view.names[at].startswith("var"):
            squared = centred = True
        elif maker >= 0 and view.names[maker] in _SQUARES:
            nodes.append(maker)
            squared = True
            of = view.source[view.operands[maker][0]]
            inner = view.maker[of]
            if inner >= 0 and view.names[inner] == "sub":
                nodes.append(inner)
                centred = True
                front += view.operands[inner][1:]
                of = view.source[view.operands[inner][0]]
        sources.append(of)
    if not squared or not sources or any(each != sources[0] for each in sources):
        return None
    divided = any(view.names[at] in ("mean", "var", "var_mean", "div", "mul") for at in nodes)
    return _Statistics(nodes, sources[0], centred) if divided else None


def _norm(view: Structure, root: int, found: _Statistics) -> Iterator[Match]:
    """The root, what it is of, and what is multiplied with it or divided by it: up to the shift."""
    heavy = weights(view.graph)
    if not view.shape(view.steps[root].outputs[0]):
        return  # of everything there is: a length, no norm
    nodes = [*found.nodes, root]
    front = [view.steps[root].outputs[0]]
    ends: list[int] = []
    for _ in range(4):
        following: list[int] = []
        for value in front:
            for at in view.users[value]:
                made = view.steps[at].outputs[0] if view.steps[at].outputs else -1
                if made < 0 or at in nodes or _learns(view, at):
                    continue
                if view.source[made] == view.source[value]:
                    following.append(made)
                elif view.names[at] in ("mul", "div") or (at in ends and view.names[at] == "add"):
                    others = [each for each in view.operands[at] if view.source[each] != view.source[value]]
                    if (
                        not ends
                        or found.of < 0
                        or any(each in heavy or _is_of(view, each, found.of) for each in others)
                    ):
                        nodes.append(at)
                        ends.append(at)
                        following.append(made)
                elif ends and view.names[at] == "add" and any(view.part[each] in heavy for each in view.operands[at]):
                    nodes.append(at)
        front = following
    if not ends:
        return
    for at in list(nodes):  # what is normalised, less its mean
        for value in view.operands[at]:
            maker = view.maker[view.source[value]]
            if at in ends and maker >= 0 and view.names[maker] == "sub" and maker not in nodes:
                nodes.append(maker)
    labels = _KEPT if found.of < 0 else _NORM if found.centred else _SCALED
    yield Match([view.steps[at] for at in nodes], labels)


def _is_of(view: Structure, value: int, of: int) -> bool:
    """Whether a value is what is normalised, less a mean or not."""
    value = view.source[value]
    at = view.maker[value]
    return value == of or (at >= 0 and view.names[at] == "sub" and view.source[view.operands[at][0]] == of)


def _learns(view: Structure, at: int) -> bool:
    semantics = view.steps[at].semantics
    return semantics is not None and semantics.phase in ("backward", "optimizer")


# --- MLPs


_DOWN = _labels("mlp_down", "of a nonlinear function of another product, written out", 0.8)
_UP = _labels("mlp_up", "goes through a nonlinear function into another product", 0.8)
_GATE = _labels("mlp_gate", "goes through a nonlinear function, and is a factor of another product", 0.8)
_ACTIVATION = _labels("mlp_activation", "a nonlinear function, written out", 0.8)


class _Way(NamedTuple):
    products: dict[int, bool]  # those that are reached, and whether by a nonlinear function
    nodes: list[int]


def _mlps(view: Structure) -> Iterator[Match]:
    heavy = weights(view.graph)

    def weighted(at: int) -> bool:
        return any(view.storage[value] in heavy or value in heavy for value in view.operands[at])

    for name in _LINEAR & view.by_name.keys():
        for down in view.by_name[name]:
            if not weighted(down) or _learns(view, down):
                continue
            data = next((value for value in _factors(view, down) if value not in heavy), -1)
            way = _way(view, data, heavy) if data >= 0 else None
            if way is None or not any(way.products.values()) or len(way.products) > 2:
                continue
            if not all(weighted(at) for at in way.products):
                continue
            if len(way.products) == 2 and all(way.products.values()):
                continue  # which of them is the gate?
            yield Match([view.steps[down]], _DOWN)
            for at, bent in way.products.items():
                yield Match([view.steps[at]], _GATE if bent and len(way.products) == 2 else _UP)
            if way.nodes:
                yield Match([view.steps[at] for at in way.nodes], _ACTIVATION)


def _factors(view: Structure, at: int) -> Sequence[int]:
    return view.operands[at][1:] if view.names[at] in ("addmm", "baddbmm", "_addmm_activation") else view.operands[at]


def _way(view: Structure, data: int, heavy: object) -> _Way | None:
    """The products that a value is computed from element by element; None where it is from anything else."""
    products: dict[int, bool] = {}
    nodes: list[int] = []
    seen: set[tuple[int, bool]] = set()
    front = [(view.source[data], False)]
    while front:
        value, bent = front.pop()
        if (value, bent) in seen:
            continue
        seen.add((value, bent))
        at = view.maker[value]
        if at < 0 or len(seen) > _FARTHEST or _learns(view, at):
            return None
        name = view.names[at]
        if name in _LINEAR:
            products[at] = products.get(at, False) or bent
            continue
        if name in _PARTS:
            front.append((view.source[view.operands[at][0]], bent))
            continue
        if name not in _ELEMENTWISE:
            return None
        given = [value for value in view.operands[at] if not _shifts(view, value, heavy)]
        if len(given) == 1 and len(view.operands[at]) == 2 and name == "add":
            pass  # a bias
        elif at not in nodes:
            nodes.append(at)
        front += [(view.source[value], bent or name in _NONLINEAR) for value in given]
    return _Way(products, nodes) if products else None


def _shifts(view: Structure, value: int, heavy: object) -> bool:
    """Whether a value is a bias, or a number for all elements."""
    shape = view.shape(value)
    return view.part[value] in heavy or value in heavy or len(shape) - shape.count(1) == 0  # type: ignore[operator]
