"""The execution plan: where every node of a graph runs, what moves, what is freed when, and why."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from math import isfinite
from types import MappingProxyType

import msgspec

from genie import graph as graphs
from genie.device import Device
from genie.errors import PlanError
from genie.graph import Graph, Node, node_text, printable, spec_text

MAX_DEVICES = 1 << 10
MAX_TEXT = 1 << 12


class Decision(msgspec.Struct, frozen=True, array_like=True):
    """What was decided for one node. ``device`` and ``rule`` index the plan's tables.

    ``source`` says what made the estimate: ``roofline``, ``interpolated``, ``profiled``, or a cost model's name.
    ``elsewhere`` holds the estimates for all of the plan's devices, in their order; empty when there is one.
    """

    device: int
    seconds: float
    source: str
    rule: int = 0
    elsewhere: tuple[float, ...] = ()


class Stage(msgspec.Struct, frozen=True, array_like=True):
    """A longest run of steps, ``start`` up to before ``stop``, on one device."""

    device: int
    start: int
    stop: int


class Transfer(msgspec.Struct, frozen=True, array_like=True):
    """A value sent from one device to another, once, before step ``before``."""

    value: int
    source: int
    target: int
    before: int
    bytes: int
    seconds: float


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
    stages: tuple[Stage, ...]
    transfers: tuple[Transfer, ...] = ()
    rules: tuple[str, ...] = ()
    policy: str = ""
    latency: float = 0.0
    peak_memory: tuple[int, ...] = ()  # per device

    @property
    def latency_ms(self) -> float:
        return self.latency * 1e3

    @property
    def fingerprint(self) -> str:
        """The graph's: names the structure that plans are cached by."""
        return self.graph.fingerprint

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


def liveness(graph: Graph) -> tuple[tuple[int, ...], ...]:
    """Per step, the values to forget after it: used there for the last time, or made there and never used.

    Outputs of the graph are never among them, and inputs only when donated.
    """
    last: dict[int, int] = {entry.value: 0 for entry in graph.inputs if entry.donated}
    for step, node in enumerate(graph.steps):
        for value in node.operands():
            if value in last:
                last[value] = step
        for value in node.outputs:
            if value >= 0:
                last[value] = step
    for value in graph.outputs:
        last.pop(value, None)
    releases: list[list[int]] = [[] for _ in graph.steps]
    if releases:
        for value, step in last.items():
            releases[step].append(value)
    return tuple(map(tuple, map(sorted, releases)))


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
        for step in range(stage.start, stage.stop):
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


# --- the rules ---------------------------------------------------------------------------------


def verify(plan: ExecutionPlan) -> None:
    """Check every rule of a plan and of its graph; raises :class:`PlanError` or ``GraphError``.

    * There is one decision and one list of releases per step; stages cover the steps in order.
    * Devices have different ids; indexes are within the plan's tables; estimates are finite and not negative.
    * A value is released once, at or after its last use; no output and no undonated input is.
    * A value used on a device where it was not made is transferred there before, from where it is.
    * Values that share memory with one that is written to stay on one device.
    """
    if "_verified" in plan.__dict__:
        return
    graphs.verify(plan.graph)
    try:
        _verify_tables(plan)
        _verify_stages(plan)
        _verify_releases(plan)
        _verify_transfers(plan)
    except (TypeError, AttributeError) as error:
        raise PlanError(f"the plan holds a value of a wrong type: {error}") from error
    plan.__dict__["_verified"] = True


def bare(plan: ExecutionPlan) -> ExecutionPlan:
    """The verified plan as a node needs it: its graph without the evidence for labels, and most of the labels."""
    verify(plan)
    new = msgspec.structs.replace(plan, graph=graphs.bare(plan.graph))
    new.__dict__["_verified"] = True
    return new


def _no_time(seconds: float) -> bool:
    return not (isfinite(seconds) and seconds >= 0)


