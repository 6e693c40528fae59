"""What a plan really took, beside what it was predicted to take.

Two things tell: a cost model over a profile, whose rows say what each operator took (the timeline is then that of the
plan, with those times); and the trace of an emulated run, which says when each stage ran and each value was sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import attrs
import msgspec

from genie.errors import PlanError
from genie.graph import Node
from genie.plan import Decision, ExecutionPlan, timeline

if TYPE_CHECKING:
    from genie.device import Device

PROFILED = "profiled"  # what cost models say of estimates that are measurements
_MOST_BARS = 1 << 17


class Estimated(Protocol):
    @property
    def seconds(self) -> float: ...
    @property
    def source(self) -> str: ...


@runtime_checkable
class CostsOfNodes(Protocol):
    """``Profile.model()``: what it calls ``profiled`` was measured."""

    def appraise(self, nodes: Sequence[Node], device: Device) -> Sequence[Any]: ...


@runtime_checkable
class Traced(Protocol):
    """``genie.emulate.report()``: entries with ``where`` (a device, or ``a → b``), ``what``, ``start``, ``finish`` and
    ``bytes``, in order of starts."""

    @property
    def trace(self) -> Sequence[Any]: ...


@attrs.frozen
class Bar:
    """Something seen to take from ``start`` to ``finish``. ``stage`` is the plan's it is the run of, ``transfer`` the
    plan's it is; -1 where that is not known."""

    where: str
    what: str
    start: float
    finish: float
    bytes: int = 0
    stage: int = -1
    transfer: int = -1


@attrs.frozen
class Measured:
    """Times in seconds, from when the first of it began on a device.

    Of a profile: ``steps``, ``transfers`` and what is run ``again`` are when each ran, ``known`` which steps were
    measured (the others took what the plan says, as transfers did). Of a trace: ``bars``.
    """

    source: str
    makespan: float
    busy: tuple[float, ...]  # per device
    steps: tuple[tuple[float, float], ...] = ()
    known: tuple[bool, ...] = ()
    transfers: tuple[tuple[float, float], ...] = ()
    again: tuple[tuple[float, float], ...] = ()
    bars: tuple[Bar, ...] = ()
    note: str = ""


def measured(plan: ExecutionPlan, by: CostsOfNodes | Traced) -> Measured:
    """Lay out what was measured by the plan. Raises :class:`PlanError` when it is nothing of this plan's."""
    if isinstance(by, Traced):
        return _of_trace(plan, by)
    if isinstance(by, CostsOfNodes):
        return _of_profile(plan, by)
    raise PlanError(
        f"{type(by).__name__} measures nothing",
        hint="give a cost model over a profile (Profile.model()), or genie.emulate.report()",
    )


def _of_profile(plan: ExecutionPlan, model: CostsOfNodes) -> Measured:
    nodes = list(plan.graph.nodes())
    decisions = list(plan.decisions)
    known = [False] * len(nodes)
    for number, device in enumerate(plan.devices):
        own = [step for step, made in enumerate(plan.decisions) if made.device == number]
        here = [*own, *(each.step for each in plan.again if each.device == number)]
        answers: Sequence[Estimated] = model.appraise([nodes[step] for step in here], device) if here else ()
        for step, answer in zip(here, answers, strict=True):
            if answer.source == PROFILED:
                known[step] |= decisions[step].device == number
                decisions[step] = _took(decisions[step], number, answer.seconds)
    if nodes and not any(known):
        raise PlanError(
            "none of the plan's operators were measured on its devices",
            hint="a profile's rows are of one hardware, shapes, dtypes and phase: `genie profile show`",
        )
    times = timeline(plan.graph, decisions, plan.transfers, len(plan.devices), plan.again)
    count = sum(known)
    return Measured(
        source="profile",
        makespan=times.makespan,
        busy=times.busy,
        steps=tuple((span.start, span.finish) for span in times.steps),
        known=tuple(known),
        transfers=tuple((span.start, span.finish) for span in times.transfers),
        again=tuple((span.start, span.finish) for span in times.again),
        note=f"{count:,} of {len(known):,} nodes measured" + (", transfers as predicted" if times.transfers else ""),
    )


