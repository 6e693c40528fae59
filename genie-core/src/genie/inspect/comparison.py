"""What a plan took beside what was predicted, as text."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from genie.graph import printable
from genie.inspect.measured import CostsOfNodes, Measured, Traced, measured
from genie.inspect.summary import columns, percent
from genie.plan import ExecutionPlan
from genie.plan.text import time_text

_MOST = 12


class Compared(msgspec.Struct, frozen=True):
    """Something's seconds, predicted and measured."""

    what: str
    predicted: float
    measured: float


class Comparison(msgspec.Struct, frozen=True):
    """``whole`` is the plan from its first work to its last, ``devices`` their seconds of work, ``parts`` modules (of a
    profile) or stages (of a trace), what is off by most first."""

    source: str
    note: str
    whole: Compared
    devices: tuple[Compared, ...]
    parts: tuple[Compared, ...]

    def __str__(self) -> str:
        return "".join(f"{printable(line)}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"measured: {self.source}{f', {self.note}' if self.note else ''}"
        yield ""
        shown = (self.whole, *self.devices, *self.parts[:_MOST])
        yield from columns(("", "predicted", "measured", "off"), list(map(_row, shown)))
        if rest := self.parts[_MOST:]:
            yield f"{len(rest)} more are off by less"


def comparison(plan: ExecutionPlan, by: CostsOfNodes | Traced) -> Comparison:
    """Raises :class:`PlanError` when ``by`` tells nothing of this plan. See :func:`genie.inspect.page`."""
    seen = measured(plan, by)
    times = plan.timeline
    parts = _modules(plan, seen) if seen.steps else _stages(plan, seen)
    return Comparison(
        source=seen.source,
        note=seen.note,
        whole=Compared("plan", times.makespan, seen.makespan),
        devices=tuple(
            Compared(device.id, predicted, took)
            for device, predicted, took in zip(plan.devices, times.busy, seen.busy, strict=True)
            if predicted or took
        ),
        parts=tuple(sorted(parts, key=lambda part: (-round(abs(part.measured - part.predicted), 12), part.what))),
    )


def _modules(plan: ExecutionPlan, seen: Measured) -> list[Compared]:
    """What was measured of each module."""
    found: dict[str, list[float]] = {}
    for node, made, (start, finish), known in zip(
        plan.graph.steps, plan.decisions, seen.steps, seen.known, strict=True
    ):
        if known:
            path = plan.graph.modules[node.module].path if node.module >= 0 else ""
            sums = found.setdefault(path or "outside of modules", [0.0, 0.0])
            sums[0] += made.seconds
            sums[1] += finish - start
    return [Compared(path, predicted, took) for path, (predicted, took) in found.items()]


def _stages(plan: ExecutionPlan, seen: Measured) -> list[Compared]:
    found = []
    for bar in seen.bars:
        if bar.stage >= 0:
            stage = plan.stages[bar.stage]
            predicted = sum(plan.decisions[step].on(stage.device) for step in stage.steps)
            name = f"stage {bar.stage + 1} on {plan.devices[stage.device].id}"
            found.append(Compared(name, predicted, bar.finish - bar.start))
        elif bar.transfer >= 0:
            move = plan.transfers[bar.transfer]
            found.append(Compared(f"%{move.value} {bar.where}", move.seconds, bar.finish - bar.start))
    return found


def _row(its: Compared) -> tuple[str, str, str, str]:
    return its.what, time_text(its.predicted), time_text(its.measured), _off(its)


def _off(its: Compared) -> str:
    if not its.predicted:
        return ""
    off = its.measured / its.predicted - 1
    return "±0%" if abs(off) < 0.0005 else f"{'+' if off > 0 else '−'}{percent(abs(off))}"
