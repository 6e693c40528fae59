"""The execution plan: where every node of a graph runs, what moves, what is freed when, and why."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from functools import cached_property
from types import MappingProxyType

import msgspec

from genie.device import Device
from genie.errors import PlanError
from genie.graph import Graph, Node, node_text, printable, spec_text
from genie.plan.records import Decision, Link, Stage, Transfer, stages


class ExecutionPlan(msgspec.Struct, frozen=True, dict=True):
    """A placed graph. Executors run ``graph.steps`` in order and forget ``releases[i]`` after step ``i``.

    ``releases`` lists values (donated inputs and what nodes make) that nobody uses after the step and that are no
    output. ``peak_memory`` is an estimate in bytes per device, weights and inputs included; ``latency`` one in
    seconds.
    """

    graph: Graph
    devices: tuple[Device, ...]
    decisions: tuple[Decision, ...]  # one per step
    releases: tuple[tuple[int, ...], ...]  # one per step
    transfers: tuple[Transfer, ...] = ()
    rules: tuple[str, ...] = ()
    policy: str = ""
    latency: float = 0.0
    peak_memory: tuple[int, ...] = ()  # per device
    links: tuple[Link, ...] = ()  # what estimates of transfers are made of

    @property
    def latency_ms(self) -> float:
        return self.latency * 1e3

    @property
    def fingerprint(self) -> str:
        """The graph's: names the structure that plans are cached by."""
        return self.graph.fingerprint

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """What each device runs in one go, each after those it takes values from."""
        return stages(self.graph, self.decisions, self.transfers)

    @cached_property
    def placement(self) -> Mapping[int, str]:
        """Node id → device id."""
        ids = [device.id for device in self.devices]
        return MappingProxyType(
            {node.id: ids[made.device] for node, made in zip(self.graph.steps, self.decisions, strict=True)}
        )

    def explain(self, node: int | Node) -> Explanation:
        """Why a node runs where it does. Raises :class:`PlanError` for a node the plan does not have."""
        wanted = node.id if isinstance(node, Node) else node
        steps = self.graph.steps
        step = bisect_left(steps, wanted, key=lambda candidate: candidate.id)
        if step == len(steps) or steps[step].id != wanted:
            raise PlanError(f"the plan has no node {wanted!r}")
        made = self.decisions[step]
        ids = [device.id for device in self.devices]
        return Explanation(
            node=wanted,
            line=node_text(steps[step], self.graph),
            device=ids[made.device],
            rule=self.rules[made.rule] if self.rules else "",
            seconds=made.seconds,
            source=made.source,
            elsewhere={ids[i]: cost for i, cost in enumerate(made.elsewhere) if i != made.device},
            arrivals=tuple(
                f"%{move.value} from {ids[move.source]}: {move.bytes} bytes in {_time(move.seconds)}"
                for move in self.transfers
                if move.target == made.device and move.before == step
            ),
        )

    def text(self) -> str:
        """The plan as stable text."""
        return "\n".join(map(printable, _lines(self))) + "\n"

    def __repr__(self) -> str:
        places = ", ".join(device.id for device in self.devices)
        return f"<ExecutionPlan of {self.graph!r} on {places}: {self.latency_ms:.3g} ms>"

    def __str__(self) -> str:
        return self.text()


class Explanation(msgspec.Struct, frozen=True):
    """The answer of :meth:`ExecutionPlan.explain`; prints as a short paragraph."""

    node: int
    line: str
    device: str
    rule: str
    seconds: float
    source: str
    elsewhere: dict[str, float]
    arrivals: tuple[str, ...]

    def __str__(self) -> str:
        lines = [self.line, f"  runs on {self.device}, by rule: {self.rule}"]
        lines.append(f"  estimated {_time(self.seconds)} ({self.source})")
        lines += [f"  on {device} it would take {_time(cost)}" for device, cost in self.elsewhere.items()]
        lines += [f"  needs {arrival}" for arrival in self.arrivals]
        return "\n".join(lines)


# --- text --------------------------------------------------------------------------------------


def _time(seconds: float) -> str:
    for scale, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _lines(plan: ExecutionPlan) -> Iterator[str]:
    ids = [device.id for device in plan.devices]
    yield f"plan policy={plan.policy} latency={_time(plan.latency)}"
    for number, device in enumerate(plan.devices):
        peak = f" peak={plan.peak_memory[number]}" if plan.peak_memory else ""
        yield f"  device {device.id} {device.type} {device.memory_gb:g} GiB {device.compute_tflops:g} TFLOPS{peak}"
    for rule in plan.rules:
        yield f"  rule {rule}"
    arrivals: dict[int, list[Transfer]] = {}
    for move in plan.transfers:
        arrivals.setdefault(move.before, []).append(move)
    for stage in plan.stages:
        yield f"  stage on {ids[stage.device]}"
        for step in stage.steps:
            for move in arrivals.get(step, ()):
                what = f"%{move.value} {spec_text(plan.graph.values[move.value])}"
                yield f"    move {what} from {ids[move.source]}: {move.bytes} bytes in {_time(move.seconds)}"
            made = plan.decisions[step]
            node = plan.graph.steps[step]
            gone = (
                f", then free {' '.join(f'%{value}' for value in plan.releases[step])}" if plan.releases[step] else ""
            )
            yield f"    #{node.id} {node.target}: {_time(made.seconds)} {made.source}{gone}"
    yield from plan.graph.text().splitlines()
