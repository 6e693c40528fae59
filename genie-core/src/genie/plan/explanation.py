"""Why a node runs where it does, and what it would cost elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from genie.errors import PlanError, SchedulingError
from genie.graph import node_text
from genie.plan.constraints import exact
from genie.plan.pinning import described, moved
from genie.plan.records import Constraint
from genie.plan.text import bytes_text, time_text

if TYPE_CHECKING:
    from genie.plan.model import ExecutionPlan


class Alternative(msgspec.Struct, frozen=True, omit_defaults=True):
    """Another device for a node: its ``seconds`` there, those of the ``transfers`` it would cause (of it and of all
    that must go with it), the plan's ``latency`` then; or, when it can't run there, why it is ``refused``."""

    device: str
    seconds: float
    transfers: float = 0.0
    latency: float = 0.0
    refused: str = ""


class Explanation(msgspec.Struct, frozen=True):
    """The answer of :meth:`ExecutionPlan.explain`; prints as a short paragraph.

    Times are in seconds; ``start`` and ``finish`` from the start of the plan. ``error`` is the relative error expected
    of the estimate, 0 where none is known. ``critical`` says whether the plan's latency waits for this node.
    """

    node: int
    line: str
    device: str
    rule: str
    seconds: float
    source: str
    elsewhere: dict[str, float]
    arrivals: tuple[str, ...]
    error: float = 0.0
    bound: str = ""
    start: float = 0.0
    finish: float = 0.0
    critical: bool = False
    again: tuple[str, ...] = ()  # devices that run it again, instead of being sent what it makes
    waits: str = ""
    constraints: tuple[str, ...] = ()
    alternatives: tuple[Alternative, ...] = ()

    def __str__(self) -> str:
        lines = [self.line, f"  runs on {self.device}, by rule: {self.rule}"]
        sure = f"{self.source}, ±{self.error:.0%}" if self.error else self.source
        bound = f", bound by {self.bound}" if self.bound else ""
        lines.append(f"  estimated {time_text(self.seconds)} ({sure}){bound}")
        critical = "on the critical path" if self.critical else "not on the critical path"
        lines.append(f"  from {time_text(self.start)} to {time_text(self.finish)}, {critical}")
        if self.again:
            lines.append(f"  recomputed on {', '.join(self.again)}: cheaper than to send")
        if self.waits:
            lines.append(f"  waits for {self.waits}")
        for other in self.alternatives:
            took = f"  on {other.device} it would take {time_text(other.seconds)}"
            if other.refused:
                lines.append(f"{took}, but it can't run there: {other.refused}")
            elif other.latency:
                sent = f" and {time_text(other.transfers)} of transfers" if other.transfers else ""
                lines.append(f"{took}{sent}; the plan would take {time_text(other.latency)}")
            else:
                lines.append(took)
        lines += [f"  needs {arrival}" for arrival in self.arrivals]
        lines += [f"  held by: {text}" for text in self.constraints]
        return "\n".join(lines)


def explain(plan: ExecutionPlan, step: int) -> Explanation:
    made = plan.decisions[step]
    ids = [device.id for device in plan.devices]
    times = plan.timeline
    span = times.steps[step]
    held = _holding(plan, step)
    return Explanation(
        node=plan.graph.steps[step].id,
        line=node_text(plan.graph.steps[step], plan.graph),
        device=ids[made.device],
        rule=plan.rules[made.rule] if plan.rules else "",
        seconds=made.seconds,
        source=made.source,
        elsewhere={ids[i]: cost for i, cost in enumerate(made.elsewhere) if i != made.device},
        arrivals=tuple(
            f"%{move.value} from {ids[move.source]}: {move.bytes} bytes in {time_text(move.seconds)}"
            for move in plan.transfers
            if move.target == made.device and move.before == step
        ),
        error=made.error,
        bound=made.bound,
        start=span.start,
        finish=span.finish,
        critical=step in times.critical_steps,
        again=tuple(ids[each.device] for each in plan.again if each.step == step),
        waits=_waits(plan, step),
        constraints=tuple(f"{each.text}: {described(plan.graph, ids, each)}" for each in held),
        alternatives=tuple(_alternative(plan, step, device) for device in range(len(ids)) if device != made.device)
        if made.elsewhere
        else (),
    )


def _holding(plan: ExecutionPlan, step: int) -> list[Constraint]:
    every = exact(plan.graph, dict(plan.homes)) if len(plan.devices) > 1 else []
    return [held for held in (*plan.constraints, *every) if step in held.steps]


def _waits(plan: ExecutionPlan, step: int) -> str:
    ids = [device.id for device in plan.devices]
    steps = plan.graph.steps
    span = plan.timeline.steps[step]
    if span.waits == "device":
        before = steps[span.on if span.on < len(steps) else plan.again[span.on - len(steps)].step]
        return f"{ids[plan.decisions[step].device]}, which runs #{before.id} before"
    if span.waits == "transfer":
        move = plan.transfers[span.on]
        size = bytes_text(move.bytes)
        return f"%{move.value}, {size} that take {time_text(move.seconds)} from {ids[move.source]}"
    return ""


def _alternative(plan: ExecutionPlan, step: int, device: int) -> Alternative:
    name = plan.devices[device].id
    seconds = plan.decisions[step].elsewhere[device]
    try:
        other = moved(plan, Constraint(f"#{plan.graph.steps[step].id} on {name}", (step,), (device,)))
    except SchedulingError as error:
        return Alternative(name, seconds, refused=error.message)
    except PlanError:  # the plan knows too little of other devices to tell more
        return Alternative(name, seconds)
    before = {(move.value, move.target) for move in plan.transfers}
    caused = sum(move.seconds for move in other.transfers if (move.value, move.target) not in before)
    return Alternative(name, seconds, caused, other.latency)
