"""Where an equation comes from, in the words of JAX's name stack: scopes are modules, transformations are phases."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec
from jax._src import source_info_util

from genie.graph import Evidence, Graph, Semantics


class Where(NamedTuple):
    """``module`` is a dotted path, ``source`` a line of the user's, ``backward`` whether a gradient is computed."""

    module: str = ""
    source: str = ""
    backward: bool = False


# JAX's own scopes, and the "~" of haiku's methods.
_NO_MODULES = frozenset(("rematted_computation", "checkpoint", "~", ""))
_CLASS = re.compile(r"([A-Z]\w*?)(?:_\d+)?")
_BACKWARD = Semantics(
    phase="backward", evidence=(Evidence("phase", "framework", "of the transpose of a function, in JAX's name stack"),)
)
_OPTIMIZER = Semantics(phase="optimizer", evidence=(Evidence("phase", "structure", "computed from gradients", 0.9),))


def where(equation: Any, outer: Where) -> Where:
    """Of an equation of a program that belongs to ``outer``."""
    info = equation.source_info
    parts = [outer.module] if outer.module else []
    backward = outer.backward
    for each in info.name_stack.stack:
        if isinstance(each, source_info_util.Transform):
            backward = backward or each.name == "transpose"
        else:
            parts += filter(None, map(_module, each.name.split("/")))
    frame = source_info_util.user_frame(info.traceback) if info.traceback is not None else None
    source = f"{frame.file_name}:{frame.start_line}" if frame is not None else outer.source
    return Where(".".join(parts), source, backward)


def _module(scope: str) -> str:
    """A scope as a part of a path. An einsum's is its formula, and no module; equinox's are dotted names of classes."""
    if scope in _NO_MODULES or "->" in scope:
        return ""
    return scope.rpartition(".")[2]


def class_of(path: str) -> str:
    """The class of a module that is named after it, as flax and equinox name them; "" for others."""
    found = _CLASS.fullmatch(path.rpartition(".")[2])
    return found[1] if found is not None else ""


def labels(place: Where) -> Semantics | None:
    """What is known of an operator of a place before anything is annotated."""
    return _BACKWARD if place.backward else None


def with_updates(graph: Graph) -> Graph:
    """The graph, in which what is computed from gradients, and is none itself, is the optimizer's, and so is what is
    used by that alone."""
    gradients: set[int] = set()
    updates: set[int] = set()  # ids of nodes
    for node in graph.steps:
        if node.semantics is _BACKWARD:
            gradients.update(node.outputs)
        elif not gradients.isdisjoint(node.operands()):
            gradients.update(node.outputs)
            updates.add(node.id)
    needed = set(graph.outputs)  # by others
    for node in reversed(graph.steps):
        if node.id not in updates and (node.semantics is not None or not needed.isdisjoint(node.outputs)):
            needed.update(node.operands())
        elif updates:
            updates.add(node.id)
    steps = (
        msgspec.structs.replace(node, semantics=_OPTIMIZER) if node.id in updates else node for node in graph.steps
    )
    return msgspec.structs.replace(graph, steps=tuple(steps)) if updates else graph
