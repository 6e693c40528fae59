"""Modality of every node, encoders by modality, and the places where modalities meet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from genie.graph import Evidence
from genie.match import Finder, Match, Structure, calls, flow
from genie_patterns_multimodal.entries import Kind, kinds

_ENCODES = {"text": "text_encode", "vision": "vision_encode", "audio": "audio_encode"}


class Modalities(Finder):
    """Follows each entry's modality along the data. What is computed from several is multimodal; the first nodes that
    are bring them together. Encoders are phases of inference alone: a training step keeps its own."""

    name = "modalities"
    specificity = 10

    def find(self, view: Structure) -> Iterator[Match]:
        graph = view.graph
        known = kinds(view)
        if not known:
            return
        call_of, currents = calls(graph), flow(graph)
        trained = {
            call_of[at]
            for at, node in enumerate(view.steps)
            if node.semantics is not None and node.semantics.phase in ("backward", "optimizer")
        }
        calls_own: dict[int, int] = {}  # bits of the entries of each call
        for number, entry in enumerate(currents.entries):
            calls_own[entry.call] = calls_own.get(entry.call, 0) | 1 << number
        sets: dict[int, frozenset[str]] = {}
        groups: dict[tuple[frozenset[str], bool], list[int]] = {}
        meets: list[int] = []
        for at, node in enumerate(view.steps):
            value = next((out for out in node.outputs if out >= 0), node.mutates[0] if node.mutates else -1)
            bits = currents.bits[value] if value >= 0 else 0
            if not bits and value >= 0 and currents.carried[value]:
                # What an earlier call left is used together with what enters this one.
                given = calls_own.get(call_of[at], 0)
                bits = currents.past[value] | given
                mine = frozenset(k.modality for i, k in known.items() if bits >> i & 1)
                if mine:
                    groups.setdefault((mine, True), []).append(at)
                continue
            if not bits:
                continue
            mine = sets.get(bits)
            if mine is None:
                mine = sets[bits] = frozenset(k.modality for i, k in known.items() if bits >> i & 1)
            if not mine:
                continue
            groups.setdefault((mine, call_of[at] in trained), []).append(at)
            if len(mine) > 1 and "tabular" not in mine and self._first(view, at, bits, currents.bits, sets):
                meets.append(at)
        for (mine, training), nodes in groups.items():
            yield Match([view.steps[at] for at in nodes], self._labels(mine, known, training))
        if meets:
            said = {
                "role": "fusion",
                "phase": "fusion",
                "evidence": _because("modalities meet here for the first time"),
            }
            yield from self._fusion(view, meets, trained, call_of, said)

    def _first(
        self, view: Structure, at: int, bits: int, all_bits: list[int], sets: Mapping[int, frozenset[str]]
    ) -> bool:
        mine = sets[bits]
        return not any(sets.get(all_bits[value], frozenset()) == mine for value in view.operands[at])

    def _fusion(
        self,
        view: Structure,
        meets: list[int],
        trained: set[int],
        call_of: list[int],
        said: Mapping[str, object],
    ) -> Iterator[Match]:
        role_only = {"role": said["role"], "evidence": said["evidence"]}
        for at in meets:
            yield Match((view.steps[at],), role_only if call_of[at] in trained else said)

    def _labels(self, mine: frozenset[str], known: Mapping[int, Kind], training: bool) -> Mapping[str, object]:
        if len(mine) > 1:
            only_table = mine <= {"tabular", "text"}
            modality = "tabular" if only_table and "tabular" in mine else "multimodal"
            why = Evidence("modality", "structure", f"computed from {' and '.join(sorted(mine))}", 0.9)
            labels: dict[str, object] = {"modality": modality}
            phase = "fusion" if modality == "multimodal" else None
        else:
            (modality,) = mine
            kind = next(k for k in known.values() if k.modality == modality)
            why = Evidence("modality", "structure", kind.reason, kind.confidence)
            labels = {"modality": modality}
            phase = _ENCODES.get(modality)
        evidence = [why]
        if phase is not None and not training:
            labels["phase"] = phase
            alone = "" if len(mine) > 1 else " alone"
            evidence.append(Evidence("phase", "structure", f"computed from {' and '.join(sorted(mine))}{alone}", 0.8))
        labels["evidence"] = tuple(evidence)
        return labels


def _because(reason: str) -> tuple[Evidence, ...]:
    return (Evidence("role", "structure", reason, 0.9), Evidence("phase", "structure", reason, 0.9))
