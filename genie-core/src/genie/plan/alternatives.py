"""What steps would cost on another device, or what keeps them from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from genie.errors import PlanError, SchedulingError
from genie.plan.constraints import conflict, exact, grouped
from genie.plan.moves import peaks
from genie.plan.pinning import capacities, described, moved, still, without
from genie.plan.records import Constraint

if TYPE_CHECKING:
    from genie.plan.model import ExecutionPlan

PIN, EXCLUSION, COLOCATION, MEMORY = "pin", "exclusion", "co-location", "memory"
_PINS = ("pins=", "plan.pin(", "genie.mark(", "random numbers are drawn on")


class Alternative(msgspec.Struct, frozen=True, omit_defaults=True):
    """Another device for a node: its ``seconds`` there, those of the ``transfers`` it would cause (of it and of all
    that must go with it) and of those it would have ``saved``, the plan's ``latency`` then.

    When it can't run there: why it is ``refused``, and the kinds of constraints in its way, any of ``pin``,
    ``exclusion``, ``co-location``, ``memory``; of memory the bytes that device would ``need`` and those it can
    ``have``.
    """

    device: str
    seconds: float
    transfers: float = 0.0
    latency: float = 0.0
    refused: str = ""
    saved: float = 0.0
    kinds: tuple[str, ...] = ()
    need: int = 0
    have: int = 0


def alternative(plan: ExecutionPlan, steps: Sequence[int], device: int, what: str) -> Alternative:
    """``steps``, called ``what``, all on ``device``."""
    name = plan.devices[device].id
    seconds = sum(plan.decisions[step].elsewhere[device] for step in steps)
    pin = Constraint(f"{what} on {name}", tuple(steps), (device,))
    try:
        other = moved(plan, pin)
    except SchedulingError as error:
        return _refused(plan, pin, seconds, error)
    except PlanError:  # the plan knows too little of other devices to tell more
        return Alternative(name, seconds)
    before = {(move.value, move.target): move.seconds for move in plan.transfers}
    after = {(move.value, move.target): move.seconds for move in other.transfers}
    caused = sum(took for way, took in after.items() if way not in before)
    saved = sum(took for way, took in before.items() if way not in after)
    return Alternative(name, seconds, caused, other.latency, saved=saved)


def kinds(constraints: Iterable[Constraint]) -> tuple[str, ...]:
    """What kinds of constraints these are, each kind once."""
    return tuple(dict.fromkeys(_kind(held) for held in constraints))


def _kind(held: Constraint) -> str:
    if held.text.startswith("exclude="):
        return EXCLUSION
    return PIN if held.devices and held.text.startswith(_PINS) else COLOCATION


def _refused(plan: ExecutionPlan, pin: Constraint, seconds: float, error: SchedulingError) -> Alternative:
    (to,) = pin.devices
    graph, count, homes = plan.graph, len(plan.devices), dict(plan.homes)
    ids = [each.id for each in plan.devices]
    held = [*without(plan.constraints, pin), pin, *exact(graph, homes)]
    groups = grouped(len(graph.steps), count, held)
    if not all(groups.allowed):
        parts = [part for part in conflict(len(graph.steps), count, held) if part is not pin]
        told = "; ".join(f"{part.text} ({described(graph, ids, part)})" for part in parts)
        return Alternative(ids[to], seconds, refused=told, kinds=kinds(parts))
    going = {groups.of[step] for step in pin.steps}
    places = [to if group in going else made.device for group, made in zip(groups.of, plan.decisions, strict=True)]
    most = peaks(graph, places, count, plan.releases, homes, again=still(plan, places))
    need, have = max(zip(most, capacities(plan), strict=True), key=lambda its: its[0] - its[1])
    return Alternative(ids[to], seconds, refused=error.message, kinds=(MEMORY,), need=need, have=have)
