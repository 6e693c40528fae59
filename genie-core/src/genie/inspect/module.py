"""What a plan makes of one module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec

from genie.errors import PlanError
from genie.graph import node_text, printable
from genie.plan import Alternative, ExecutionPlan, in_module
from genie.plan.alternatives import alternative
from genie.plan.explanation import alternative_lines, holding
from genie.plan.pinning import described
from genie.plan.text import bytes_text, time_text

_LONGEST = 5


class ModulePart(msgspec.Struct, frozen=True):
    """A module of a plan, with all below it. Times in seconds, ``start`` and ``finish`` from the start of the plan.

    ``critical`` is what its nodes are of the critical path. ``arrives`` and ``departs`` are bytes that come from
    other devices for its nodes, and that leave for others. ``alternatives`` are for all of it together.
    """

    module: str
    type: str
    nodes: int
    devices: dict[str, int]  # nodes by device
    seconds: float
    share: float  # of all the plan's work
    start: float
    finish: float
    critical: float
    arrives: int
    departs: int
    rules: tuple[str, ...]
    bounds: dict[str, float]  # seconds of work by what bounds it
    longest: tuple[int, ...]  # the nodes that take most, by their ids
    lines: tuple[str, ...]  # what those are
    constraints: tuple[str, ...]
    alternatives: tuple[Alternative, ...] = ()

    def __str__(self) -> str:
        return "".join(f"{printable(line)}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.module}{f' ({self.type})' if self.type else ''}: {self.nodes:,} nodes"
        places = ", ".join(f"{name} ({count:,})" for name, count in self.devices.items())
        yield f"  runs on {places}, by rule: {'; '.join(self.rules)}"
        bounds = ", ".join(f"{name or 'what is not known'} {time_text(its)}" for name, its in self.bounds.items())
        yield f"  estimated {time_text(self.seconds)}, {self.share:.0%} of all work; bound by {bounds}"
        when = f"from {time_text(self.start)} to {time_text(self.finish)}"
        yield f"  {when}, {time_text(self.critical)} on the critical path"
        if self.arrives or self.departs:
            yield f"  {bytes_text(self.arrives)} arrive for it, {bytes_text(self.departs)} leave it for other devices"
        yield from alternative_lines(self.alternatives)
        yield from (f"  held by: {text}" for text in self.constraints)
        yield "  takes most:"
        yield from (f"    {line}" for line in self.lines)


def module_part(plan: ExecutionPlan, path: str) -> ModulePart:
    """Raises :class:`PlanError` when no node is in a module of that path."""
    graph = plan.graph
    steps = in_module(graph, path)
    if not steps:
        raise PlanError(
            f"the plan has no node of a module {path!r}", hint="a node's id, or a path as `genie inspect` has"
        )
    times, ids = plan.timeline, [device.id for device in plan.devices]
    made = [plan.decisions[step] for step in steps]
    its = set(steps)
    critical = its.intersection(times.critical_steps)
    produced = {value for step in steps for value in graph.steps[step].outputs if value >= 0}
    work = sum(times.busy)
    seconds = sum(each.seconds for each in made)
    longest = sorted(steps, key=lambda step: (-plan.decisions[step].seconds, step))[:_LONGEST]
    bounds: dict[str, float] = {}
    for each in made:
        bounds[each.bound] = bounds.get(each.bound, 0.0) + each.seconds
    places = {each.device for each in made}
    return ModulePart(
        module=path,
        type=next((module.type for module in graph.modules if module.path == path), ""),
        nodes=len(steps),
        devices=dict(Counter(ids[each.device] for each in made).most_common()),
        seconds=seconds,
        share=seconds / work if work else 0.0,
        start=min(times.steps[step].start for step in steps),
        finish=max(times.steps[step].finish for step in steps),
        critical=sum(plan.decisions[step].seconds for step in critical),
        arrives=sum(move.bytes for move in plan.transfers if move.before in its),
        departs=sum(move.bytes for move in plan.transfers if move.value in produced),
        rules=tuple(dict.fromkeys(plan.rules[each.rule] for each in made)) if plan.rules else (),
        bounds=dict(sorted(bounds.items(), key=lambda pair: (-pair[1], pair[0]))),
        longest=tuple(graph.steps[step].id for step in longest),
        lines=tuple(
            f"{time_text(plan.decisions[step].seconds)} {node_text(graph.steps[step], graph)}" for step in longest
        ),
        constraints=tuple(f"{each.text}: {described(graph, ids, each)}" for each in holding(plan, steps)),
        alternatives=tuple(alternative(plan, steps, device, path) for device in range(len(ids)) if {device} != places)
        if all(each.elsewhere for each in made)
        else (),
    )
