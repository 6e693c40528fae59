"""Recommendation models: rows of sparse features looked up, brought together, and dense towers."""

from __future__ import annotations

from collections.abc import Iterator

from genie.graph import Evidence
from genie.graph.structure import SAME
from genie.match import LINEAR, Finder, Match, Structure, calls, flow, trained_calls, weights
from genie_patterns_multimodal.entries import kinds

_LINEAR = frozenset(LINEAR.split())
_PRODUCTS = frozenset("bmm matmul mul dot baddbmm einsum mv bilinear _trilinear scaled_dot_product_attention".split())
_JOINS = frozenset(("cat", "stack"))
_ARITHMETIC = frozenset("mul pow square sub sum".split())  # of factorisation machines, on rows as they are
_COLD = 1 << 20  # rows from which a table is taken to be too large to keep near


class Recommendation(Finder):
    """Labels look-ups with ``embedding_lookup``, the rest by whether rows have met yet. A table is hot or cold by its
    number of rows: ``embedding_hot``, ``embedding_cold``; tables that are looked up alone may be placed alone."""

    name = "recommendation"
    specificity = 15

    def find(self, view: Structure) -> Iterator[Match]:
        graph = view.graph
        known = kinds(view)
        currents = flow(graph)
        sparse = {
            number
            for number, entry in enumerate(currents.entries)
            if entry.way in ("ids", "rows") and number in known and known[number].modality == "tabular"
        }
        if not sparse:
            return
        call_of, heavy = calls(graph), weights(graph)
        affected = {currents.entries[number].call for number in sparse}
        trained = trained_calls(graph)
        lookups = {"embedding", "embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"}
        dense = bytearray(len(view.maker))  # computed with weights
        met = bytearray(len(view.maker))
        tower: list[int] = []
        meeting: list[int] = []
        for at, name in enumerate(view.names):
            if call_of[at] not in affected:
                continue
            operands = view.operands[at]
            if name in lookups and len(operands) > 1 and view.storage[operands[0]] in heavy:
                rows = view.shape(operands[0])[0]
                role = "embedding_cold" if rows >= _COLD else "embedding_hot"
                labels: dict[str, object] = {
                    "role": role,
                    "colocation_group": f"table:{operands[0]}",
                    "evidence": (
                        Evidence("role", "structure", f"a table of {rows} rows"),
                        Evidence("phase", "structure", "rows of a table of categories", 0.95),
                    ),
                }
                if call_of[at] not in trained:
                    labels["phase"] = "embedding_lookup"
                yield Match((view.steps[at],), labels)
                continue
            bits = self._bits(currents.bits, view, at)
            if not bits:
                continue
            layered = name in _LINEAR and any(view.storage[value] in heavy for value in operands)
            if layered or any(dense[value] for value in operands):
                for value in view.steps[at].outputs:
                    if value >= 0:
                        dense[value] = 1
            rows_as_they_are = name in _ARITHMETIC and not any(dense[value] for value in operands)
            meets = rows_as_they_are or name in _JOINS or (name in _PRODUCTS and bits & (bits - 1))
            if name in SAME and operands and met[operands[0]]:
                meets = True
            if meets and not layered:
                meeting.append(at)
                for value in view.steps[at].outputs:
                    if value >= 0:
                        met[value] = 1
            else:
                tower.append(at)
        tower = [at for at in tower if call_of[at] not in trained]
        meeting = [at for at in meeting if call_of[at] not in trained]
        yield Match([view.steps[at] for at in tower], _labels("dense_tower", "layers of a recommendation model"))
        yield Match([view.steps[at] for at in meeting], _labels("interaction", "rows of several tables meet"))

    def _bits(self, bits: list[int], view: Structure, at: int) -> int:
        return next((bits[value] for value in view.steps[at].outputs if value >= 0), 0)


def _labels(phase: str, reason: str) -> dict[str, object]:
    return {"phase": phase, "evidence": (Evidence("phase", "structure", reason, 0.85),)}
