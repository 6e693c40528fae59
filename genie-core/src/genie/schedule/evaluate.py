"""What a graph needs on one device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from genie.graph import Graph
from genie.graph.sizes import sizes
from genie.plan import liveness, room


class Memory(NamedTuple):
    """Bytes a graph needs on one device: its inputs (weights included), the most that lives at once, and where."""

    inputs: int
    peak: int
    node: int  # id of the node at the peak, -1 when the inputs alone are the most


def memory(graph: Graph, releases: Sequence[Sequence[int]] | None = None) -> Memory:
    """The graph's need on one device, by liveness; values that share memory count once."""
    size = sizes(graph)
    releases = liveness(graph) if releases is None else releases
    root = list(range(len(size)))  # of each value, the first that shares its memory
    sharers = [1] * len(size)
    held = sum([size[entry.value] for entry in graph.inputs])
    inputs = peak = held
    at = -1
    needs = room(graph)
    for step, (node, gone) in enumerate(zip(graph.steps, releases, strict=True)):
        for output, operand in node.aliases:
            if root[output] == output:
                root[output] = root[operand]
                sharers[root[operand]] += 1
        for value in node.outputs:
            if value >= 0 and root[value] == value:
                held += size[value]
        now = held + needs[step] if step in needs else held
        if now > peak:
            peak, at = now, node.id
        for value in gone:
            first = root[value]
            sharers[first] -= 1
            if not sharers[first]:
                held -= size[first]
    return Memory(inputs, peak, at)


def gib(size: int) -> str:
    return f"{size / (1 << 30):.3g} GiB"
