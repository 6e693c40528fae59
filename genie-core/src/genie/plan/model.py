"""The execution plan: where every node of a graph runs, what moves, what is freed when, and why."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType

import msgspec

from genie.device import Device
from genie.errors import PlanError
from genie.graph import Graph, Node, printable
from genie.plan.explanation import Explanation, explain
from genie.plan.pinning import pinned
from genie.plan.records import Again, Constraint, Decision, EngineChoice, Link, Stage, Transfer, stages
from genie.plan.text import lines
from genie.plan.timeline import Timeline, timeline


class ExecutionPlan(msgspec.Struct, frozen=True, dict=True):
    """A placed graph. Executors run ``graph.steps`` in order and forget ``releases[i]`` after step ``i``.

    ``releases`` lists values (donated inputs and what nodes make) that nobody uses after the step and that are no
    output. ``peak_memory`` is an estimate in bytes per device, weights and inputs included; ``latency`` one in
    seconds. ``homes`` pairs inputs with the devices they live on; others start where they are used first.
    ``constraints`` are those that were asked for, besides the ones every plan keeps (:func:`genie.plan.exact`).
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
    homes: tuple[tuple[int, int], ...] = ()  # (value, device)
    constraints: tuple[Constraint, ...] = ()
    again: tuple[Again, ...] = ()  # steps run on a second device, where that costs less than to send what they make
    capacities: tuple[int, ...] = ()  # bytes per device that were free for this plan; none: all of its memory
    engine: EngineChoice | None = None  # of a graph with artifacts that a device of the plan can compile

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
        return stages(self.graph, self.decisions, self.transfers, self.again)

    @cached_property
    def timeline(self) -> Timeline:
        """When every step runs and every transfer is under way, by the plan's estimates."""
        return timeline(self.graph, self.decisions, self.transfers, len(self.devices), self.again)

    @cached_property
    def placement(self) -> Mapping[int, str]:
        """Node id → device id."""
        ids = [device.id for device in self.devices]
        return MappingProxyType(
            {node.id: ids[made.device] for node, made in zip(self.graph.steps, self.decisions, strict=True)}
        )

    def step_of(self, node: int | Node) -> int:
        """The position of a node, given as it is or by its id. Raises :class:`PlanError` when the plan has none."""
        wanted = node.id if isinstance(node, Node) else node
        steps = self.graph.steps
        if not isinstance(wanted, int):
            raise PlanError(f"the plan has no node {wanted!r}", hint="a node of its graph, or a node's id: a number")
        step = bisect_left(steps, wanted, key=lambda candidate: candidate.id)
        if step == len(steps) or steps[step].id != wanted or isinstance(wanted, bool):
            ids = f"ids go from {steps[0].id} to {steps[-1].id}" if steps else "it has none"
            raise PlanError(f"the plan has no node {wanted!r}", hint=ids)
        return step

    def explain(self, node: int | Node) -> Explanation:
        """Why a node runs where it does, and what other places would cost. Raises :class:`PlanError` for a node the
        plan does not have."""
        return explain(self, self.step_of(node))

    def pin(self, node: int | Node | str, device: str | Device) -> ExecutionPlan:
        """A plan with ``node`` (or all nodes of the module of that path) on ``device`` (or the one of that id), with
        what must go with it, and everything else as it was.

        Raises :class:`PlanError` for a node, module or device there is not, and ``SchedulingError`` when it can't be:
        with the smallest set of constraints in conflict, or what memory is needed and there.

        >>> plan.pin("model.layers.3", "gpu1").placement  # doctest: +SKIP
        """
        return pinned(self, node, device)

    def text(self) -> str:
        """The plan as stable text."""
        return "\n".join(map(printable, lines(self))) + "\n"

    def __repr__(self) -> str:
        places = ", ".join(device.id for device in self.devices)
        return f"<ExecutionPlan of {self.graph!r} on {places}: {self.latency_ms:.3g} ms>"

    def __str__(self) -> str:
        return self.text()
