"""Annotation: a graph in, the same graph with meaning out.

Facts come first: FLOPs and bytes from shapes, how nodes stand to each other, where values belong. Then come the labels
of patterns and the user's marks. A label is replaced only by one with stronger evidence — user, framework, lineage,
structure — and among patterns by the more specific one. What nobody knows stays ``None``. No label changes what a
graph computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from genie.annotate.inherit import inherit
from genie.annotate.labels import DEFAULT, Bundle, Garbage, Merged, Merger, Reader, log, marked, ordered
from genie.annotate.names import agreeing
from genie.annotate.residency import cache_groups, residencies
from genie.annotate.standing import Standing, standings
from genie.annotate.supervise import TooSlow, supervised
from genie.annotate.values import meanings
from genie.annotate.within import labelled_within
from genie.errors import GraphError
from genie.flops import Work, sizes, work
from genie.graph import Evidence, Graph, Node, Semantics, ValueSemantics, relabelled, verify
from genie.graph.calls import calls, weights
from genie.graph.collecting import paused_gc
from genie.graph.once import once
from genie.graph.structure import structure
from genie.interfaces import PatternMatcher

__all__ = ["annotate"]

_MOST_MATCHES = 4  # per node of the graph, of one pattern
_PATIENCE, _PATIENCE_PER_NODE = 2.0, 2e-4  # seconds for one pattern and one graph
_too_slow: dict[int, tuple[PatternMatcher, int]] = {}  # patterns that did not come back, and how often
_CHANCES = 2  # so many times, and a pattern is asked no more in this process
_Found = dict[int, list[Bundle]]  # by node id


def annotate(
    graph: Graph,
    patterns: Sequence[PatternMatcher] = (),
    marks: Mapping[int, Mapping[str, Any]] | None = None,
) -> Graph:
    """A new graph with the facts, the patterns' labels, the graph's marks and ``marks`` (node id → labels, the user's
    word).

    Labels are named by the fields of ``Semantics`` or by the public keys of ``node.metadata``. A pattern that raises,
    does not answer in time or answers with garbage is reported by name and left out; one that did not answer in time
    twice is not asked again. Raises ``GraphError`` for a
    graph that breaks a rule and for marks that do.
    """
    verify(graph)
    with paused_gc(len(graph.steps)):
        found: _Found = {}
        try:
            _defaults(graph, found)
            _apply(patterns, graph, found)
            _marks(graph, marks or {}, found)
            return labelled_within(_with_facts(graph, found), partial(annotate, patterns=patterns))
        except IndexError as error:
            # The graph's rules know no schemas: an operator of a known name may lack an operand or a result.
            raise GraphError(
                f"an operator of the graph has fewer operands or results than any of its name: {error}",
                hint="graphs that a frontend captured have what the operators' schemas say",
            ) from error


def _apply(patterns: Sequence[PatternMatcher], graph: Graph, found: _Found) -> None:
    """Each pattern's labels into ``found``: all of them, or none and a report."""
    patterns = [pattern for pattern in patterns if _too_slow.get(id(pattern), (None, 0))[1] < _CHANCES]
    names = [str(getattr(pattern, "name", type(pattern).__name__)) for pattern in patterns]
    tasks = [partial(_labels_of, pattern, name, graph) for pattern, name in zip(patterns, names, strict=True)]
    patience = _PATIENCE + _PATIENCE_PER_NODE * len(graph.steps)
    for pattern, name, outcome in zip(patterns, names, supervised(tasks, patience), strict=True):
        if outcome.error is not None:
            why = f"{type(outcome.error).__name__}: {outcome.error}"
            log.error("pattern left out", pattern=name, error=why, graph=graph.name)
            if isinstance(outcome.error, TooSlow):
                # Every plan would wait for it again. Kept, so that its id stays its own.
                _too_slow[id(pattern)] = (pattern, _too_slow.get(id(pattern), (None, 0))[1] + 1)
            continue
        for node, bundle in outcome.result:
            bundles = found.get(node)
            if bundles is None:
                found[node] = [bundle]
            else:
                bundles.append(bundle)
        log.debug("pattern applied", pattern=name, nodes=len(outcome.result), graph=graph.name)


def _labels_of(pattern: PatternMatcher, name: str, graph: Graph) -> list[tuple[int, Bundle]]:
    reader = Reader(name, "structure", int(getattr(pattern, "specificity", 0)))
    ids = _ids(graph)
    most = _MOST_MATCHES * (len(graph.steps) + 16)
    mine: list[tuple[int, Bundle]] = []
    for count, match in enumerate(islice(pattern.match(graph), most + 1)):
        if count == most:
            raise Garbage(f"it matches more than {most} times in a graph of {len(graph.steps)} nodes")
        group = (match,) if isinstance(match, Node) else match
        for node, labels in pattern.annotate(group).items():
            if type(node) is not int or node not in ids:
                raise Garbage(f"{node!r} is no id of a node of this graph")
            mine.append((node, reader.read(labels)))
    return mine


@once
def _ids(graph: Graph) -> frozenset[int]:
    return frozenset(node.id for node in graph.steps)


