"""Facts of a graph, worked out once and remembered with it: a graph is frozen, so they hold for good."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

from genie.graph.model import Graph

_T = TypeVar("_T")


def forget(graph: Graph) -> None:
    """Let go of what is remembered: a graph may be kept for long after it was asked last."""
    for key in [key for key in graph.__dict__ if key in _facts]:
        del graph.__dict__[key]


_facts: set[str] = set()


def once(fact: Callable[[Graph], _T]) -> Callable[[Graph], _T]:
    """``fact``, asked once of each graph. Its answer is shared: nobody may change it."""
    key = f"{fact.__module__}.{fact.__qualname__}"
    _facts.add(key)

    @functools.wraps(fact)
    def remembered(graph: Graph) -> _T:
        known = graph.__dict__
        try:
            answer: _T = known[key]
        except KeyError:
            answer = known[key] = fact(graph)
        return answer

    return remembered
