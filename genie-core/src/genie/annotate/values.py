"""What values mean, by the nodes that make and read them, and by the user's marks."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from genie.graph import Evidence, Graph, Node, ValueSemantics
from genie.graph.structure import structure

_MARKED = ("residency", "modality", "memory_pattern", "colocation_group")


def meanings(
    graph: Graph, steps: Sequence[Node], where: Sequence[ValueSemantics | None]
) -> tuple[ValueSemantics | None, ...]:
    """By value: ``where`` it belongs, refined by the labels of ``steps``, the graph's annotated nodes."""
    view = structure(graph)
    found = list(where)
    memo: dict[tuple[int, str | None, str | None], ValueSemantics] = {}
    for node in steps:
        its = node.semantics
        if its is None or (its.modality is None and its.residency is None):
            continue
        for value in node.outputs:
            if value >= 0:
                known = found[value]
                if known is None or known.modality != its.modality or known.residency != its.residency:
                    found[value] = _refined(known, its.residency, its.modality, its.evidence, memo)
    for entry in graph.inputs:
        known = found[entry.value]
        modalities = {
            its.modality for at in view.users[entry.value] if (its := steps[at].semantics) is not None and its.modality
        }
        if known is not None and len(modalities) == 1 and known.residency != "weight":
            (modality,) = modalities
            found[entry.value] = _refined(known, known.residency, modality, known.evidence, memo)
    for value, number in graph.value_marks:
        mark = graph.marks[number]
        known = found[value] or ValueSemantics()
        said = {field: label for field in _MARKED if (label := getattr(mark, field)) is not None}
        kept = tuple(why for why in known.evidence if why.label not in said)
        given = {why.label: why for why in mark.evidence}
        reasons = tuple(given.get(field) or Evidence(field, "user", "user mark") for field in said)
        found[value] = msgspec.structs.replace(known, **said, evidence=(*kept, *reasons))
    return tuple(found)


def _refined(
    known: ValueSemantics | None,
    residency: str | None,
    modality: str | None,
    evidence: tuple[Evidence, ...],
    memo: dict[tuple[int, str | None, str | None], ValueSemantics],
) -> ValueSemantics:
    key = (id(known), residency, modality)
    refined = memo.get(key)
    if refined is None:
        reasons = tuple(why for why in evidence if why.label in ("residency", "modality"))
        base = known or ValueSemantics()
        refined = msgspec.structs.replace(
            base, residency=residency or base.residency, modality=modality, evidence=reasons
        )
        memo[key] = refined
    return refined