def _marks(graph: Graph, marks: Mapping[int, Mapping[str, Any]], found: _Found) -> None:
    bundles = [marked(mark) for mark in graph.marks]
    if bundles:
        for node in graph.steps:
            if node.mark >= 0:
                found.setdefault(node.id, []).append(bundles[node.mark])
    reader = Reader("user mark", "user", 1 << 30)
    for id, labels in marks.items():
        graph.get_node(id)
        try:
            found.setdefault(id, []).append(reader.read(labels))
        except Garbage as error:
            raise GraphError(f"mark of node {id}: {error}") from None


_UPDATES = {"phase": "optimizer", "evidence": (Evidence("phase", "structure", "computed from gradients", 0.9),)}
_COUNTED = Evidence("call", "structure", "weights are used again as in the call before")
_FORWARD: Mapping[str, Any] = {
    "phase": "forward",
    "evidence": (Evidence("phase", "structure", "computed with weights", 0.5),),
}


def _defaults(graph: Graph, found: _Found) -> None:
    """What holds of every model: which call a node is of, and that what weights do is a forward pass."""
    reader = Reader(DEFAULT, "structure", -(1 << 30))
    view, heavy, call = structure(graph), weights(graph), calls(graph)
    several = bool(call) and max(call) > 0
    deep = bytearray(len(graph.values))
    for value in heavy:
        deep[value] = 1
    updates = reader.read(_UPDATES)
    gradient = bytearray(len(graph.values))  # made by the backward pass, or from what is
    counts = range(max(call, default=-1) + 1)
    other = [reader.read({"call": k, "evidence": (_COUNTED,)} if several else {}) for k in counts]
    forward = [(*reader.read(_FORWARD), *each) for each in other]
    for at, node in enumerate(view.steps):
        phase = node.semantics.phase if node.semantics is not None else None
        if phase == "backward" or (phase is None and any(gradient[value] for value in view.operands[at])):
            for value in (*node.outputs, *node.mutates):
                if value >= 0:
                    gradient[value] = view.storage[value] not in heavy
            if phase is None:
                found[node.id] = [updates]
                continue
        heavy_here = False
        for value in view.operands[at]:
            if deep[value]:
                heavy_here = True
                break
        if heavy_here:
            for value in node.outputs:
                if value >= 0:
                    deep[value] = 1
            for value in node.mutates:
                deep[value] = deep[view.storage[value]] = 1
            found[node.id] = [forward[call[at]]]
        elif several:
            found[node.id] = [other[call[at]]]


def _with_facts(graph: Graph, found: _Found) -> Graph:
    values, size = graph.values, sizes(graph)
    works = [work(node, values, size) for node in graph.steps]
    standing = standings(graph, works)
    where = residencies(graph)
    caches = cache_groups(graph, where)
    merger = Merger(graph.name)
    known: dict[tuple[int, int, Standing, str, int], _Shared] = {}
    steps: list[Node] = []
    for at, node in enumerate(graph.steps):
        merged = merger.merge(node.id, node.semantics, found.get(node.id, ()))
        made = _made(node, where)
        # Both that are told by their id live as long as this does.
        key = (id(merged), id(made), standing[at], caches[at], node.module)
        shared = known.get(key)
        if shared is None:
            kind = graph.modules[node.module].type if node.module >= 0 else ""
            shared = known[key] = _shared(merged, standing[at], made, caches[at], kind)
        steps.append(node.labelled(_semantics(shared, works[at]), node.mark))
    merger.report()
    inherit(graph, steps, _FORWARD["evidence"][0])
    return relabelled(graph, tuple(steps), meanings(graph, steps, where))


def _made(node: Node, where: Sequence[ValueSemantics | None]) -> ValueSemantics | None:
    """What is known of what a node makes, or of what it writes to."""
    for value in node.outputs:
        if value >= 0:
            return where[value]
    return where[node.mutates[0]] if node.mutates else None


class _Shared(NamedTuple):
    """The labels of many nodes that differ in their work alone: those before and after it, as in Semantics."""

    before: tuple[Any, ...]
    known: tuple[int | None, int | None, int | None]  # work that somebody said: FLOPs, bytes read, bytes written
    after: tuple[Any, ...]


def _shared(merged: Merged, standing: Standing, made: ValueSemantics | None, cached: str, module: str) -> _Shared:
    fields, evidence = merged
    get = fields.get
    agrees = agreeing(fields["role"], module) if module and "role" in fields else None
    if agrees is not None and agrees not in evidence:
        evidence = ordered(evidence, (agrees,))
    residency, pattern, group = get("residency"), get("memory_pattern"), get("colocation_group")
    if made is not None:
        if residency is None:
            residency, evidence = made.residency, ordered(evidence, made.evidence)
        pattern, group = pattern or made.memory_pattern, group or made.colocation_group
    parallelizable, critical, related = get("parallelizable"), get("critical_path"), get("kv_cache_related")
    return _Shared(
        (get("role"), get("phase"), get("modality"), residency, pattern),
        (get("flops"), get("bytes_read"), get("bytes_written")),
        (
            standing.parallelizable if parallelizable is None else parallelizable,
            standing.critical if critical is None else critical,
            get("priority"),
            group or cached or None,
            (True if cached else None) if related is None else related,
            get("call"),
            get("device"),
            evidence,
        ),
    )


def _semantics(shared: _Shared, work: Work) -> Semantics:
    before, (flops, read, written), after = shared
    return Semantics(  # type: ignore[call-arg]
        *before,
        work.flops if flops is None else flops,
        work.read if read is None else read,
        work.written if written is None else written,
        *after,
    )
