"""A plan changed by hand: some nodes elsewhere, all else as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from genie.device import Device
from genie.errors import PlanError, SchedulingError
from genie.graph import Graph, Node
from genie.graph.operands import operands
from genie.plan.constraints import DRAWN, ONE_STREAM, conflict, exact, grouped
from genie.plan.moves import Links, peaks, transfers
from genie.plan.records import Again, Constraint, Decision
from genie.plan.text import bytes_text
from genie.plan.timeline import makespan

if TYPE_CHECKING:
    from genie.plan.model import ExecutionPlan


def pinned(plan: ExecutionPlan, node: int | Node | str, device: str | Device) -> ExecutionPlan:
    ids = [each.id for each in plan.devices]
    device = device.id if isinstance(device, Device) else device
    if device not in ids:
        raise PlanError(f"the plan has no device {device!r}", hint=f"its devices: {', '.join(ids)}")
    to = ids.index(device)
    if isinstance(node, str):
        steps = in_module(plan.graph, node)
        if not steps:
            raise PlanError(f"the plan has no node of a module {node!r}", hint="a dotted path, like 'layers.0'")
        text = f"plan.pin({node!r}, {device!r})"
    else:
        steps = (plan.step_of(node),)
        text = f"plan.pin({plan.graph.steps[steps[0]].id}, {device!r})"
    return moved(plan, Constraint(text, steps, (to,)))


def in_module(graph: Graph, path: str) -> tuple[int, ...]:
    """The steps of the module of that path and of those inside it."""
    inside = {
        number
        for number, module in enumerate(graph.modules)
        if module.path == path or module.path.startswith(f"{path}.")
    }
    return tuple(step for step, node in enumerate(graph.steps) if node.module in inside)


def moved(plan: ExecutionPlan, pin: Constraint) -> ExecutionPlan:
    """The plan under one more constraint, which names one device. Later pins of the same steps take their turn: what
    they say is not in conflict with an earlier ``plan.pin``."""
    (to,) = pin.devices
    graph, count = plan.graph, len(plan.devices)
    homes = dict(plan.homes)
    earlier = without(plan.constraints, pin)
    held = [*earlier, pin, *exact(graph, homes)]
    groups = grouped(len(graph.steps), count, held)
    if not all(groups.allowed):
        refuse(graph, [device.id for device in plan.devices], conflict(len(graph.steps), count, held))
    going = {groups.of[step] for step in pin.steps}
    places = [to if group in going else made.device for group, made in zip(groups.of, plan.decisions, strict=True)]
    rules = plan.rules if pin.text in plan.rules else (*plan.rules, pin.text)
    decided = tuple(
        _there(made, place, rules.index(pin.text)) if group in going else made
        for made, place, group in zip(plan.decisions, places, groups.of, strict=True)
    )
    rules, decisions = _pruned(rules, decided)
    links = Links(plan.links)
    used = sorted(set(places) | set(homes.values()))
    missing = [(a, b) for a in used for b in used if (a, b) not in links]
    if missing:
        raise PlanError(
            f"the plan does not know the way from {plan.devices[missing[0][0]].id} to {plan.devices[missing[0][1]].id}",
            hint="schedule the graph anew, with pins=",
        )
    again = still(plan, places)
    moves = transfers(graph, places, links, homes, again=again)
    most = peaks(graph, places, count, plan.releases, homes, again=again)
    for number, (need, has) in enumerate(zip(most, capacities(plan), strict=True)):
        if need > has and need > (plan.peak_memory[number] if plan.peak_memory else 0):
            raise SchedulingError(
                f"{pin.text} puts {bytes_text(need)} on {plan.devices[number].id}, which has {bytes_text(has)}",
                hint="pin fewer nodes there, or move others away first",
            )
    return msgspec.structs.replace(
        plan,
        decisions=decisions,
        transfers=moves,
        again=again,
        rules=rules,
        latency=makespan(graph, decisions, moves, count, again),
        peak_memory=most,
        constraints=(*earlier, pin),
    )


def capacities(plan: ExecutionPlan) -> tuple[int, ...]:
    """Bytes each device has for this plan."""
    return plan.capacities or tuple(device.memory_bytes for device in plan.devices)


def refuse(graph: Graph, ids: Sequence[str], parts: Sequence[Constraint]) -> None:
    """Raises the error for constraints that can't all hold."""
    told = [f"{held.text} ({described(graph, ids, held)})" for held in parts]
    hint = "this is a smallest set in conflict: without any one of them the others can hold"
    if any(held.text.startswith((ONE_STREAM, DRAWN)) for held in parts):
        hint += "; what draws random numbers draws them on one device: leave it unmarked, or mark it for that device"
    raise SchedulingError(
        "these can't all hold: " + "; ".join(told) if len(told) > 1 else f"this can't hold: {told[0]}",
        where="; ".join(place(graph, step) for step in _at(parts)),
        hint=hint,
    )


