"""Why a node runs where it does, when, and what it would cost elsewhere."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import msgspec

from genie.graph import node_text
from genie.plan.alternatives import Alternative, alternative
from genie.plan.constraints import exact
from genie.plan.pinning import described
from genie.plan.records import Constraint
from genie.plan.text import bytes_text, engine_text, time_text

if TYPE_CHECKING:
    from genie.plan.model import ExecutionPlan


class Wait(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node began right after.

    ``kind`` is ``device`` (busy with ``node``), ``operand`` (``node`` makes ``value`` just before, on the same device)
    or ``transfer`` (``value`` arrives from ``device``: so many ``bytes`` in ``seconds``). ``idle`` are the seconds the
    node's device had nothing to do meanwhile.
    """

    kind: str
    device: str
    node: int = -1
    value: int = -1
    bytes: int = 0
    seconds: float = 0.0
    idle: float = 0.0


class Explanation(msgspec.Struct, frozen=True):
    """The answer of :meth:`ExecutionPlan.explain`; prints as a short paragraph.

    Times are in seconds; ``start`` and ``finish`` from the start of the plan. ``error`` is the relative error expected
    of the estimate, 0 where none is known. ``critical`` says whether the plan's latency waits for this node.

    ``bound`` is what it takes longest with: ``compute``, ``memory`` or ``overhead`` of its device, as estimated; or
    ``network`` when its device is idle for longer than the node takes, until an operand arrives. ``work`` is what
    bounds it on the device alone.
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
    work: str = ""
    wait: Wait | None = None
    behind: str = ""  # of the transfer it waits for: what that waited for in turn
    engine: str = ""  # of a program that comes with an artifact: what runs it as a whole, and why

    def __str__(self) -> str:
        lines = [self.line, f"  runs on {self.device}, by rule: {self.rule}"]
        if self.engine:
            lines.append(f"  with all of the program {self.engine}")
        sure = f"{self.source}, ±{self.error:.0%}" if self.error else self.source
        lines.append(f"  estimated {time_text(self.seconds)} ({sure}){self._bounds()}")
        critical = "on the critical path" if self.critical else "not on the critical path"
        lines.append(f"  from {time_text(self.start)} to {time_text(self.finish)}, {critical}")
        if self.again:
            lines.append(f"  recomputed on {', '.join(self.again)}: cheaper than to send")
        if self.waits:
            lines.append(f"  waits for {self.waits}")
        if self.behind:
            lines.append(f"    {self.behind}")
        lines += alternative_lines(self.alternatives)
        lines += [f"  needs {arrival}" for arrival in self.arrivals]
        lines += [f"  held by: {text}" for text in self.constraints]
        return "\n".join(lines)

    def _bounds(self) -> str:
        work = f", bound by {self.work}" if self.work else ""
        if self.bound != "network" or self.wait is None:
            return work
        return f"{work}; with what it waits for, bound by network: {self.device} is idle {time_text(self.wait.idle)}"


def alternative_lines(others: Collection[Alternative]) -> list[str]:
    """A line for each, as :class:`Explanation` prints them."""
    lines = []
    for other in others:
        took = f"  on {other.device} it would take {time_text(other.seconds)}"
        if other.refused:
            lines.append(f"{took}, but it can't run there ({', '.join(other.kinds)}): {other.refused}")
        elif other.latency:
            sent = f" and {time_text(other.transfers)} of transfers" if other.transfers else ""
            spared = f", less {time_text(other.saved)} it needs now" if other.saved else ""
            lines.append(f"{took}{sent}{spared}; the plan would take {time_text(other.latency)}")
        else:
            lines.append(took)
    return lines


def explain(plan: ExecutionPlan, step: int) -> Explanation:
    made = plan.decisions[step]
    ids = [device.id for device in plan.devices]
    times = plan.timeline
    span = times.steps[step]
    wait = waiting(plan, step)
    starved = wait is not None and wait.kind == "transfer" and wait.idle > made.seconds
    node = plan.graph.steps[step]
    return Explanation(
        node=node.id,
        line=node_text(node, plan.graph),
        device=ids[made.device],
        rule=plan.rules[made.rule] if plan.rules else "",
        seconds=made.seconds,
        source=made.source,
        elsewhere={ids[i]: cost for i, cost in enumerate(made.elsewhere) if i != made.device},
        arrivals=tuple(
            f"%{move.value} from {ids[move.source]}: {move.bytes} bytes in {time_text(move.seconds)}, "
            f"there at {time_text(times.transfers[number].finish)}"
            for number, move in enumerate(plan.transfers)
            if move.target == made.device and move.before == step
        ),
        error=made.error,
        bound="network" if starved else made.bound,
        start=span.start,
        finish=span.finish,
        critical=step in times.critical_steps,
        again=tuple(ids[each.device] for each in plan.again if each.step == step),
        waits=_waits(wait),
        constraints=tuple(f"{each.text}: {described(plan.graph, ids, each)}" for each in holding(plan, (step,))),
        alternatives=alternatives(plan, (step,), f"#{node.id}") if made.elsewhere else (),
        work=made.bound,
        wait=wait,
        behind=_behind(plan, span.on) if span.waits == "transfer" else "",
        engine=engine_text(plan.engine) if plan.engine is not None else "",
    )


def alternatives(plan: ExecutionPlan, steps: tuple[int, ...], what: str) -> tuple[Alternative, ...]:
    """Every device but those all of the steps run on."""
    places = {plan.decisions[step].device for step in steps}
    return tuple(alternative(plan, steps, device, what) for device in range(len(plan.devices)) if {device} != places)


def holding(plan: ExecutionPlan, steps: Collection[int]) -> list[Constraint]:
    """The constraints that some of the steps are under, with those that every plan keeps."""
    every = exact(plan.graph, dict(plan.homes)) if len(plan.devices) > 1 else []
    return [held for held in (*plan.constraints, *every) if not set(steps).isdisjoint(held.steps)]


def waiting(plan: ExecutionPlan, step: int) -> Wait | None:
    """What a step began right after; ``None`` when it begins with the plan."""
    times = plan.timeline
    span = times.steps[step]
    device = plan.decisions[step].device
    if span.waits == "device":
        before = plan.graph.steps[_step(plan, span.on)]
        made = next((value for value in plan.graph.steps[step].operands() if value in before.outputs), -1)
        return Wait("operand" if made >= 0 else "device", plan.devices[device].id, before.id, made)
    if span.waits == "transfer":
        move = plan.transfers[span.on]
        free = _free(plan, step)
        maker = next((node.id for node in plan.graph.steps if move.value in node.outputs), -1)
        source = plan.devices[move.source].id
        return Wait("transfer", source, maker, move.value, move.bytes, move.seconds, span.start - free)
    return None


def _step(plan: ExecutionPlan, number: int) -> int:
    """Of a number in the timeline: what is run again has those after all steps."""
    count = len(plan.decisions)
    return number if number < count else plan.again[number - count].step


def _free(plan: ExecutionPlan, step: int) -> float:
    """When its device has done all it does before."""
    times, device = plan.timeline, plan.decisions[step].device
    done = [times.steps[other].finish for other in range(step) if plan.decisions[other].device == device]
    done += [
        span.finish
        for span, each in zip(times.again, plan.again, strict=True)
        if each.device == device and each.before <= step
    ]
    return max(done, default=0.0)


def _waits(wait: Wait | None) -> str:
    if wait is None:
        return ""
    if wait.kind == "transfer":
        return f"%{wait.value}, {bytes_text(wait.bytes)} that take {time_text(wait.seconds)} from {wait.device}"
    if wait.kind == "operand":
        return f"%{wait.value} of #{wait.node}, which {wait.device} runs before"
    return f"{wait.device}, which runs #{wait.node} before"


def _behind(plan: ExecutionPlan, number: int) -> str:
    move, span = plan.transfers[number], plan.timeline.transfers[number]
    source, target = plan.devices[move.source].id, plan.devices[move.target].id
    sent = f"sent at {time_text(span.start)}"
    if span.waits == "made":
        return f"{sent}, when #{plan.graph.steps[span.on].id} has made it"
    if span.waits == "sender":
        return f"{sent}, when {source} has sent %{plan.transfers[span.on].value}"
    if span.waits == "receiver":
        return f"{sent}, when {target} has received %{plan.transfers[span.on].value}"
    if span.waits == "transfer":
        other = plan.transfers[span.on]
        return f"{sent}, when it has come to {source} from {plan.devices[other.source].id}"
    return ""
