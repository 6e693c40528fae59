"""How memory grows from call to call."""

from __future__ import annotations

from genie.flops import nbytes
from genie.graph import Graph, Input, TensorSpec


def growth(graph: Graph) -> dict[int, int]:
    """Bytes by which each cache among a verified graph's inputs (``Input.lineage`` is ``grown``) grows per call.

    What this graph appends along the axis the cache grows on; where it appends nothing (another graph of the call
    does), one position of that axis.
    """
    grown = {entry.value: entry for entry in graph.inputs if entry.lineage == "grown" and entry.axis >= 0}
    found: dict[int, int] = {}
    if not grown:
        return found
    source = dict(zip(grown, grown, strict=True))  # value → the cache it is a view or a copy of
    for node in graph.steps:
        caches = {source[value] for value in node.operands() if value in source}
        for output in node.outputs:
            for cache in caches if output >= 0 else ():
                more = _more(graph, grown[cache], output)
                if more == 0:
                    source[output] = cache
                elif more is not None:
                    found[cache] = max(found.get(cache, 0), more)
    for cache, entry in grown.items():
        spec = graph.values[cache]
        length = spec.shape[entry.axis] if entry.axis < len(spec.shape) else 0
        if cache not in found and length:
            found[cache] = nbytes(spec) // length
    return found


def _more(graph: Graph, cache: Input, output: int) -> int | None:
    """Bytes an output has more than the cache along its axis; ``None`` if it is not the cache grown."""
    was, now, axis = graph.values[cache.value], graph.values[output], cache.axis
    if was.dtype != now.dtype or len(was.shape) != len(now.shape) or not 0 <= axis < len(was.shape):
        return None
    if was.shape[:axis] + was.shape[axis + 1 :] != now.shape[:axis] + now.shape[axis + 1 :]:
        return None
    if now.shape[axis] < was.shape[axis]:
        return None
    added = list(now.shape)
    added[axis] -= was.shape[axis]
    return nbytes(TensorSpec(tuple(added), now.dtype))
