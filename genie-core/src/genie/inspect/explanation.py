"""What is known of one node of a graph, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from genie.graph import BoundNode, Evidence, node_text, printable

# Said in the line above, or of no use to people.
_ELSEWHERE = ("module_path", "module_type", "source", "output_shapes", "output_dtypes", "evidence")
_FIELDS = {"semantic_role": "role", "compute_flops": "flops", "can_parallelize": "parallelizable"}


def known(node: BoundNode) -> dict[str, Any]:
    """As plain values, for JSON."""
    found: dict[str, Any] = {"node": node.id, "operation": node.target, **node.metadata}
    if "evidence" in found:
        found["evidence"] = [
            {"label": each.label, "source": each.source, "reason": each.reason, "confidence": each.confidence}
            for each in found["evidence"]
        ]
    return found


def explanation(node: BoundNode) -> str:
    """As a paragraph: the call, then each label with its evidence, then what is known of the values."""
    return "".join(f"{line}\n" for line in map(printable, _lines(node)))


def _lines(node: BoundNode) -> Iterator[str]:
    yield node_text(node, node.graph)
    yield f"  operation: {node.target}"
    yield from _labels(node.metadata, node.semantics.evidence if node.semantics is not None else (), "  ")
    for title, values in (("takes", dict.fromkeys(node.operands())), ("makes", dict.fromkeys(node.outputs))):
        for value in values:
            if value >= 0:
                yield from _value(node, value, title)


def _value(node: BoundNode, value: int, title: str) -> Iterator[str]:
    its = node.graph.get_value(value)
    yield f"  {title} {its!r}"[:-1].replace("<", "", 1)
    labels = {key: label for key, label in its.metadata.items() if key not in ("shape", "dtype")}
    yield from _labels(labels, its.semantics.evidence if its.semantics is not None else (), "    ")


def _labels(labels: Mapping[str, Any], evidence: Iterable[Evidence], pad: str) -> Iterator[str]:
    reasons: dict[str, list[Evidence]] = {}
    for each in evidence:
        reasons.setdefault(each.label, []).append(each)
    for key, label in labels.items():
        if key in _ELSEWHERE:
            continue
        yield f"{pad}{key}: {label:.4g}" if isinstance(label, float) else f"{pad}{key}: {label}"
        yield from _reasons(reasons.pop(_FIELDS.get(key, key), ()), pad)
    for name, rest in reasons.items():
        yield f"{pad}{name}"
        yield from _reasons(rest, pad)


def _reasons(evidence: Iterable[Evidence], pad: str) -> Iterator[str]:
    for each in evidence:
        sure = "" if each.confidence == 1 else f", {each.confidence:.0%} sure"
        yield f"{pad}    {each.source}{sure}: {each.reason}"
