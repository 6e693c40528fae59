"""What must hold of a placement, worked out: steps that go together, where they may run, and what can't all hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from genie.graph import Graph
from genie.graph.operands import operands
from genie.graph.random import drawing
from genie.plan.records import Constraint

# What constraints are called that are about random numbers: how one is met is not plain from its text.
ONE_STREAM = "they draw random numbers, from one stream"
DRAWN = "random numbers are drawn"


class Groups(NamedTuple):
    """``of[step]`` numbers the steps that must be together; ``allowed[group]`` has a bit for each device they may
    run on."""

    of: list[int]
    allowed: list[int]


def exact(graph: Graph, homes: Mapping[int, int]) -> list[Constraint]:
    """What every placement of a graph must keep to be exact. ``homes`` says on which device inputs live.

    * Values that share memory with one that is written to are on one device, with all nodes that use them.
    * So are values that share memory when two or more of them outlive the graph: a later write to one must be seen
      in the others.
    * If such memory is an input's that lives somewhere, it stays there.
    * All nodes that draw random numbers draw from one stream.
    """
    found = _shared_memory(graph, homes)
    draws = drawing(graph)
    if len(draws) > 1:
        found.append(Constraint(ONE_STREAM, draws))
    return found


def _shared_memory(graph: Graph, homes: Mapping[int, int]) -> list[Constraint]:
    root: dict[int, int] = {}

    def first(value: int) -> int:
        while (parent := root.get(value, value)) != value:
            root[value] = root.get(parent, parent)
            value = parent
        return value

    written: list[int] = []
    for node in graph.steps:
        for output, operand in node.aliases:
            a, b = first(output), first(operand)
            root[max(a, b)] = min(a, b)
            root.setdefault(min(a, b), min(a, b))
        written += node.mutates
    if not root and not written:
        return []
    why: dict[int, str] = {}
    # The memory of an input, be it donated or not, may have other names that the graph does not see.
    entered = [entry.value for entry in graph.inputs]
    survivors: dict[int, int] = {}
    for value in dict.fromkeys((*entered, *graph.outputs)):
        if value in root:
            other = survivors.setdefault(first(value), value)
            if other != value:
                why.setdefault(first(value), f"%{other} and %{value} share memory and may outlive the graph")
    for value in written:
        family = first(value)
        why[family] = f"the memory of %{family} is written in place"
    if not why:
        return []
    steps: dict[int, list[int]] = {family: [] for family in why}
    for step, (node, taken) in enumerate(zip(graph.steps, operands(graph), strict=True)):
        touched = {first(value) for value in taken}
        touched.update(first(value) for value in node.outputs if value >= 0)
        for family in touched:
            if family in steps:
                steps[family].append(step)
    lives: dict[int, list[tuple[int, int]]] = {}
    for value, device in homes.items():
        family = first(value)
        if family in why:
            lives.setdefault(family, []).append((value, device))
    found: list[Constraint] = []
    for family, text in why.items():
        its = tuple(steps[family])
        if len(its) > 1:
            found.append(Constraint(text, its))
        for value, device in lives.get(family, ()):
            found.append(Constraint(f"{text}, where %{value} lives", its, (device,)))
    return found


def grouped(steps: int, devices: int, constraints: Sequence[Constraint]) -> Groups:
    """The groups that constraints make of the steps. One that is allowed nowhere is a conflict."""
    parent = list(range(steps))

    def find(step: int) -> int:
        while parent[step] != step:
            parent[step] = step = parent[parent[step]]
        return step

    for held in constraints:
        if not held.devices and held.steps:
            one = find(held.steps[0])
            for step in held.steps:
                other = find(step)
                if other != one:
                    # The earlier step stands for all: groups are numbered in the order of their first steps.
                    one, other = min(one, other), max(one, other)
                    parent[other] = one
    number: dict[int, int] = {}
    of = []
    for step in range(steps):
        top = parent[step] if parent[step] == step else find(step)
        of.append(number.setdefault(top, len(number)))
    allowed = [(1 << devices) - 1] * len(number)
    for held in constraints:
        if held.devices:
            mask = _mask(held)
            for step in held.steps:
                allowed[of[step]] &= mask
    return Groups(of, allowed)


def conflict(steps: int, devices: int, constraints: Sequence[Constraint]) -> tuple[Constraint, ...]:
    """A smallest set of constraints that can't all hold: without any one of them the others can. Empty when all can."""
    groups = grouped(steps, devices, constraints)
    bad = next((group for group, mask in enumerate(groups.allowed) if not mask), None)
    if bad is None:
        return ()
    member = {step for step, group in enumerate(groups.of) if group == bad}
    kept = [held for held in constraints if not member.isdisjoint(held.steps)]
    for held in list(kept):  # the deletion filter: what is not missed is left out
        without = [other for other in kept if other is not held]
        if _impossible(without, devices):
            kept = without
    return tuple(kept)


def _impossible(constraints: Sequence[Constraint], devices: int) -> bool:
    parent: dict[int, int] = {}

    def find(step: int) -> int:
        while (above := parent.setdefault(step, step)) != step:
            parent[step] = step = parent[above]
        return step

    for held in constraints:
        if not held.devices:
            for step in held.steps:
                parent[find(step)] = find(held.steps[0])
    allowed: dict[int, int] = {}
    for held in constraints:
        if held.devices:
            for step in held.steps:
                top = find(step)
                allowed[top] = allowed.get(top, (1 << devices) - 1) & _mask(held)
    return not all(allowed.values())


def _mask(held: Constraint) -> int:
    mask = 0
    for device in held.devices:
        mask |= 1 << device
    return mask


def broken(places: Sequence[int], constraints: Sequence[Constraint]) -> Constraint | None:
    """The first constraint that a placement breaks."""
    for held in constraints:
        its = {places[step] for step in held.steps}
        if (held.devices and not its.issubset(held.devices)) or (not held.devices and len(its) > 1):
            return held
    return None