def _at(parts: Sequence[Constraint]) -> list[int]:
    """The steps to look at: the first that all parts are about, else the first of each part that names devices."""
    common = set.intersection(*(set(held.steps) for held in parts))
    if common:
        return [min(common)]
    return list(dict.fromkeys(held.steps[0] for held in parts if held.steps and held.devices))


def place(graph: Graph, step: int) -> str:
    """A node, its module, and the user's line that issued it."""
    node = graph.steps[step]
    module = f" in {graph.modules[node.module].path!r}" if node.module >= 0 and graph.modules[node.module].path else ""
    return f"node {node.id} ({node.target}){module}" + (f" at {graph.sources[node.source]}" if node.source >= 0 else "")


def described(graph: Graph, ids: Sequence[str], held: Constraint) -> str:
    """Which nodes a constraint is about, and what it says of them."""
    nodes = [f"#{graph.steps[step].id}" for step in held.steps[:4]]
    more = f" and {len(held.steps) - 4} more" if len(held.steps) > 4 else ""
    where = f"on {' or '.join(ids[device] for device in held.devices)}" if held.devices else "on one device"
    return f"{' '.join(nodes)}{more} {where}"


def _there(made: Decision, place: int, rule: int) -> Decision:
    if made.device == place:
        return msgspec.structs.replace(made, rule=rule)
    if not made.elsewhere:
        raise PlanError(
            "the plan does not know what its nodes take on other devices", hint="schedule the graph anew, with pins="
        )
    return msgspec.structs.replace(made, device=place, seconds=made.elsewhere[place], rule=rule)


def _pruned(rules: tuple[str, ...], decisions: Sequence[Decision]) -> tuple[tuple[str, ...], tuple[Decision, ...]]:
    """Without the rules of pins that hold of no node any more."""
    used = {made.rule for made in decisions}
    kept = [number for number, text in enumerate(rules) if number in used or not text.startswith("plan.pin(")]
    if len(kept) == len(rules):
        return rules, tuple(decisions)
    new = {old: number for number, old in enumerate(kept)}
    renumbered = tuple(msgspec.structs.replace(made, rule=new[made.rule]) for made in decisions)
    return tuple(rules[number] for number in kept), renumbered


def still(plan: ExecutionPlan, places: Sequence[int]) -> tuple[Again, ...]:
    """What is run again and still needs to be: all that is for one step, or none of it."""
    if not plan.again:
        return ()
    first: dict[tuple[int, int], int] = {}  # (value, device) → the first step there that uses it
    for step, (taken, place) in enumerate(zip(operands(plan.graph), places, strict=True)):
        for value in taken:
            first.setdefault((value, place), step)
    over = {
        (each.device, each.before)
        for each in plan.again
        if places[each.step] == each.device
        or places[each.before] != each.device
        or any(
            first.get((value, each.device), each.before) < each.before for value in plan.graph.steps[each.step].outputs
        )
    }
    return tuple(each for each in plan.again if (each.device, each.before) not in over)


def without(constraints: Sequence[Constraint], pin: Constraint) -> tuple[Constraint, ...]:
    """The constraints, less what earlier calls of ``plan.pin`` say of the steps that this one is about."""
    again = set(pin.steps)
    kept: list[Constraint] = []
    for held in constraints:
        if held.text.startswith("plan.pin("):
            steps = tuple(step for step in held.steps if step not in again)
            if not steps:
                continue
            held = Constraint(held.text, steps, held.devices)
        kept.append(held)
    return tuple(kept)
