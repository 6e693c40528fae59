"""What Genie says, read off an annotated graph's labels, and how it compares with the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import msgspec

import genie
from genie.graph import Graph, Input
from genie.graph.model import BoundNode
from semantics.stages import Range, Region
from semantics.truth import Call, Fusion, Tower, Truth

NONE = "–"  # no label
_PIECES = ("aten::split", "aten::split_with_sizes", "aten::chunk", "aten::unbind", "aten::tensor_split")
NOTABLE = 0.05  # of a call's work or nodes
RESIDENCIES = ("kv_cache", "recurrent_state", "weight", "input")


@attrs.frozen
class Item:
    """One question and its answer; ``count`` of it."""

    label: str  # workload, training, phase, residency, modality, fusion
    where: str
    truth: str
    answer: str
    right: bool
    count: int = 1
    note: str = ""


def nameless(graph: Graph) -> Graph:
    """The graph without modules, names of inputs and source lines: operators, shapes, origins and lineage are left."""
    return msgspec.structs.replace(
        graph,
        inputs=tuple(msgspec.structs.replace(each, name="") for each in graph.inputs),
        steps=tuple(msgspec.structs.replace(node, module=-1, source=-1) for node in graph.steps),
        modules=(),
        sources=(),
        name="",
    )


def judge(truth: Truth, region: Region, annotated: Graph, where: str) -> list[Item]:
    """Everything but residency, which needs the probe. Paths are those of the graph as captured, labels the
    annotated one's."""
    assert region.graph is not None
    labels, named = annotated.nodes(), region.graph.nodes()
    alone = [truth.calls[number].alone for number in region.calls]
    items = [_training(truth, region, annotated, where)]
    items += [_workload(truth.workload | (alone[0] if len(alone) == 1 else frozenset()), annotated, where)]
    for number, nodes in region.calls.items():
        items.append(_phase(truth.calls[number], labels[slice(*nodes)], f"{where} call {number}"))
        for tower in truth.towers:
            if tower.calls is None or number in tower.calls:
                items += _modality(tower, region, named, labels, nodes, f"{where} call {number}")
    return [*items, *_fusion(truth, region, named, labels, where)]


def residency(truth: Mapping[int, str], annotated: Graph, where: str) -> list[Item]:
    """Of all values that outlive a call: what enters and leaves the graph, what is written in place, and what the
    program told of. What enters and is nothing of these is ``input``, given for this call; others are none of these,
    and must not be called so."""
    root = _roots(annotated)
    entered = {entry.value for entry in annotated.inputs}
    written = {value for node in annotated.steps for value in node.mutates}
    families: dict[int, str] = {}
    for value, true in truth.items():
        families.setdefault(root.get(value, value), true)
    found: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], int] = {}
    for value in sorted(entered | set(annotated.outputs) | written | truth.keys()):
        answer = annotated.get_value(value).metadata.get("residency", NONE)
        answer = answer if answer in RESIDENCIES or answer == NONE else "other"
        nothing = "input" if value in entered else "other"
        known, family = truth.get(value), families.get(root.get(value, value))
        if known is None and family == "weight":
            true = family  # by definition: a view of one
        elif known == "undecided" or known is None and family is not None:
            # It is what it is, and shares memory with what is kept, or takes its own place: either is true.
            if answer in (nothing, NONE, "other", "recurrent_state" if "undecided" in (known, family) else family):
                continue
            true = nothing
        else:
            true = known or nothing
        found[true, answer] += 1
        example.setdefault((true, answer), value)
    return [
        Item(
            "residency",
            where,
            true,
            answer,
            true == answer or true == "other" and answer == NONE,
            count,
            _told(annotated, example[true, answer]),
        )
        for (true, answer), count in found.items()
    ]


def share(nodes: Iterable[BoundNode], key: str) -> tuple[str, dict[str, float]]:
    """The label most of the work has, by known FLOPs, then by nodes; and the share each label has of either,
    the larger."""
    flops: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for node in nodes:
        label = node.metadata.get(key, NONE)
        flops[label] += node.metadata.get("compute_flops") or 0
        count[label] += 1
    if not count:
        return NONE, {}
    most = max(count, key=lambda label: (flops[label], count[label]))
    work, number = flops.total() or 1, count.total()
    return most, {label: max(flops[label] / work, count[label] / number) for label in count}


def _workload(truth: frozenset[str], annotated: Graph, where: str) -> Item:
    answer = genie.summary(annotated).workload or NONE
    return Item("workload", where, _text(truth), answer, answer in truth)


