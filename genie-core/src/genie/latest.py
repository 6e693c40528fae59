"""Which graph a thread captured last, of whichever frontend. Nothing of it outlives a shutdown."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from typing import cast

from genie import runtime
from genie.graph import Graph
from genie.interfaces import Captures, Frontend


class _Whole(threading.local):
    """The last program that was captured whole, and how much had been captured operator by operator before."""

    graph: Graph | None = None
    before: Mapping[str, int] = {}


_whole = _Whole()


def _forget() -> None:
    global _whole
    _whole = _Whole()


runtime.on_shutdown(_forget)


def captured(graph: Graph) -> None:
    """A frontend that captures programs whole ran this one, on this thread."""
    _whole.graph = graph
    _whole.before = {name: each.captured() for name, each in _recording()}


def graph() -> Graph | None:
    """The latest of this thread; ``None`` if there is none."""
    whole, before = _whole.graph, _whole.before
    for name, each in _recording():
        if whole is None or each.captured() > before.get(name, 0):
            recorded = each.latest_graph()
            if recorded is not None:
                return recorded
    return whole


def _recording() -> list[tuple[str, Captures]]:
    return [(each.name, cast(Captures, each)) for each in runtime.loaded_frontends() if _records(type(each))]


@functools.cache
def _records(kind: type[Frontend]) -> bool:
    return issubclass(kind, Captures)  # slow, and asked at every call
