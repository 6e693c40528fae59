"""Denoisers: models that are told how much noise is in a picture, and give one of the same shape; called in a loop."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from genie.graph import Evidence, Graph
from genie.graph.structure import PARTS, SAME
from genie.match import ACTIVATION, LINEAR, Finder, Match, Structure, calls, flow, once, structure, trained_calls
from genie_patterns_vision.pictures import bits_of, convolutions, is_weight, weighted

_LINEAR = frozenset(LINEAR.split())
_ACTIVATION = frozenset(ACTIVATION.split())
_JOINS = SAME | PARTS | frozenset("cat stack mul constant_pad_nd add".split())
_FARTHEST = 12


class Timestep(NamedTuple):
    """A number becomes features by sines and cosines, and goes through products. ``nodes`` are positions, ``product``
    that of the first product."""

    nodes: tuple[int, ...]
    product: int


class Denoiser(NamedTuple):
    """One call of a denoiser: entries of its picture and its time as bits, and positions it lies between."""

    entries: int
    first: int
    last: int
    reason: str
    confidence: float


class Denoise(Finder):
    """Labels calls of a denoiser. It is one by a timestep embedding and a result of its picture's shape; or by a
    picture that is computed from the result of the call before, with no other picture beside it. What is computed from
    neither picture nor time, as prompts are, keeps its phase, and a training step keeps its own."""

    name = "vision-denoise"
    specificity = 25

    def find(self, view: Structure) -> Iterator[Match]:
        graph = view.graph
        steps = view.steps
        for each in timesteps(graph):
            yield Match([steps[at] for at in each.nodes], _TIMESTEP)
        found = denoisers(graph)
        if not found:
            return
        call, bits, timed = calls(graph), flow(graph).bits, _timed(graph)
        trained = trained_calls(graph)
        shared: dict[tuple[str, float], dict[str, object]] = {}
        nodes: dict[int, list[int]] = {}
        for at in range(min(each.first for each in found.values()), len(steps)):
            its = found.get(call[at])
            if its is None or not its.first <= at <= its.last:
                continue
            if timed[at] or bits_of(view, bits, at) & its.entries:
                nodes.setdefault(call[at], []).append(at)
        for now, members in nodes.items():
            if now in trained:
                continue
            its = found[now]
            labels = shared.setdefault((its.reason, its.confidence), _phase(its))
            yield Match([steps[at] for at in members], labels)


_TIMESTEP = {
    "role": "timestep_embedding",
    "evidence": (Evidence("role", "structure", "sines and cosines of a number, and products of them", 0.95),),
}


def _phase(its: Denoiser) -> dict[str, object]:
    return {"phase": "denoise", "evidence": (Evidence("phase", "structure", its.reason, its.confidence),)}


@once
def timesteps(graph: Graph) -> tuple[Timestep, ...]:
    """The timestep embeddings of a graph, in order."""
    view = structure(graph)
    if "cos" not in view.by_name:
        return ()
    found = (_timestep(view, at) for at in view.by_name.get("sin", ()))
    return tuple(each for each in found if each is not None)


def _timestep(view: Structure, sine: int) -> Timestep | None:
    operands = view.operands[sine]
    if not operands:
        return None
    angle = operands[0]
    cosine = next((at for at in view.users[angle] if view.names[at] == "cos"), -1)
    # A row of angles for each picture, or one for all of them; positions have a row each, and more dimensions.
    if cosine < 0 or len(view.shape(angle)) > 2 or _counts(view, angle):
        return None
    nodes = [sine, cosine]
    if view.maker[angle] >= 0:
        nodes.append(view.maker[angle])
    front = [view.steps[sine].outputs[0], view.steps[cosine].outputs[0]]
    seen = set(nodes)
    joined = False
    for _ in range(_FARTHEST):
        following: list[int] = []
        for value in front:
            for at in view.users[value]:
                if at in seen:
                    continue
                name, made = view.names[at], view.steps[at].outputs
                if name in _LINEAR and joined and weighted(view, at):
                    return Timestep((*nodes, *_products(view, at)), at)
                if name in _JOINS and made and made[0] >= 0:
                    joined = joined or name in ("cat", "stack")
                    seen.add(at)
                    nodes.append(at)
                    following.append(made[0])
        front = following[:8]
    return None


def _counts(view: Structure, angle: int) -> bool:
    """Whether the rows of angles are positions: counted, as frequencies are along the other axis."""
    shape = view.shape(angle)
    if len(shape) < 2 or shape[0] == 1:
        return False
    front, seen = [angle], 0
    while front and seen < 24:
        value = front.pop()
        seen += 1
        maker = view.maker[value]
        if maker < 0:
            continue
        if view.names[maker] in ("arange", "cumsum"):
            along = view.shape(value)
            # Frequencies are counted, too: half as many as there are features.
            if along and along[0] == shape[0] and along[0] != shape[-1]:
                return True
            continue
        front.extend(view.operands[maker])
    return False


def _products(view: Structure, at: int) -> list[int]:
    """The first product, and a second behind an activation."""
    found = [at]
    value = view.steps[at].outputs[0]
    for _ in range(4):
        following = [user for user in view.users[value] if view.names[user] in _ACTIVATION | SAME | _LINEAR]
        if len(following) != 1 or value < 0:
            break
        user = following[0]
        found.append(user)
        if view.names[user] in _LINEAR:
            return found
        made = view.steps[user].outputs
        value = made[0] if made and made[0] >= 0 else value
    return [at]


@once
def denoisers(graph: Graph) -> dict[int, Denoiser]:
    """By call: what is a denoiser."""
    view = structure(graph)
    looped = _looped(graph, view) if convolutions(graph) else {}
    return looped | (_told(graph, view) if timesteps(graph) else {})


def _told(graph: Graph, view: Structure) -> dict[int, Denoiser]:
    """Calls with a timestep embedding, and a result of the shape of what entered."""
    call, currents = calls(graph), flow(graph)
    timed = _timed(graph)
    times: dict[int, int] = {}  # call → entries of times
    for each in timesteps(graph):
        mine = bits_of(view, currents.bits, each.product)
        times[call[each.product]] = times.get(call[each.product], 0) | mine
    words = sum(1 << number for number, entry in enumerate(currents.entries) if entry.way == "ids")
    products = _products_of(graph, view)
    given: dict[int, dict[tuple[int, ...], int]] = {}  # call → shape → entries it is computed from
    first: dict[int, int] = {}
    found: dict[int, Denoiser] = {}
    for at in products:
        now = call[at]
        if now not in times:
            continue
        if not timed[at]:
            taken = view.operands[at][1 if view.names[at] in ("addmm", "_addmm_activation") else 0]
            if not is_weight(view, taken):
                first.setdefault(now, at)
                mine = bits_of(view, currents.bits, at)
                given.setdefault(now, {}).update({view.shape(taken): mine, view.shape(view.source[taken]): mine})
            continue
        known = given.get(now, {})
        for shape in _shapes_after(view, view.steps[at].outputs[0]):
            fits = shape if shape in known else _with_variance(shape, known)
            if fits is not None and (not known[fits] or known[fits] & ~times[now]):
                size = "×".join(map(str, shape))
                reason = f"told a time by sines and cosines, it gives {size} for what it was given"
                entries = (times[now] | known[fits]) & ~words
                found[now] = Denoiser(entries, first[now], _until(products, at, len(view.steps)), reason, 0.95)
    for each in timesteps(graph):
        its = found.get(call[each.product])
        if its is not None and each.nodes[0] < its.first:
            found[call[each.product]] = its._replace(first=min(each.nodes))
    return found


def _with_variance(shape: tuple[int, ...], known: dict[tuple[int, ...], int]) -> tuple[int, ...] | None:
    """The shape of a picture for which noise and its variance are given, as twice as many channels."""
    half = (shape[0], shape[1] // 2, *shape[2:]) if len(shape) > 2 and shape[1] % 2 == 0 else ()
    return half if half in known else None


def _until(products: list[int], end: int, count: int) -> int:
    """After its result a denoiser's call goes on to the next product with a weight: the picture is updated."""
    after = bisect_right(products, end)
    return products[after] - 1 if after < len(products) else count - 1