def _training(truth: Truth, region: Region, annotated: Graph, where: str) -> Item:
    true = any("backward" in truth.calls[number].main for number in region.calls)
    answer = genie.summary(annotated).training
    return Item("training", where, str(true), str(answer), true == answer)


def _phase(call: Call, nodes: Sequence[BoundNode], where: str) -> Item:
    most, shares = share(nodes, "phase")
    missing = sorted(phase for phase in call.also if shares.get(phase, 0.0) < NOTABLE)
    right = most in call.main and not missing
    answer = most if not missing or most not in call.main else f"{most} without {', '.join(missing)}"
    note = "" if right else _shares(shares)
    true = _text(call.main) + (f" with {_text(call.also)}" if call.also else "")
    return Item("phase", where, true, answer, right, 1, note)


def _modality(
    tower: Tower,
    region: Region,
    named: Sequence[BoundNode],
    labels: Sequence[BoundNode],
    call: Range,
    where: str,
) -> list[Item]:
    inside = [
        label
        for node, label in zip(named[slice(*call)], labels[slice(*call)], strict=True)
        if _within(node, tower.place, region) and not any(_within(node, place, region) for place in tower.but)
    ]
    if not inside:
        raise ValueError(f"{where}: the truth tells of {tower.place!r}, where no operator was recorded")
    most, shares = share(inside, "modality")
    right = most in tower.modality
    note = "" if right else _shares(shares)
    return [Item("modality", f"{where} {tower.place}".rstrip(), _text(tower.modality), most, right, 1, note)]


def _fusion(
    truth: Truth, region: Region, named: Sequence[BoundNode], labels: Sequence[BoundNode], where: str
) -> list[Item]:
    if truth.fusion_open or truth.fusion is not None and len(region.calls) == 1 and not truth.fusion.alone:
        return []
    ids = list(range(len(named)))
    if truth.fusion is not None and truth.fusion.calls is not None:
        ids = [id for number in truth.fusion.calls for id in range(*region.calls.get(number, (0, 0)))]
        if not ids:
            return []
    found = [id for id in ids if labels[id].metadata.get("phase") == "fusion"]
    found = found or [id for id in ids if labels[id].metadata.get("modality") == "multimodal"]
    if truth.fusion is None:
        note = repr(labels[found[0]]) if found else ""
        return [Item("fusion", where, "none", "found" if found else "none", not found, 1, note)]
    true = [id for id in ids if _fuses(named[id], truth.fusion, region)]
    if not true:
        raise ValueError(f"{where}: the truth tells of a fusion in {truth.fusion.places}, where there is none")
    answer = "none" if not found else "there" if found[0] in set(true) else "elsewhere"
    note = "" if answer == "there" else f"true: {named[true[0]]!r}" + (f"; found: {named[found[0]]!r}" if found else "")
    return [Item("fusion", where, "there", answer, answer == "there", 1, note)]


def _fuses(node: BoundNode, fusion: Fusion, region: Region) -> bool:
    if fusion.shape is not None and fusion.shape not in [spec.shape for spec in node.specs]:
        return False
    if fusion.operations:
        return node.operation in fusion.operations and node.module_path in fusion.places
    return any(_within(node, place, region) for place in fusion.places)


def _within(node: BoundNode, place: str, region: Region) -> bool:
    if place.startswith("@"):
        return any(start <= node.id < stop for start, stop in region.parts.get(place, ()))
    return not place or node.module_path == place or node.module_path.startswith(place + ".")


def _roots(graph: Graph) -> dict[int, int]:
    """Value → the first value that shares its memory."""
    root: dict[int, int] = {}
    for node in graph.steps:
        pairs = node.aliases
        if node.operation in _PIECES:  # whose schemas do not say whose memory the pieces share
            whole = next(node.operands())
            pairs = tuple((piece, whole) for piece in node.outputs)
        for output, operand in pairs:
            root[output] = root.get(operand, operand)
    return root


def _told(graph: Graph, value: int) -> str:
    """What a reader needs to see why a value was taken for what it is."""
    entry: Input | None = next((each for each in graph.inputs if each.value == value), None)
    if entry is not None:
        seen = f" {entry.lineage}({entry.axis})" if entry.lineage else ""
        users = [node.target for node in graph.steps if value in node.operands()][:3]
        return f"input {graph.get_value(value)!r} {entry.origin} {entry.name!r}{seen}, used by {', '.join(users)}"
    maker = next((node for node in graph.nodes() if value in node.outputs), None)
    return f"{graph.get_value(value)!r} made by {maker!r}"


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{label} {part:.0%}" for label, part in sorted(shares.items(), key=lambda each: -each[1]))


def _text(words: Iterable[Any]) -> str:
    return "|".join(sorted(words))
