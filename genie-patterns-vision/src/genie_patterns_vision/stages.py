"""Where a vision model may be cut: stages of convolution work, blocks of vision transformers."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from genie.graph import Evidence, Graph
from genie.match import Attention, Finder, Match, Structure, attentions, calls, flow, once, structure
from genie_patterns_vision.denoise import denoisers
from genie_patterns_vision.pictures import POOLS, RESIZES, TRAINED, bits_of, convolutions, is_weight, pictures

_FEWEST = 2  # convolutions besides patch embeddings that make a convolution model of a call
_FARTHEST = 24


class Stage(NamedTuple):
    """Work at one resolution, between two changes of it. ``boundary`` maps positions of nodes whose value another stage
    takes to the bytes of that value; ``members`` are positions."""

    call: int
    number: int  # in its call
    size: tuple[int, ...]
    members: list[int]
    boundary: dict[int, int]


class Stages(NamedTuple):
    """``of`` is by value: the stage that it is made in, or -1."""

    found: list[Stage]
    of: list[int]


_NONE = Stages([], [])


class Cuts(Finder):
    """Puts nodes into groups that stay together. Between groups, few bytes go over.

    Consecutive convolution work at one resolution is ``colocation_group="stage:<k>"``, counted from 0 in each call of
    the model. A stage begins where a convolution, a pool or an interpolation changes the resolution; norms,
    activations, products and attention between two convolutions belong to the stage of the first. So a boundary of
    stages is where the group changes from a node to one that takes its value. Roles stay the operators' own: of a node
    at a boundary the evidence for the group says that it is the last of its stage, and how many bytes go on. The
    boundary with the fewest is the cheapest place to cut a pipeline.

    Vision transformers keep one resolution; there, each block is ``colocation_group="block:<k>"``, from behind one
    block's last residual sum to its own.
    """

    name = "vision-cuts"
    specificity = 12

    def find(self, view: Structure) -> Iterator[Match]:
        graph = view.graph
        if not pictures(graph):
            return
        found = stages(graph).found
        for each in found:
            size = "×".join(map(str, each.size))
            group = f"stage:{each.number}"
            inner = [at for at in each.members if at not in each.boundary]
            if inner:
                yield Match([view.steps[at] for at in inner], _group(group, f"convolution work at {size}"))
            for at, size_in_bytes in each.boundary.items():
                reason = f"the last at {size}: {size_in_bytes} bytes go on to another stage"
                yield Match((view.steps[at],), _group(group, reason))
        staged = {each.call for each in found}
        taken: set[int] = set()
        for number, members in _blocks(view, staged):
            # Where blocks cross, a node is of the first.
            own = [at for at in members if at not in taken]
            taken.update(own)
            yield Match([view.steps[at] for at in own], _group(f"block:{number}", "a block of a transformer"))


def _group(group: str, reason: str) -> dict[str, object]:
    return {"colocation_group": group, "evidence": (Evidence("colocation_group", "structure", reason, 0.9),)}


def _resolutions(graph: Graph, view: Structure) -> dict[int, tuple[int, ...]]:
    """By position of what may change a resolution: the resolution after it. One position is none: a pool over
    everything, and what is done with it."""
    found: dict[int, tuple[int, ...]] = {}
    working: dict[int, int] = {}
    call = calls(graph)
    for each in convolutions(graph).values():
        size = view.shape(each.output)[2:]
        if len(size) > 1 and prod(size) > 1:
            found[each.at] = size
            if not (each.entry and each.ratio == each.kernel[0] > 1):
                working[call[each.at]] = working.get(call[each.at], 0) + 1
    if max(working.values(), default=0) < _FEWEST:
        return {}
    for name in (POOLS | RESIZES) & view.by_name.keys():
        for at in view.by_name[name]:
            outputs = view.steps[at].outputs
            shape = view.shape(outputs[0]) if outputs and outputs[0] >= 0 else ()
            if len(shape) > 3 and prod(shape[2:]) > 1:
                found[at] = shape[2:]
    return {at: size for at, size in found.items() if working.get(call[at], 0) >= _FEWEST}


@once
def stages(graph: Graph) -> Stages:
    """The stages of a graph, in order."""
    view = structure(graph)
    sizes = _resolutions(graph, view)
    if not sizes:
        return _NONE
    call, bits, seen = calls(graph), flow(graph).bits, pictures(graph)
    of = [-1] * len(view.maker)
    found: list[Stage] = []
    numbers: dict[tuple[int, int, tuple[int, ...]], int] = {}  # (call, stage before, size) → stage
    counts: dict[int, int] = {}
    waiting: list[list[int]] = []  # by stage: members, if there is more work at its resolution
    calls_of: list[int] = []
    all_operands, steps = view.operands, view.steps
    for at in range(min(sizes), len(steps)):
        latest, mixed = -1, False
        for value in all_operands[at]:
            stage = of[value]
            if stage != latest and stage >= 0:
                # Of maps of one size the later leads on; of others the first: queries attend to fewer keys.
                if latest < 0 or (stage > latest and found[stage].size == found[latest].size):
                    mixed, latest = latest >= 0, stage
                else:
                    mixed = True
        size = sizes.get(at)
        if latest < 0 and size is None:
            continue
        node, now = steps[at], call[at]
        if latest >= 0 and calls_of[latest] != now:
            latest, mixed = -1, False
            if size is None:
                continue
        if node.semantics is not None and node.semantics.phase in TRAINED:
            continue
        mine = latest
        if size is not None:
            if latest < 0 and not bits_of(view, bits, at) & seen:
                continue
            if latest < 0 or found[latest].size != size:
                key = (now, latest, size)
                known = numbers.get(key)
                if known is None:
                    known = numbers[key] = len(found)
                    number = counts[now] = counts.get(now, -1) + 1
                    found.append(Stage(now, number, size, [], {}))
                    waiting.append([])
                    calls_of.append(now)
                mine, mixed = known, latest >= 0
            if latest >= 0:
                found[latest].members.extend(waiting[latest])
                waiting[latest].clear()
            found[mine].members.append(at)
        else:
            waiting[mine].append(at)
        if mixed:
            for value in all_operands[at]:
                stage = of[value]
                if stage >= 0 and stage != mine and calls_of[stage] == now:
                    found[stage].boundary[_last(view, value, at)] = graph.values[value].nbytes
        for value in node.outputs:
            if value >= 0:
                of[value] = mine
    _tails(graph, view, found, waiting)
    return Stages(found, of)


def _last(view: Structure, value: int, before: int) -> int:
    """The node whose work a value is: that computed it, or wrote to it last."""
    maker = view.maker[view.source[value]]
    maker = maker if maker >= 0 else view.maker[value]
    written = view.writes.get(view.storage[value], ())
    return max((at for at in written if at < before), default=maker)


def _tails(graph: Graph, view: Structure, found: list[Stage], waiting: list[list[int]]) -> None:
    """What comes after the last convolution: of maps it is the stage's, and of a head that only computes on; what
    attends, or meets text, is work of another kind."""
    call = calls(graph)
    other = {call[each.nodes[0]] for each in attentions(graph)}
    other |= {entry.call for entry in flow(graph).entries if entry.way == "ids"}
    for stage, rest in zip(found, waiting, strict=True):
        for at in rest:
            node = view.steps[at]
            made = next((value for value in node.outputs if value >= 0), node.mutates[0] if node.mutates else -1)
            if stage.call not in other or (made >= 0 and view.shape(made)[2:] == stage.size):
                stage.members.append(at)
    for stage in found:
        members = set(stage.members)
        for at in [at for at in stage.boundary if at not in members]:
            stage.members.append(at)


# --- blocks


def _blocks(view: Structure, staged: set[int]) -> Iterator[tuple[int, list[int]]]:
    """(number in its call, positions) of each block of a transformer that works on pictures."""
    graph = view.graph
    call, bits, seen = calls(graph), flow(graph).bits, pictures(graph)
    noisy = denoisers(graph)
    by_call: dict[int, list[Attention]] = {}
    for each in attentions(graph):
        now = call[each.nodes[0]]
        mine = bits[each.query]
        if now not in staged and mine & seen and (not mine & ~seen or now in noisy):
            by_call.setdefault(now, []).append(each)
    for found in by_call.values():
        joins = [(each, _join(view, each.output)) for each in found]
        whole = [(each, at, skip) for each, (at, skip) in joins if at >= 0]
        starts = [_last(view, skip, each.nodes[0]) for each, _, skip in whole]
        for number, (_, at, _) in enumerate(whole):
            end = starts[number + 1] if number + 1 < len(whole) else _end(view, at)
            if starts[number] < end:
                members = range(starts[number] + 1, end + 1)
                yield number, [m for m in members if not (mixed := bits_of(view, bits, m)) or mixed & seen]


def _join(view: Structure, value: int) -> tuple[int, int]:
    """The residual sum that a branch's result goes into: its position, and the value beside the branch; or -1, -1."""
    front = [value]
    for _ in range(_FARTHEST):
        following: list[int] = []
        for each in front:
            for at in view.users[each]:
                operands = view.operands[at]
                made = view.steps[at].outputs[0] if view.steps[at].outputs else -1
                if view.names[at] == "add" and len(operands) == 2:
                    other = operands[1] if operands[0] == each else operands[0]
                    if other != each and view.shape(other) == view.shape(each) and not is_weight(view, other):
                        return at, other
                if made >= 0:
                    following.append(made)
        front = following[:6]
    return -1, -1


def _end(view: Structure, at: int) -> int:
    """Where the last block ends: at the sum after that of its attention."""
    node = view.steps[at]
    total = node.outputs[0] if node.outputs and node.outputs[0] >= 0 else next(iter(node.mutates), -1)
    if total < 0:
        return at
    after, skip = _join(view, total)
    return after if after > at and skip >= 0 else at
