"""What is known of a view's inputs from before it: where they come from, and what became of them from call to call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from genie.graph import Graph, Input
from genie.graph.lineage import Lineage, lineage_since
from genie_pytorch import lower, modules, scopes
from genie_pytorch.native import _C
from genie_pytorch.port import port

# Nodes of earlier executions that are looked at, at least; twice the view's own if those are more.
_LEAST = 4_000


def told(recorded: Sequence[lower.Recorded]) -> Graph:
    """The graph of what was recorded; its inputs say what they are and what they were."""
    view = lower.join(recorded)
    view.drop(_C.is_alive)
    for device in {each.device for each in recorded}:
        for handle, number in _C.marked_values(device):
            view.mark((device, handle), scopes.word(number))
    graph = with_origins(view)
    # Parameters stay, and what the program gave anew has no past.
    open_handles = {
        handle
        for handle, entry in zip(view.entered, graph.inputs, strict=True)
        if entry.origin not in ("parameter", "buffer", "input")
    }
    if not open_handles:
        return graph
    both = _with_past(recorded, max(_LEAST, 2 * len(graph.steps)), open_handles)
    if both is None:
        return graph
    both.drop(_C.is_alive)
    joined = both.graph()
    begins = len(joined.steps) - len(graph.steps)
    return with_lineage(graph, view.entered, both.value_of_handle, lineage_since(joined, begins))


def with_origins(view: lower.Joined) -> Graph:
    """The view's graph; its inputs say where each comes from."""
    known = {device: modules.origins(device) for device, _ in view.entered}
    inputs: list[Input] = []
    for (device, handle), entry in zip(view.entered, view.inputs, strict=True):
        now = known[device].get(handle)
        if now is None and entry.origin in ("parameter", "buffer"):
            inputs.append(entry)  # it was one when its plan was made
            continue
        name, origin = lower.known_of(now, _C.whence(device, handle))
        inputs.append(msgspec.structs.replace(entry, name=name, origin=origin))
    return msgspec.structs.replace(view.graph(), inputs=tuple(inputs))


def with_lineage(
    graph: Graph,
    entered: Sequence[lower.Handle],
    value_of_handle: Mapping[lower.Handle, int],
    found: Mapping[int, Lineage],
) -> Graph:
    """``graph`` whose inputs say their lineage. ``found`` is of another graph, where the value with a handle has the
    number ``value_of_handle`` gives; ``entered`` are the handles of the inputs."""
    inputs = []
    for handle, entry in zip(entered, graph.inputs, strict=True):
        chain = found.get(value_of_handle.get(handle, -1))
        if chain is not None and entry.origin not in ("parameter", "buffer"):
            entry = msgspec.structs.replace(entry, lineage=chain.kind, axis=chain.axis)
        inputs.append(entry)
    return msgspec.structs.replace(graph, inputs=tuple(inputs))


def _with_past(recorded: Sequence[lower.Recorded], budget: int, wanted: set[lower.Handle]) -> lower.Joined | None:
    """What was recorded, with as many executions before it as the budget of nodes allows, the latest first. None if
    these have nothing to do with the handles wanted."""
    whole: list[lower.Recorded] = []
    touched = False
    for each in recorded:
        before: list[lower.Execution] = []
        while (sent := _C.earlier(each.device, len(before))) is not None:
            number, outputs, entered, words, reshaped = sent
            graph = port.graph(number)
            budget -= len(graph.steps)
            if budget < 0:
                break
            before.append(lower.Execution(graph, words, reshaped))
            handles = (*words[1 : 1 + entered], *range(words[0], words[0] + len(outputs)))
            touched = touched or any((each.device, handle) in wanted for handle in handles)
        whole.append(each._replace(sent=[*reversed(before), *each.sent]))
    return lower.join(whole) if touched else None
