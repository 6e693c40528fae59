"""Where vision models end: classes, boxes, classes of every position; and what a decoder takes from its encoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from genie.graph import Evidence
from genie.graph.structure import PARTS, SAME
from genie.match import ACTIVATION, LINEAR, Finder, Match, Structure, calls, flow
from genie_patterns_vision.denoise import denoisers
from genie_patterns_vision.pictures import POOLS, RESIZES, TRAINED, convolutions, pictures, weighted
from genie_patterns_vision.stages import stages

_LINEAR = frozenset(LINEAR.split())
# What may become of the scores of classes: a choice, a probability, a loss.
_ENDS = SAME | frozenset(
    """softmax _softmax log_softmax _log_softmax sigmoid argmax topk sort max amax nll_loss_forward nll_loss
    nll_loss2d_forward nll_loss2d cross_entropy_loss binary_cross_entropy_with_logits binary_cross_entropy cat select
    slice split gt ge""".split()
)
_CHOICES = frozenset(
    """softmax _softmax log_softmax _log_softmax sigmoid argmax topk nll_loss_forward nll_loss nll_loss2d_forward
    cross_entropy_loss binary_cross_entropy_with_logits""".split()
)
_NORMS = frozenset("native_layer_norm layer_norm native_batch_norm batch_norm rms_norm".split())
_PASSES = SAME | frozenset(ACTIVATION.split()) | _NORMS | frozenset(("hardswish",))
_FARTHEST = 16


class _End(NamedTuple):
    """The last product of a branch: its shapes until it leaves the graph, and the operators on the way."""

    at: int
    shapes: tuple[tuple[int, ...], ...]
    names: frozenset[str]


class Heads(Finder):
    """Products and convolutions whose result leaves the graph."""

    name = "vision-heads"
    specificity = 22

    def find(self, view: Structure) -> Iterator[Match]:
        graph = view.graph
        seen = pictures(graph)
        if not seen:
            return
        for at in _skips(view):
            yield Match((view.steps[at],), _SKIP)
        call, noisy = calls(graph), denoisers(graph)
        ends: dict[int, list[_End]] = {}
        for end in _ends(view, seen):
            if call[end.at] not in noisy:
                ends.setdefault(call[end.at], []).append(end)
        for found in ends.values():
            boxes = _boxes(found)
            if boxes:
                yield Match([view.steps[at] for at in boxes], _DETECTION)
            for end in found:
                if end.at not in boxes:
                    labels = _classifies(view, end) or _segments(view, end)
                    if labels is not None:
                        yield Match((view.steps[end.at],), labels)


def _labels(role: str, reason: str, confidence: float = 0.9) -> dict[str, object]:
    return {"role": role, "evidence": (Evidence("role", "structure", reason, confidence),)}


_SKIP = _labels("skip", "a map of an earlier stage beside one of its size that went through smaller ones")
_DETECTION = _labels("detection_head", "scores and four numbers for each of several places")
_SEGMENTATION = _labels("segmentation_head", "scores for each position, with upsampling")
_MASK = _labels("segmentation_head", "one number for each position, with upsampling", 0.6)
_CLASSES = {
    "pool": _labels("classifier_head", "a product of what was pooled over all positions"),
    "token": _labels("classifier_head", "a product of one token of all"),
    "flat": _labels("classifier_head", "a product of maps, flattened", 0.8),
}


def _ends(view: Structure, seen: int) -> Iterator[_End]:
    bits = flow(view.graph).bits
    convolved = convolutions(view.graph)
    for at in convolved:
        output = view.steps[at].outputs[0]
        if len(view.shape(output)) == 4 and bits[output] & seen:
            end = _end(view, at, output, _ENDS | RESIZES)
            if end is not None:
                yield end
    for name in _LINEAR & view.by_name.keys():
        for at in view.by_name[name]:
            output = view.steps[at].outputs[0] if view.steps[at].outputs else -1
            if output >= 0 and bits[output] & seen and weighted(view, at):
                end = _end(view, at, output, _ENDS)
                if end is not None:
                    yield end


def _end(view: Structure, at: int, output: int, allowed: frozenset[str]) -> _End | None:
    if any(
        view.names[user] not in allowed and not _adds(view, user) and not _is_trained(view, user)
        for user in view.users[output]
    ):
        return None  # of most, this says it
    if _is_trained(view, at):
        return None
    shapes, names = [view.shape(output)], set()
    front, reached = [output], {output}
    for _ in range(_FARTHEST):
        following: list[int] = []
        for value in front:
            for user in view.users[value]:
                its, name = view.steps[user], view.names[user]
                if _is_trained(view, user):
                    continue
                if name not in allowed and not _adds(view, user):
                    return None
                names.add(name)
                for made in its.outputs:
                    if made >= 0 and made not in reached:
                        reached.add(made)
                        following.append(made)
                        if name in SAME or name in RESIZES:
                            shapes.append(view.shape(made))
        front = following[:8]
    return _End(at, tuple(shapes), frozenset(names))


def _is_trained(view: Structure, at: int) -> bool:
    its = view.steps[at].semantics
    return its is not None and its.phase in TRAINED


def _adds(view: Structure, at: int) -> bool:
    """Whether a node adds in place, as biases are."""
    return view.names[at] == "add" and bool(view.steps[at].mutates)


def _boxes(ends: list[_End]) -> set[int]:
    """Four numbers and some scores for each of the same places."""
    places: dict[tuple[int, ...], dict[int, set[int]]] = {}  # leading shape → width → positions
    for end in ends:
        for shape in end.shapes:
            if len(shape) == 3 and shape[1] > 1:
                places.setdefault(shape[:-1], {}).setdefault(shape[-1], set()).add(end.at)
    found: set[int] = set()
    for widths in places.values():
        boxes = widths.get(4, set())
        scores = {at for width, its in widths.items() if width != 4 for at in its} - boxes
        if boxes and scores:
            found |= boxes | scores
    return found


def _classifies(view: Structure, end: _End) -> dict[str, object] | None:
    output = view.steps[end.at].outputs[0]
    graph = view.graph
    if len(view.shape(output)) != 2 or flow(graph).bits[output] & ~pictures(graph):
        return None
    operands = view.operands[end.at]
    # Projections into a space of features have no bias, and nothing is chosen by them.
    if len(operands) < 3 and not end.names & (_CHOICES | {"add"}):
        return None
    first = 1 if view.names[end.at] in ("addmm", "_addmm_activation") else 0
    kind = _pooled(view, operands[first])
    return _CLASSES[kind] if kind else None


def _pooled(view: Structure, value: int) -> str:
    """How one row of features for each picture came about: by a pool, from one token, from maps laid flat."""
    for _ in range(_FARTHEST):
        maker = view.maker[value]
        if maker < 0 or not view.operands[maker]:
            return ""
        name, operands = view.names[maker], view.operands[maker]
        before = view.shape(operands[0])
        if name in POOLS or name in ("mean", "amax", "adaptive_avg_pool1d", "max"):
            return "pool"
        if name in PARTS and len(before) == 3:
            return "token"
        if name in _PASSES and len(before) in (4, 5) and len(view.shape(value)) == 2:
            return "pool" if before[2:] == (1,) * (len(before) - 2) else "flat"
        if name not in _PASSES and name not in PARTS and name not in _LINEAR and name != "cat":
            return ""
        value = operands[1 if name in ("addmm", "_addmm_activation") else 0]
    return ""


def _segments(view: Structure, end: _End) -> dict[str, object] | None:
    graph = view.graph
    convolution = convolutions(graph).get(end.at)
    if convolution is None or convolution.ratio > 1 and not convolution.transposed:
        return None
    output = convolution.output
    shape = view.shape(output)
    entries = [e for n, e in enumerate(flow(graph).entries) if flow(graph).bits[output] >> n & 1 and e.way == "image"]
    if shape[2] * shape[3] < 2 or not entries or not (end.names & RESIZES or _upsampled(view, end.at)):
        return None
    chosen = bool(end.names & _CHOICES)
    # As many channels as the picture has: another picture.
    if not chosen and any(shape[1] == view.shape(entry.value)[1] > 1 for entry in entries):
        return None
    return _SEGMENTATION if shape[1] > 1 or chosen else _MASK


def _upsampled(view: Structure, before: int) -> bool:
    call = calls(view.graph)
    for name in RESIZES & view.by_name.keys():
        if any(at < before and call[at] == call[before] for at in view.by_name[name]):
            return True
    return any(
        each.transposed and each.ratio > 1 and each.at <= before and call[each.at] == call[before]
        for each in convolutions(view.graph).values()
    )


def _skips(view: Structure) -> Iterator[int]:
    found, of = stages(view.graph)
    if not found:
        return
    for at in view.by_name.get("cat", ()):
        operands = view.operands[at]
        mine = {of[value] for value in operands if of[value] >= 0}
        if len(mine) > 1 and len({view.shape(value)[2:] for value in operands}) == 1:
            its = [found[number] for number in sorted(mine)]
            smaller = (each for each in found if its[0].number < each.number <= its[-1].number)
            if any(each.call == its[0].call and each.size < its[0].size for each in smaller):
                yield at
