"""How a node stands among the others: whether others can run beside it, and whether the end waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from genie.flops import Work
from genie.graph import Graph
from genie.graph.structure import structure

# A nominal device, to weigh nodes against each other: 10 TFLOP/s, 500 GB/s, 2 µs to start a kernel.
_SECONDS_PER_FLOP, _SECONDS_PER_BYTE, _START = 1e-13, 2e-12, 2e-6
_NEARLY = 1e-9


class Standing(NamedTuple):
    parallelizable: bool
    critical: bool


_SHARED = {(p, c): Standing(p, c) for p in (False, True) for c in (False, True)}


def standings(graph: Graph, works: Sequence[Work]) -> list[Standing]:
    """By position. Parallelizable: another node that computes has the same depth, so neither waits for the other.
    Critical: on a longest path, by roofline times on a nominal device (Williams et al., "Roofline", 2009)."""
    view = structure(graph)
    count = len(view.steps)
    depth_of = [0] * len(graph.values)  # by value
    ready = [0.0] * len(graph.values)
    depth, finish, seconds = [0] * count, [0.0] * count, [0.0] * count
    width: dict[int, int] = {}
    storage = view.storage
    for at, node in enumerate(view.steps):
        work = works[at]
        computes = work.read or work.written or work.flops
        cost = 0.0
        if computes:
            cost = _START + max((work.flops or 0) * _SECONDS_PER_FLOP, (work.read + work.written) * _SECONDS_PER_BYTE)
        deep, start = 0, 0.0
        for value in view.operands[at]:
            root = storage[value]
            deep = max(deep, depth_of[value], depth_of[root])
            start = max(start, ready[value], ready[root])
        if computes:
            deep += 1
            width[deep] = width.get(deep, 0) + 1
        end = start + cost
        depth[at], finish[at], seconds[at] = deep, end, cost
        for value in node.outputs:
            if value >= 0:
                depth_of[value], ready[value] = deep, end
        for value in node.mutates:
            root = storage[value]
            depth_of[root], ready[root] = deep, end
    makespan = max(finish, default=0.0)
    must = [makespan] * len(graph.values)  # by value: when it must be ready at the latest
    found: list[Standing] = [_SHARED[False, False]] * count
    for at in range(count - 1, -1, -1):
        node = view.steps[at]
        latest = makespan
        for value in node.outputs:
            if value >= 0:
                latest = min(latest, must[value])
        for value in node.mutates:
            latest = min(latest, must[storage[value]])
        start = latest - seconds[at]
        for value in view.operands[at]:
            root = storage[value]
            must[value] = min(must[value], start)
            must[root] = min(must[root], start)
        computes = seconds[at] > 0
        slack = latest - finish[at]
        found[at] = _SHARED[computes and width[depth[at]] > 1, computes and slack <= _NEARLY]
    return found
