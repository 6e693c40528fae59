"""The values each step takes."""

from __future__ import annotations

from genie.graph.model import Graph, Many, Ref, refs
from genie.graph.once import once


@once
def operands(graph: Graph) -> tuple[tuple[int, ...], ...]:
    """Per step, the values it takes, each once, in the order of its arguments."""
    found: list[tuple[int, ...]] = []
    for node in graph.steps:
        taken: dict[int, None] = {}
        for arg in node.args:
            if type(arg) is Ref:
                taken[arg.value] = None
            elif type(arg) is Many:
                taken.update(dict.fromkeys(refs(arg.items)))
        found.append(tuple(taken))
    return tuple(found)
