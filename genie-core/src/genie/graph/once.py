"""Facts of a graph, worked out once and remembered with it: a graph is frozen, so they hold for good."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

from genie.graph.model import Graph

_T = TypeVar("_T")


def once(fact: Callable[[Graph], _T]) -> Callable[[Graph], _T]:
    """``fact``, asked once of each graph. Its answer is shared: nobody may change it."""
    key = f"{fact.__module__}.{fact.__qualname__}"

    @functools.wraps(fact)
    def remembered(graph: Graph) -> _T:
        known = graph.__dict__
        try:
            answer: _T = known[key]
        except KeyError:
            answer = known[key] = fact(graph)
        return answer

    return remembered
