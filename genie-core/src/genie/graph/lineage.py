"""Lineage: what becomes of values from call to call, read off the operators alone. No names, no classes.

* ``grown``: a value is concatenated with new data along one axis, and the result takes its place;
* ``written``: new data is written into it in place, at a place that is not all of it;
* ``replaced``: another value of its shape, computed from it, takes its place;
* ``kept``: it comes from an earlier call and is used again as it is.

A *chain* is one such value through all calls of the graph, oldest version first.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from genie.graph.model import Graph

Kind = Literal["grown", "written", "replaced", "kept"]


class Lineage(NamedTuple):
    """What happens to a value from call to call. ``axis`` is the dimension it grows along or is written at, or -1."""

    kind: Kind
    axis: int
    versions: tuple[int, ...]  # values of the graph, the oldest first


def lineage(graph: Graph) -> dict[int, Lineage]:
    """Value → what becomes of it, for every version of every value that lives from call to call."""
    return {}