def _verify_tables(plan: ExecutionPlan) -> None:
    steps, devices, rules = len(plan.graph.steps), len(plan.devices), len(plan.rules)
    if devices > MAX_DEVICES:
        raise PlanError(f"{devices} devices are more than {MAX_DEVICES}")
    if len({device.id for device in plan.devices}) != devices:
        raise PlanError("two devices have one id")
    if len(plan.decisions) != steps or len(plan.releases) != steps:
        raise PlanError(f"{len(plan.decisions)} decisions and {len(plan.releases)} releases for {steps} steps")
    if len(plan.peak_memory) not in (0, devices) or any(peak < 0 for peak in plan.peak_memory):
        raise PlanError("peak_memory must be a number of bytes per device")
    if _no_time(plan.latency):
        raise PlanError(f"latency {plan.latency} is no time")
    if rules > steps + 1 or any(len(rule) > MAX_TEXT for rule in plan.rules) or len(plan.policy) > MAX_TEXT:
        raise PlanError("too many rules, or one too long")
    for node, made in zip(plan.graph.steps, plan.decisions, strict=True):
        if not 0 <= made.device < devices:
            raise PlanError(f"node {node.id} ({node.target}): device {made.device} is not in the plan's table")
        if not 0 <= made.rule < max(rules, 1):
            raise PlanError(f"node {node.id} ({node.target}): rule {made.rule} is not in the plan's table")
        if len(made.elsewhere) not in (0, devices):
            raise PlanError(f"node {node.id} ({node.target}): estimates for {len(made.elsewhere)} of {devices} devices")
        if _no_time(made.seconds) or (made.elsewhere and any(map(_no_time, made.elsewhere))):
            raise PlanError(f"node {node.id} ({node.target}): an estimate is no time")
        if len(made.source) > MAX_TEXT:
            raise PlanError(f"node {node.id} ({node.target}): the source of its estimate is too long")


def _verify_stages(plan: ExecutionPlan) -> None:
    if plan.stages != stages(plan.decisions):
        raise PlanError("the stages are not the longest runs of steps on one device, in order")


def stages(decisions: Sequence[Decision]) -> tuple[Stage, ...]:
    """The longest runs of steps on one device."""
    runs: list[Stage] = []
    start = 0
    for step in range(1, len(decisions) + 1):
        if step == len(decisions) or decisions[step].device != decisions[start].device:
            runs.append(Stage(decisions[start].device, start, step))
            start = step
    return tuple(runs)


def _verify_releases(plan: ExecutionPlan) -> None:
    graph = plan.graph
    never = {entry.value for entry in graph.inputs if not entry.donated}
    never.update(graph.outputs)
    made = bytearray(len(graph.values))
    for entry in graph.inputs:
        made[entry.value] = 1
    for node, gone in zip(graph.steps, plan.releases, strict=True):
        for value in node.operands():
            if made[value] != 1:
                raise PlanError(f"node {node.id} ({node.target}): operand %{value} was released before")
        for value in node.outputs:
            if value >= 0:
                made[value] = 1
        for value in gone:
            if not 0 <= value < len(made) or made[value] != 1:
                raise PlanError(f"%{value} is released after node {node.id}, where it does not live")
            if value in never:
                raise PlanError(f"%{value} is released after node {node.id}, but it outlives the plan")
            made[value] = 2


def _verify_transfers(plan: ExecutionPlan) -> None:
    graph = plan.graph
    places = {made.device for made in plan.decisions}
    if len(places) <= 1:
        if plan.transfers:
            raise PlanError("transfers in a plan that runs on one device")
        return
    arrivals: dict[int, list[Transfer]] = {}
    for move in plan.transfers:
        if not (0 <= move.value < len(graph.values) and 0 <= move.before < len(graph.steps)):
            raise PlanError(f"a transfer names value %{move.value} and step {move.before}, which are not in the graph")
        if not (0 <= move.source < len(plan.devices) and 0 <= move.target < len(plan.devices)):
            raise PlanError(f"the transfer of %{move.value} names a device that is not in the plan's table")
        if move.bytes < 0 or _no_time(move.seconds):
            raise PlanError(f"the transfer of %{move.value} has no size or time")
        arrivals.setdefault(move.before, []).append(move)
    present: dict[int, set[int]] = {}  # value → devices that hold it; inputs are brought to where they are used
    for step, (node, made) in enumerate(zip(graph.steps, plan.decisions, strict=True)):
        for move in arrivals.get(step, ()):
            if move.source == move.target or move.source not in present.get(move.value, ()):
                raise PlanError(f"%{move.value} is sent from a device that does not hold it, before node {node.id}")
            present[move.value].add(move.target)
        for value in node.operands():
            if made.device not in present.setdefault(value, {made.device}):
                raise PlanError(f"node {node.id} ({node.target}): operand %{value} is not on its device")
        for value in node.outputs:
            if value >= 0:
                present[value] = {made.device}
    crossing = split_storage(graph, [made.device for made in plan.decisions])
    if crossing is not None:
        raise PlanError(f"%{crossing} shares memory that is written to, and lives on two devices")


def split_storage(graph: Graph, device: Sequence[int]) -> int | None:
    """A value whose memory is written to while nodes on two devices use it, given each step's device; or ``None``."""
    root: dict[int, int] = {}
    for node in graph.steps:
        for output, operand in node.aliases:
            root[output] = root.get(operand, operand)
    written = {root.get(value, value) for node in graph.steps for value in node.mutates}
    home: dict[int, int] = {}
    if written:
        for node, place in zip(graph.steps, device, strict=True):
            for value in (*node.operands(), *node.outputs):
                storage = root.get(value, value)
                if storage in written and home.setdefault(storage, place) != place:
                    return value
    return None
