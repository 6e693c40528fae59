"""Labels: read and checked, and of two that disagree the stronger.

User before framework before lineage before structure; among patterns the more specific.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from genie.graph import Evidence, Semantics
from genie.graph.vocabulary import MEMORY_PATTERNS, MODALITIES, PHASES, RESIDENCIES
from genie.telemetry import get_logger

log = get_logger("genie.annotate")

STRENGTH = {"user": 3, "framework": 2, "lineage": 1, "structure": 0}
FIELDS = {"semantic_role": "role", "compute_flops": "flops", "can_parallelize": "parallelizable"} | {
    name: name for name in Semantics.__struct_fields__ if name != "evidence"
}
_TYPES: dict[str, type] = (
    dict.fromkeys(("role", "phase", "modality", "residency", "memory_pattern", "colocation_group", "device"), str)
    | dict.fromkeys(("parallelizable", "critical_path", "kv_cache_related"), bool)
    | dict.fromkeys(("flops", "bytes_read", "bytes_written", "priority", "call"), int)
)
_WORDS: Mapping[str, Mapping[str, str]] = {
    "phase": PHASES,
    "modality": MODALITIES,
    "residency": RESIDENCIES,
    "memory_pattern": MEMORY_PATTERNS,
}
_LONGEST = 1 << 12  # as the graph's rules have it


class Garbage(Exception):
    """A pattern or a mark says something that is no label."""


class Label(NamedTuple):
    field: str
    value: Any
    strength: int
    specificity: int
    by: str
    evidence: Evidence | None


DEFAULT = "genie"  # who says what holds of every model, unless anybody knows better
Bundle = tuple[Label, ...]  # labels given together


class Reader:
    """Reads what one pattern says. The same mapping again is read once: patterns share them among nodes."""

    def __init__(self, by: str, source: str, specificity: int) -> None:
        self._by, self._source, self._specificity = by, source, specificity
        self._known: dict[int, tuple[object, object, Bundle]] = {}

    def read(self, labels: object) -> Bundle:
        known = self._known.get(id(labels))
        if known is None or known[1] != labels:  # it may be filled anew for each node
            copy = dict(labels) if isinstance(labels, Mapping) else labels
            # Kept, so that its id stays its own.
            known = self._known[id(labels)] = (labels, copy, self._read(labels))
        return known[2]

    def _read(self, labels: object) -> Bundle:
        if not isinstance(labels, Mapping):
            raise Garbage(f"{labels!r} is no mapping of labels")
        given: dict[str, Evidence] = {}
        for why in labels.get("evidence", ()):
            if not (isinstance(why, Evidence) and _sound(why)):
                raise Garbage(f"{why!r} is no Evidence")
            if why.source == "user" and self._source != "user":
                raise Garbage(f"{why!r}: only the user speaks for the user")
            given[FIELDS.get(why.label, why.label)] = why
        read: list[Label] = []
        for key, value in labels.items():
            if key == "evidence" or value is None:
                continue
            field = FIELDS.get(key)
            if field is None:
                raise Garbage(f"there is no label {key!r}; labels: {', '.join(sorted(FIELDS))}")
            if field == "device" and self._source != "user":
                raise Garbage("only the user says on which device a node runs")
            check(field, value, key)
            why = given.get(field) or Evidence(field, self._source, self._by)  # type: ignore[arg-type]
            strength = STRENGTH["user" if self._source == "user" else why.source]
            read.append(Label(field, value, strength, self._specificity, self._by, why))
        return tuple(read)


def check(field: str, value: object, key: str = "") -> None:
    """Raises :class:`Garbage` for a value that label can't have."""
    key = key or field
    if type(value) is not _TYPES[field]:
        raise Garbage(f"label {key!r} must be of type {_TYPES[field].__name__}, not {value!r}")
    if isinstance(value, str):
        if len(value) > _LONGEST:
            raise Garbage(f"label {key!r} is longer than {_LONGEST} characters")
        words = _WORDS.get(field)
        if words is not None and value not in words:
            raise Garbage(f"there is no {field} {value!r}; known: {', '.join(words)}")
    elif isinstance(value, int) and not (-1 << 63 if field == "priority" else 0) <= value < 1 << 63:
        raise Garbage(f"label {key!r} is out of range: {value!r}")


