"""What the page is given of a plan: when everything happens, where, and why. Times are whole nanoseconds."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from typing import Any

from genie.graph import printable
from genie.inspect.measured import Measured
from genie.inspect.summary import summary
from genie.plan import ExecutionPlan, exact, verify
from genie.plan.pinning import described
from genie.plan.timeline import Span

_KINDS = ("", "device", "transfer", "made", "sender", "receiver")


def chart(plan: ExecutionPlan, measured: Measured | None = None) -> dict[str, Any]:
    """Plain values. Raises :class:`PlanError` for a plan that breaks a rule."""
    verify(plan)
    times = plan.timeline
    ids = [device.id for device in plan.devices]
    stage_of = [0] * len(plan.decisions)
    for number, stage in enumerate(plan.stages):
        for step in stage.steps:
            if plan.decisions[step].device == stage.device:  # else it is run again there
                stage_of[step] = number
    tables: dict[str, dict[Any, int]] = {"source": {}, "bound": {}, "elsewhere": {}}

    def row(name: str, key: Any) -> int:
        return tables[name].setdefault(key, len(tables[name]))

    steps = [
        (
            made.device,
            stage_of[step],
            made.rule,
            row("source", made.source),
            row("bound", made.bound),
            row("elsewhere", tuple(map(_ns, made.elsewhere))),
            round(made.error, 4),
        )
        for step, made in enumerate(plan.decisions)
    ]
    held = [*plan.constraints, *(exact(plan.graph, dict(plan.homes)) if len(plan.devices) > 1 else ())]
    whole = summary(plan)
    return {
        "devices": [
            [
                printable(device.id),
                printable(device.type),
                use.nodes,
                _ns(use.busy),
                use.need,
                use.have,
                device.compute_tflops,
                device.memory_bandwidth_gb_s or 0,
            ]
            for device, use in zip(plan.devices, whole.devices, strict=True)
        ],
        # A way without a limit has 0: JSON knows no infinity.
        "links": [
            [x.source, x.target, _ns(x.latency), x.bytes_per_second if isfinite(x.bytes_per_second) else 0]
            for x in plan.links
        ],
        "times": _spans(times.steps),
        "steps": [number for its in steps for number in its],
        "sources": list(map(printable, tables["source"])),
        "bounds": list(map(printable, tables["bound"])),
        "elsewhere": [list(its) for its in tables["elsewhere"]],
        "rules": list(map(printable, plan.rules)),
        "stages": len(plan.stages),
        "transfers": [
            number
            for move in plan.transfers
            for number in (move.value, move.source, move.target, move.before, move.bytes)
        ],
        "sent": _spans(times.transfers),
        "again": [number for each in plan.again for number in (each.step, each.device, each.before)],
        "agains": _spans(times.again),
        "critical": list(times.critical_steps),
        "criticalSent": list(times.critical_transfers),
        "makespan": _ns(times.makespan),
        "held": [[printable(f"{each.text}: {described(plan.graph, ids, each)}"), list(each.steps)] for each in held],
        "bottleneck": printable(whole.bottleneck),
        "parts": [[printable(part.what), _ns(part.seconds)] for part in whole.critical],
        "measured": _measured(measured) if measured is not None else None,
    }


def _measured(its: Measured) -> dict[str, Any]:
    return {
        "source": its.source,
        "note": its.note,
        "makespan": _ns(its.makespan),
        "busy": list(map(_ns, its.busy)),
        "times": _pairs(its.steps),
        "known": "".join("1" if known else "0" for known in its.known),
        "sent": _pairs(its.transfers),
        "again": _pairs(its.again),
        "bars": [
            [printable(b.where), printable(b.what), _ns(b.start), _ns(b.finish), b.bytes, b.stage, b.transfer]
            for b in its.bars
        ],
    }


def _spans(spans: Iterable[Span]) -> list[int]:
    """Of each: start, finish, what it waits for (the kind's number), and which."""
    return [
        number for span in spans for number in (_ns(span.start), _ns(span.finish), _KINDS.index(span.waits), span.on)
    ]


def _pairs(spans: Iterable[tuple[float, float]]) -> list[int]:
    return [_ns(time) for span in spans for time in span]


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