def _shapes_after(view: Structure, value: int) -> Iterator[tuple[int, ...]]:
    """The shape of a product's result, and those it is brought into without computing."""
    for _ in range(8):
        if value < 0:
            return
        yield view.shape(value)
        users = [
            at for at in view.users[value] if view.names[at] in SAME or view.names[at] == "add" and _bias(view, at)
        ]
        if len(view.users[value]) > 2 or not users:
            return
        made = view.steps[users[0]].outputs
        if not made or made[0] < 0:
            users = [at for at in view.users[value] if view.names[at] in SAME]
            made = view.steps[users[0]].outputs if users else ()
        value = made[0] if made else -1


def _bias(view: Structure, at: int) -> bool:
    return bool(view.steps[at].mutates)


def _products_of(graph: Graph, view: Structure) -> list[int]:
    """Positions of products and convolutions with weights, in order."""
    found = list(convolutions(graph))
    for name in _LINEAR & view.by_name.keys():
        for at in view.by_name[name]:
            if weighted(view, at) and view.steps[at].outputs[0] >= 0:
                found.append(at)
    return sorted(found)


@once
def _timed(graph: Graph) -> bytearray:
    """By position: whether a node's result depends on a time told in the same call."""
    view = structure(graph)
    products = {each.product for each in timesteps(graph)}
    call = calls(graph)
    told = [-1] * len(view.maker)  # by value: the call in which it was made from a time
    found = bytearray(len(view.steps))
    for at in range(min(products, default=len(view.steps)), len(view.steps)):
        now = call[at]
        mine = at in products
        if not mine:
            for value in view.operands[at]:
                if told[value] == now:
                    mine = True
                    break
        if mine:
            found[at] = 1
            node = view.steps[at]
            for value in node.outputs:
                if value >= 0:
                    told[value] = now
            for value in node.mutates:
                told[value] = told[view.storage[value]] = now
    return found


def _looped(graph: Graph, view: Structure) -> dict[int, Denoiser]:
    """Calls whose only picture comes from the call before, and the one they begin with."""
    call, currents = calls(graph), flow(graph)
    by_call: dict[int, list[int]] = {}
    for number, entry in enumerate(currents.entries):
        if entry.way in ("image", "frames", "signal"):
            by_call.setdefault(entry.call, []).append(number)
    if len(by_call) < 2:
        return {}
    chained: set[int] = set()
    for now, mine in by_call.items():
        before = by_call.get(now - 1, [])
        if len(mine) == len(before) == 1:
            one, other = currents.entries[mine[0]], currents.entries[before[0]]
            same = view.shape(one.value) == view.shape(other.value)
            if same and currents.bits[one.value] >> before[0] & 1:
                chained |= {now - 1, now}
    reason = "its picture is computed from the result of the call before"
    found: dict[int, Denoiser] = {}
    for at, now in enumerate(call):
        if now in chained and now not in found:
            (number,) = by_call[now]
            found[now] = Denoiser(1 << number, at, len(view.steps) - 1, reason, 0.7)
    return found