def _sound(why: Evidence) -> bool:
    texts = (why.label, why.reason)
    return (
        why.source in STRENGTH
        and all(type(text) is str and len(text) <= _LONGEST for text in texts)
        and type(why.confidence) in (int, float)
        and 0 <= why.confidence <= 1
    )


class Merged(NamedTuple):
    """The labels that held, by field, and the evidence for them."""

    fields: dict[str, Any]
    evidence: tuple[Evidence, ...]


class Merger:
    """Decides between labels. Nodes with the very same bundles share the answer."""

    def __init__(self, graph: str) -> None:
        self._graph = graph
        self._known: dict[tuple[int, ...], Merged] = {}
        self._nodes: dict[tuple[int, ...], int] = {}  # how many nodes have the same labels
        # Labels that were overruled, by nodes that have the same ones; a tie is what specificity could not settle.
        self._overruled: dict[tuple[str, Any, str, Any, str, bool], list[tuple[int, tuple[int, ...]]]] = {}
        self._key: tuple[int, ...] = ()

    def merge(self, node: int, known: Semantics | None, bundles: Sequence[Bundle]) -> Merged:
        key = (id(known) if known is not None else 0, *map(id, bundles))
        merged = self._known.get(key)
        self._nodes[key] = self._nodes.get(key, 0) + 1
        if merged is None:
            self._key = key
            merged = self._known[key] = self._merge(node, known, bundles)
        return merged

    def report(self) -> None:
        """Once per pair of patterns that disagree: what one of them overruled, and, louder, what neither could."""
        for (label, kept, kept_by, dropped, by, tie), where in self._overruled.items():
            report = {"label": label, "kept": kept, "kept_by": kept_by, "dropped": dropped, "by": by}
            nodes = sum(self._nodes[key] for _, key in where)
            if not tie:
                log.debug("label overruled", node=where[0][0], nodes=nodes, graph=self._graph, **report)
                continue
            log.warning("patterns disagree", node=where[0][0], nodes=nodes, graph=self._graph, **report)

    def _merge(self, node: int, known: Semantics | None, bundles: Sequence[Bundle]) -> Merged:
        best = {label.field: label for label in _as_labels(known)}
        for bundle in bundles:
            for new in bundle:
                old = best.get(new.field)
                best[new.field] = new if old is None else self._stronger(node, old, new)
        evidence = tuple(best[field].evidence for field in sorted(best) if best[field].evidence is not None)
        return Merged({field: label.value for field, label in best.items()}, evidence)  # type: ignore[arg-type]

    def _stronger(self, node: int, old: Label, new: Label) -> Label:
        mine, its = (new.strength, new.specificity), (old.strength, old.specificity)
        won, lost = (new, old) if mine > its or (mine == its and new.strength == STRENGTH["user"]) else (old, new)
        if new.value != old.value and lost.by != DEFAULT:
            tie = mine == its and new.strength < STRENGTH["user"]
            pair = (new.field, won.value, won.by, lost.value, lost.by, tie)
            self._overruled.setdefault(pair, []).append((node, self._key))
        return won


def _as_labels(known: Semantics | None) -> Iterable[Label]:
    if known is None:
        return
    evidence: dict[str, Evidence] = {}
    for why in known.evidence:
        evidence.setdefault(why.label, why)  # the first decides, others agree
    for field in FIELDS.values():
        value = getattr(known, field)
        if value is not None:
            # A frontend's label without evidence is what the framework said.
            first = evidence.get(field)
            strength = STRENGTH[first.source if first else "framework"]
            yield Label(field, value, strength, 1 << 30, "frontend", first)


def ordered(*evidence: tuple[Evidence, ...]) -> tuple[Evidence, ...]:
    """Pieces of evidence in the order of what they are for."""
    return tuple(sorted((why for each in evidence for why in each), key=lambda why: why.label))


def marked(mark: Semantics) -> Bundle:
    """A mark of the graph as labels: the user's word."""
    return tuple(
        label._replace(
            strength=STRENGTH["user"],
            by="user mark",
            evidence=label.evidence or Evidence(label.field, "user", "user mark"),
        )
        for label in _as_labels(mark)
    )
