"""A plan repeated where it runs: what one iteration hands to the next, and what comes back after each."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import msgspec

from genie.bindings import numbers
from genie.errors import PlanError
from genie.graph import Graph

MOST_ITERATIONS = 1 << 31
MOST_EMITTED = 16

_Index = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
_Step = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class Loop(msgspec.Struct, frozen=True, array_like=True):
    """How a plan's bindings (:mod:`genie.bindings`) go on from one iteration to the next.

    ``carries`` are pairs: input i of the next iteration is output k of this one. ``strides`` are pairs, too: integer
    parameter p grows by so much per iteration (modulo 2**64). All other words stay as they are; each iteration's
    outputs take the handles of those of the iteration before, which are freed unless they are carried. After each
    iteration the elements of the outputs in ``emit`` are told, and the loop ends when output ``stop``, of one
    element, is not zero (-1: after the iterations asked for).
    """

    carries: tuple[tuple[_Index, _Index], ...] = ()
    strides: tuple[tuple[_Index, _Step], ...] = ()
    emit: tuple[_Index, ...] = ()
    stop: Annotated[int, msgspec.Meta(ge=-1, lt=1 << 31)] = -1


def verify(loop: Loop, graph: Graph, times: int) -> None:
    """Raise :class:`PlanError` unless ``graph`` can be repeated this way."""
    outputs, inputs, floats = len(graph.outputs), len(graph.inputs), parameters_are_float(graph)
    if not 0 < times < MOST_ITERATIONS:
        raise PlanError(f"a loop of {times} iterations")
    for given, output in loop.carries:
        if not (0 <= given < inputs and 0 <= output < outputs):
            raise PlanError(f"a loop carries output {output} into input {given}; the plan has {outputs} and {inputs}")
    for output in (*loop.emit, *((loop.stop,) if loop.stop != -1 else ())):
        if not 0 <= output < outputs:
            raise PlanError(f"a loop looks at output {output}; the plan has {outputs}")
    for parameter, _ in loop.strides:
        if not 0 <= parameter < len(floats) or floats[parameter]:
            raise PlanError(f"a loop steps parameter {parameter}, which is no integer parameter of the plan")
    if len(set(loop.emit)) != len(loop.emit) or len(loop.emit) > MOST_EMITTED:
        raise PlanError(f"a loop tells {len(loop.emit)} outputs; at most {MOST_EMITTED}, and each once")
    into, out_of = (Counter(side) for side in zip(*loop.carries, strict=True)) if loop.carries else (Counter(),) * 2
    if any(count > 1 for count in into.values()):
        raise PlanError("a loop carries two outputs into one input")
    if len({parameter for parameter, _ in loop.strides}) != len(loop.strides):
        raise PlanError("a loop steps one parameter twice")
    carried = dict(loop.carries)
    for index, entry in enumerate(graph.inputs):
        if entry.donated and (index not in carried or out_of[carried[index]] > 1):
            raise PlanError(f"input {index} is donated, so it is gone after one iteration, and nothing takes its place")


def parameters_are_float(graph: Graph) -> tuple[bool, ...]:
    """Of each parameter of the graph, in the order of :func:`genie.bindings.parameters`."""
    return tuple(isinstance(number, float) for node in graph.steps for arg in node.args for number in numbers(arg))
