"""Annotation: a graph in, the same graph with meaning out.

Facts (FLOPs and bytes, from shapes) are filled in for every node; then come the labels of patterns and the user's
marks. A label is replaced only by one with stronger evidence — user, framework, lineage, structure — and among
patterns by the more specific one. What nobody knows stays ``None``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from genie.errors import GraphError
from genie.flops import sizes, work
from genie.graph import Evidence, Graph, Node, Semantics, verify
from genie.interfaces import PatternMatcher
from genie.telemetry import get_logger

log = get_logger("genie.annotate")

_STRENGTH = {"user": 3, "framework": 2, "lineage": 1, "structure": 0}
_FIELDS = {"semantic_role": "role", "compute_flops": "flops", "can_parallelize": "parallelizable"} | {
    name: name for name in Semantics.__struct_fields__ if name != "evidence"
}
_TYPES: dict[str, type] = (
    dict.fromkeys(("role", "phase", "modality", "residency", "memory_pattern", "colocation_group"), str)
    | dict.fromkeys(("parallelizable", "critical_path", "kv_cache_related"), bool)
    | dict.fromkeys(("flops", "bytes_read", "bytes_written", "priority", "call"), int)
)

_LONGEST = 1 << 12  # as the graph's rules have it


class _Label(NamedTuple):
    value: Any
    strength: int
    specificity: int
    by: str
    evidence: Evidence | None


_Labels = dict[int, dict[str, _Label]]


class _Garbage(Exception):
    """A pattern or a mark says something that is no label."""


def annotate(
    graph: Graph,
    patterns: Sequence[PatternMatcher] = (),
    marks: Mapping[int, Mapping[str, Any]] | None = None,
) -> Graph:
    """A new graph with the facts, the patterns' labels and ``marks`` (node id → labels, the user's word).

    Labels are named by the fields of ``Semantics`` or by the public keys of ``node.metadata``. A pattern that
    raises or answers with garbage is reported by name and left out. Raises ``GraphError`` for a graph that
    breaks a rule and for marks that do.
    """
    verify(graph)
    found: _Labels = {}
    for pattern in patterns:
        _apply(pattern, graph, found)
    for node, labels in (marks or {}).items():
        graph.get_node(node)
        try:
            for name, label in _read(labels, "user mark", "user", 0):
                found.setdefault(node, {})[name] = label
        except _Garbage as error:
            raise GraphError(f"mark of node {node}: {error}") from None
    return _with_facts(graph, found)


def _apply(pattern: PatternMatcher, graph: Graph, found: _Labels) -> None:
    """One pattern's labels into ``found``: all of them, or none and a report."""
    name = getattr(pattern, "name", type(pattern).__name__)
    mine: list[tuple[int, str, _Label]] = []
    try:
        specificity = int(getattr(pattern, "specificity", 0))
        for match in pattern.match(graph):
            group = (match,) if isinstance(match, Node) else match
            for node, labels in pattern.annotate(group).items():
                if type(node) is not int:
                    raise _Garbage(f"{node!r} is no node id")
                graph.get_node(node)
                mine += [(node, key, label) for key, label in _read(labels, name, "structure", specificity)]
    except Exception as error:  # a plugin may raise anything
        log.error("pattern left out", pattern=name, error=f"{type(error).__name__}: {error}", graph=graph.name)
        return
    for node, key, label in mine:
        mapping = found.setdefault(node, {})
        mapping[key] = _stronger(node, key, mapping.get(key), label)
    log.debug("pattern applied", pattern=name, labels=len(mine), graph=graph.name)


def _read(labels: object, by: str, source: str, specificity: int) -> list[tuple[str, _Label]]:
    """Labels as given by a pattern or a user, checked."""
    if not isinstance(labels, Mapping):
        raise _Garbage(f"{labels!r} is no mapping of labels")
    given: dict[str, Evidence] = {}
    for why in labels.get("evidence", ()):
        if not (isinstance(why, Evidence) and _sound(why)):
            raise _Garbage(f"{why!r} is no Evidence")
        given[_FIELDS.get(why.label, why.label)] = why
    read: list[tuple[str, _Label]] = []
    for key, value in labels.items():
        if key == "evidence" or value is None:
            continue
        field = _FIELDS.get(key)
        if field is None:
            raise _Garbage(f"there is no label {key!r}; labels: {', '.join(sorted(_FIELDS))}")
        if type(value) is not _TYPES[field]:
            raise _Garbage(f"label {key!r} must be of type {_TYPES[field].__name__}, not {value!r}")
        if isinstance(value, str) and len(value) > _LONGEST:
            raise _Garbage(f"label {key!r} is longer than {_LONGEST} characters")
        if isinstance(value, int) and not (-1 << 63 if field == "priority" else 0) <= value < 1 << 63:
            raise _Garbage(f"label {key!r} is out of range: {value!r}")
        why = given.get(field) or Evidence(field, source, by)  # type: ignore[arg-type]
        read.append((field, _Label(value, _STRENGTH[why.source], specificity, by, why)))
    return read


def _sound(why: Evidence) -> bool:
    texts = (why.label, why.reason)
    return (
        why.source in _STRENGTH
        and all(type(text) is str and len(text) <= _LONGEST for text in texts)
        and type(why.confidence) in (int, float)
        and 0 <= why.confidence <= 1
    )


def _stronger(node: int, key: str, old: _Label | None, new: _Label) -> _Label:
    if old is None:
        return new
    won, lost = (new, old) if (new.strength, new.specificity) > (old.strength, old.specificity) else (old, new)
    if new.value != old.value:
        # The same every time the graph comes by: only what specificity can't settle is worth a warning.
        tie = (new.strength, new.specificity) == (old.strength, old.specificity)
        report = log.warning if tie else log.debug
        report(
            "patterns disagree", node=node, label=key, kept=won.value, kept_by=won.by, dropped=lost.value, by=lost.by
        )
    return won


def _with_facts(graph: Graph, found: _Labels) -> Graph:
    values, size = graph.values, sizes(graph)
    steps: list[Node] = []
    for node in graph.steps:
        flops, read, written = work(node, values, size)
        known = node.semantics
        labels = found.get(node.id)
        if known is None and labels is None:
            known = Semantics(flops=flops, bytes_read=read, bytes_written=written)
        else:
            known = _merged(known or Semantics(), labels or {}, flops, read, written)
        steps.append(
            Node(
                node.id,
                node.operation,
                node.overload,
                node.args,
                node.outputs,
                node.mutates,
                node.aliases,
                node.module,
                node.source,
                known,
                node.mark,
            )
        )
    annotated = msgspec.structs.replace(graph, steps=tuple(steps))
    verify(annotated)
    return annotated


def _merged(known: Semantics, labels: Mapping[str, _Label], flops: int | None, read: int, written: int) -> Semantics:
    fields = msgspec.structs.asdict(known)
    evidence = {why.label: why for why in known.evidence}
    for key, label in labels.items():
        if fields[key] is not None:
            # A frontend's label without evidence is what the framework said.
            why = evidence.get(key)
            if _STRENGTH[why.source if why else "framework"] >= label.strength and label.strength < _STRENGTH["user"]:
                continue
        fields[key] = label.value
        if label.evidence is not None:
            evidence[key] = label.evidence
    for key, fact in (("flops", flops), ("bytes_read", read), ("bytes_written", written)):
        if fields[key] is None:
            fields[key] = fact
    fields["evidence"] = tuple(evidence[key] for key in sorted(evidence))
    return Semantics(**fields)