def _took(made: Decision, device: int, seconds: float) -> Decision:
    elsewhere = (*made.elsewhere[:device], seconds, *made.elsewhere[device + 1 :]) if made.elsewhere else ()
    own = seconds if made.device == device else made.seconds
    return msgspec.structs.replace(made, seconds=own, elsewhere=elsewhere)


def _of_trace(plan: ExecutionPlan, report: Traced) -> Measured:
    trace = report.trace
    if len(trace) > _MOST_BARS:
        raise PlanError(f"the trace has {len(trace)} entries, more than {_MOST_BARS}")
    ids = [device.id for device in plan.devices]
    stages: dict[str, list[int]] = {}
    for number, stage in enumerate(plan.stages):
        stages.setdefault(ids[stage.device], []).append(number)
    runs: dict[str, list[int]] = {}
    for position, entry in enumerate(trace):
        if entry.where in ids:
            runs.setdefault(entry.where, []).append(position)
    if not runs:
        there = ", ".join(dict.fromkeys(str(entry.where) for entry in trace)) or "nothing"
        raise PlanError(f"the trace has no work of the plan's devices ({', '.join(ids)})", hint=f"it has {there}")
    calls = _calls(stages, runs)
    stage_of: dict[int, int] = {}
    if calls:
        for where, numbers in stages.items():
            last = runs[where][-len(numbers) :]
            stage_of.update(zip(last, numbers, strict=True))
    work = stage_of or [position for its in runs.values() for position in its]
    first = min(trace[position].start for position in work)
    # Of several calls the last is shown: what began once the one before was done.
    earlier = [trace[p].finish for its in runs.values() for p in its if stage_of and p not in stage_of]
    since = min(first, max(earlier, default=float("-inf")))
    shown = [p for p in range(len(trace)) if p in stage_of or (trace[p].where not in ids and trace[p].start >= since)]
    if not stage_of:
        shown = list(range(len(trace)))
    sent = _sent(plan, trace, shown)
    bars = tuple(
        Bar(
            entry.where,
            entry.what,
            entry.start - first,
            entry.finish - first,
            entry.bytes,
            stage_of.get(position, -1),
            sent.get(position, -1),
        )
        for position, entry in ((position, trace[position]) for position in shown)
    )
    done = [bar for bar in bars if bar.where in ids]
    busy = tuple(sum(bar.finish - bar.start for bar in done if bar.where == name) for name in ids)
    note = "" if stage_of else "not this plan stage by stage: what ran is shown as it was seen"
    if calls > 1:
        note = f"the last of {calls} calls"
    return Measured("emulated run", max(bar.finish for bar in done), busy, bars=bars, note=note)


def _calls(stages: dict[str, list[int]], runs: dict[str, list[int]]) -> int:
    """How often the plan ran, when all devices ran just its stages; else 0."""
    if stages.keys() != runs.keys():
        return 0
    counts = {divmod(len(runs[where]), len(stages[where])) for where in stages}
    (times, rest), *others = counts
    return times if not rest and not others else 0


def _sent(plan: ExecutionPlan, trace: Sequence[Any], shown: Sequence[int]) -> dict[int, int]:
    """Which of the plan's transfers an entry is: where as many went a way as the plan says, of the same sizes."""
    ids = [device.id for device in plan.devices]
    ways: dict[str, list[int]] = {}
    for number, move in enumerate(plan.transfers):
        ways.setdefault(f"{ids[move.source]} → {ids[move.target]}", []).append(number)
    seen: dict[str, list[int]] = {}
    for position in shown:
        seen.setdefault(trace[position].where, []).append(position)
    found: dict[int, int] = {}
    for way, numbers in ways.items():
        numbers.sort(key=lambda number: plan.timeline.transfers[number].start)
        positions = seen.get(way, [])
        if [plan.transfers[number].bytes for number in numbers] == [trace[position].bytes for position in positions]:
            found.update(zip(positions, numbers, strict=True))
    return found
