"""Lives of values: when each is used last, and which share memory that is written to."""

from __future__ import annotations

from collections.abc import Sequence

from genie.graph import Graph
from genie.graph.operands import operands


def liveness(graph: Graph) -> tuple[tuple[int, ...], ...]:
    """Per step, the values to forget after it: used there for the last time, or made there and never used.

    Outputs of the graph are never among them, and inputs only when donated.
    """
    last: dict[int, int] = {entry.value: 0 for entry in graph.inputs if entry.donated}
    for step, (node, taken) in enumerate(zip(graph.steps, operands(graph), strict=True)):
        for value in taken:
            if value in last:
                last[value] = step
        for value in node.outputs:
            if value >= 0:
                last[value] = step
    for value in graph.outputs:
        last.pop(value, None)
    releases: list[list[int]] = [[] for _ in graph.steps]
    if releases:
        for value, step in last.items():
            releases[step].append(value)
    return tuple(map(tuple, map(sorted, releases)))


def split_storage(graph: Graph, device: Sequence[int]) -> int | None:
    """A value whose memory is written to while nodes on two devices use it, given each step's device; or ``None``."""
    root: dict[int, int] = {}
    for node in graph.steps:
        for output, operand in node.aliases:
            root[output] = root.get(operand, operand)
    written = {root.get(value, value) for node in graph.steps for value in node.mutates}
    home: dict[int, int] = {}
    if written:
        for node, taken, place in zip(graph.steps, operands(graph), device, strict=True):
            for value in (*taken, *node.outputs):
                storage = root.get(value, value)
                if storage in written and home.setdefault(storage, place) != place:
                    return value
    return None
