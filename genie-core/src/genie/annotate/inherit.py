"""What serves one purpose only belongs to it: masks, positions, what is computed from weights alone."""

from __future__ import annotations

import msgspec

from genie.annotate.labels import ordered
from genie.graph import Evidence, Graph, Node
from genie.graph.structure import structure

_NOT_PASSED_ON = frozenset(("backward", "optimizer", "sampling", "forward", "fusion"))
_NO_DATA = ("ephemeral", "weight")
_PHASE = Evidence("phase", "structure", "used by nothing else", 0.5)
_MODALITY = Evidence("modality", "structure", "used by nothing else", 0.5)


def inherit(graph: Graph, steps: list[Node], default: Evidence) -> None:
    """Nodes that compute without data of the program, and whose phase or modality is unknown (or only what ``default``
    says), take those of their users, where all of these agree. ``steps`` are the graph's, annotated, and are replaced
    in place."""
    view = structure(graph)
    for at in range(len(steps) - 1, -1, -1):
        node = steps[at]
        its = node.semantics
        if its is None or its.residency not in _NO_DATA:
            continue
        guessed = its.phase is None or default in its.evidence
        if not guessed and its.modality is not None:
            continue
        phase: str | None = ""
        modality: str | None = ""
        for value in node.outputs:
            for user in view.users[value] if value >= 0 else ():
                their = steps[user].semantics
                if their is None:
                    phase = modality = None
                    break
                phase = their.phase if phase in ("", their.phase) else None
                modality = their.modality if modality in ("", their.modality) else None
        changes: dict[str, object] = {}
        evidence = its.evidence
        if phase and phase not in _NOT_PASSED_ON and guessed:
            changes["phase"] = phase
            evidence = ordered(tuple(why for why in evidence if why.label != "phase"), (_PHASE,))
        # What is brought together may well be of one kind itself.
        if modality and modality != "multimodal" and its.modality is None:
            changes["modality"] = modality
            evidence = ordered(evidence, (_MODALITY,))
        if changes:
            semantics = msgspec.structs.replace(its, **changes, evidence=evidence)
            steps[at] = msgspec.structs.replace(node, semantics=semantics)
