"""Modality of every node, encoders by modality, and the places where modalities meet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from genie.graph import Evidence
from genie.match import Finder, Match, Structure, calls, flow, result_of, trained_calls
from genie_patterns_multimodal.entries import Kind, kinds

_ENCODES = {"text": "text_encode", "vision": "vision_encode", "audio": "audio_encode"}

_Modalities = frozenset[str]


class Modalities(Finder):
    """Follows each entry's modality along the data. What is computed from several is multimodal. Encoders are phases of
    inference alone: a training step keeps its own."""

    name = "modalities"
    specificity = 10

    def find(self, view: Structure) -> Iterator[Match]:
        known = kinds(view)
        if not known:
            return
        trained = trained_calls(view.graph)
        groups: dict[tuple[_Modalities, bool], list[int]] = {}
        for each in _followed(view, known):
            # What an earlier call left has its modality, and no phase of this one's encoders.
            plain = each.carried or each.call in trained
            groups.setdefault((each.modalities, plain), []).append(each.at)
        for (modalities, plain), nodes in groups.items():
            yield Match([view.steps[at] for at in nodes], _labels(modalities, known, plain))


class Fusion(Finder):
    """The nodes at which modalities meet for the first time."""

    name = "fusion"
    specificity = 35

    def find(self, view: Structure) -> Iterator[Match]:
        known = kinds(view)
        trained = trained_calls(view.graph)
        for each in _followed(view, known) if len({kind.modality for kind in known.values()}) > 1 else ():
            if each.first:
                yield Match((view.steps[each.at],), _ROLE if each.call in trained else _MEETS)


class _Node(NamedTuple):
    at: int
    call: int
    modalities: _Modalities
    carried: bool  # known of what an earlier call left alone
    first: bool  # none of its operands has all of its modalities


def _followed(view: Structure, known: Mapping[int, Kind]) -> Iterator[_Node]:
    call_of, currents = calls(view.graph), flow(view.graph)
    given: dict[int, int] = {}  # bits of the entries of each call
    for number, entry in enumerate(currents.entries):
        given[entry.call] = given.get(entry.call, 0) | 1 << number
    sets: dict[int, _Modalities] = {}

    def of(bits: int) -> _Modalities:
        if bits not in sets:
            sets[bits] = frozenset(kind.modality for number, kind in known.items() if bits >> number & 1)
        return sets[bits]

    for at in range(len(view.steps)):
        value = result_of(view, at)
        if value < 0:
            continue
        bits, call = currents.bits[value], call_of[at]
        carried = not bits and bool(currents.carried[value])
        if carried:
            bits = currents.past[value] | given.get(call, 0)
        mine = of(bits)
        if mine:
            several = len(mine) > 1 and not carried
            first = several and not any(of(currents.bits[operand]) == mine for operand in view.operands[at])
            yield _Node(at, call, mine, carried, first)


def _labels(modalities: _Modalities, known: Mapping[int, Kind], plain: bool) -> Mapping[str, object]:
    named = " and ".join(sorted(modalities))
    phase: str | None
    if len(modalities) > 1:
        modality = "multimodal"
        why = Evidence("modality", "structure", f"computed from {named}", 0.9)
        phase = "fusion"
    else:
        (modality,) = modalities
        kind = next(kind for kind in known.values() if kind.modality == modality)
        why = Evidence("modality", "structure", kind.reason, kind.confidence)
        phase = _ENCODES.get(modality)
    if phase is None or plain:
        return {"modality": modality, "evidence": (why,)}
    reason = f"computed from {named}" + (" alone" if len(modalities) == 1 else "")
    return {"modality": modality, "phase": phase, "evidence": (why, Evidence("phase", "structure", reason, 0.8))}


_FIRST = "modalities meet here for the first time"
_ROLE: Mapping[str, object] = {"role": "fusion", "evidence": (Evidence("role", "structure", _FIRST, 0.9),)}
_MEETS: Mapping[str, object] = {
    "role": "fusion",
    "phase": "fusion",
    "evidence": (Evidence("phase", "structure", _FIRST, 0.9), Evidence("role", "structure", _FIRST, 0.9)),
}
