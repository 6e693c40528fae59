"""What is asked of a placement: pins, exclusions, marks, and groups that stay together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence

from genie.device import Device
from genie.errors import SchedulingError
from genie.graph import Graph
from genie.graph.random import drawing
from genie.plan import DRAWN, Constraint, in_module, place
from genie.schedule.given import id_of, ids_of

# What reads and writes one state stays with it: to move a cache on every call costs more than anything it could gain.
HARD = ("kv_cache:", "recurrent_state:")

Where = int | str  # the id of a node, or the path of a module


def asked(
    graph: Graph,
    devices: Sequence[Device],
    pins: Mapping[Where, str | Device],
    exclude: Mapping[Where, Collection[str | Device] | str | Device],
    draws: str | Device | None,
) -> list[Constraint]:
    """The constraints that a call, marks and labels make. Raises :class:`SchedulingError` for what is not there."""
    ids = [device.id for device in devices]
    found: list[Constraint] = []
    for where, given in pins.items():
        device = id_of(given)
        found.append(Constraint(f"pins={{{where!r}: {device!r}}}", steps_of(graph, where), (_index(ids, device),)))
    for where, others in exclude.items():
        names = ids_of(others)
        without = {_index(ids, name) for name in names}
        left = tuple(number for number in range(len(ids)) if number not in without)
        if not left:
            raise SchedulingError(f"exclude={{{where!r}: …}} leaves no device", hint=f"devices: {', '.join(ids)}")
        found.append(Constraint(f"exclude={{{where!r}: {', '.join(names)}}}", steps_of(graph, where), left))
    found += _marked(graph, ids)
    if len(devices) > 1:
        found += together(graph)
    if draws is not None and (steps := drawing(graph)):
        device = id_of(draws)
        found.append(Constraint(f"{DRAWN} on {device}", steps, (_index(ids, device),)))
    return found


def steps_of(graph: Graph, where: Where) -> tuple[int, ...]:
    """The steps of a node's id or a module's path."""
    if not isinstance(where, str | int) or isinstance(where, bool):
        raise SchedulingError(
            f"neither a node's id nor a module's path: {where!r}", hint="an id is a number; a path is like 'layers.0'"
        )
    if isinstance(where, str):
        steps = in_module(graph, where)
        if not steps:
            raise SchedulingError(
                f"no node of the graph is in a module {where!r}", hint="a dotted path, like 'layers.0'"
            )
        return steps
    step = bisect_left(graph.steps, where, key=lambda node: node.id)
    if step == len(graph.steps) or graph.steps[step].id != where:
        raise SchedulingError(f"the graph has no node {where!r}", hint=_numbered(graph))
    return (step,)


def _numbered(graph: Graph) -> str:
    return f"ids go from {graph.steps[0].id} to {graph.steps[-1].id}" if graph.steps else "it has no nodes"


def _marked(graph: Graph, ids: Sequence[str]) -> Iterator[Constraint]:
    if not any(mark.device for mark in graph.marks) and not any(
        node.semantics is not None and node.semantics.device is not None for node in graph.steps
    ):
        return
    by_device: dict[str, list[int]] = {}
    for step, node in enumerate(graph.steps):
        word = graph.marks[node.mark] if node.mark >= 0 else None
        name = (node.semantics.device if node.semantics is not None else None) or (word.device if word else None)
        if name is not None:
            by_device.setdefault(name, []).append(step)
    for name, steps in by_device.items():
        yield Constraint(f"genie.mark(device={name!r})", tuple(steps), (_index(ids, name, place(graph, steps[0])),))


def together(graph: Graph) -> Iterator[Constraint]:
    """Groups of nodes that stay on one device: those of one cache or state, and those the user says."""
    groups: dict[str, list[int]] = {}
    hard: dict[str, bool] = {}
    for step, node in enumerate(graph.steps):
        known = node.semantics
        if known is None or (group := known.colocation_group) is None:
            continue
        groups.setdefault(group, []).append(step)
        if not hard.get(group):
            hard[group] = group.startswith(HARD) or any(
                why.label == "colocation_group" and why.source == "user" for why in known.evidence
            )
    for group, steps in groups.items():
        if hard[group] and len(steps) > 1:
            yield Constraint(f"colocation group {group!r}", tuple(steps))


def homes_of(graph: Graph, devices: Sequence[Device], homes: Mapping[int, str | Device]) -> dict[int, int]:
    """Value → index of the device it lives on; checked."""
    ids = [device.id for device in devices]
    inputs = {entry.value for entry in graph.inputs}
    for value in homes:
        if value not in inputs:
            raise SchedulingError(f"homes: %{value} is no input of the graph")
    return {value: _index(ids, id_of(device)) for value, device in homes.items()}


def _index(ids: Sequence[str], name: str, where: str = "") -> int:
    try:
        return ids.index(name)
    except ValueError:
        raise SchedulingError(f"there is no device {name!r}", where=where, hint=f"devices: {', '.join(ids)}") from None
