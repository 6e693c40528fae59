"""Placement strategies, and what they are told: estimates, memory, and what must hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from genie.device import Device
from genie.errors import SchedulingError
from genie.graph import Graph
from genie.interfaces import Policy
from genie.plan import Groups, Link
from genie.schedule.cost import RooflineCostModel
from genie.schedule.evaluate import Memory, gib, memory
from genie.schedule.policy import Caps, MinLatency


class Outlook(NamedTuple):
    """What the scheduler knows before placing.

    ``seconds[d][i]`` is step ``i`` on device ``d``. ``capacities`` are the bytes each device has for this graph;
    ``groups`` the steps that must be together and where they may run; ``homes`` on which device (by number) inputs
    live. ``thrift`` is how much of its time a transfer must save for a shorter latency to be worth it.
    """

    seconds: Sequence[Sequence[float]]
    memory: Memory
    policy: Policy
    capacities: Sequence[int] = ()
    links: Sequence[Link] = ()
    groups: Groups | None = None
    homes: Mapping[int, int] = {}
    releases: Sequence[Sequence[int]] = ()
    size: Sequence[int] = ()
    caps: Caps = Caps()
    thrift: float = 0.0


@runtime_checkable
class InformedStrategy(Protocol):
    """A placement strategy that wants the scheduler's estimates, instead of making its own.

    Any strategy may have this method besides ``place``; the scheduler then calls it.
    """

    def place_knowing(self, graph: Graph, devices: Sequence[Device], outlook: Outlook) -> tuple[Mapping[int, str], str]:
        """Node id → device id, and the rule in words, which ``plan.explain`` shows."""


class SingleDevice:
    """Everything on one device: the one named, or the feasible one that the policy likes best (first wins ties)."""

    name = "single_device"

    def __init__(self, device: str | None = None) -> None:
        self._device = device

    def place(self, graph: Graph, devices: Sequence[Device]) -> Mapping[int, str]:
        cost = RooflineCostModel()
        nodes = graph.nodes()
        seconds = [[cost.estimate_compute(node, device) for node in nodes] for device in devices]
        return self.place_knowing(graph, devices, Outlook(seconds, memory(graph), MinLatency()))[0]

    def place_knowing(self, graph: Graph, devices: Sequence[Device], outlook: Outlook) -> tuple[Mapping[int, str], str]:
        if self._device is not None and self._device not in {device.id for device in devices}:
            raise SchedulingError(
                f"there is no device {self._device!r}", hint=f"devices: {', '.join(device.id for device in devices)}"
            )
        capacities = outlook.capacities or [device.memory_bytes for device in devices]
        allowed = [number for number, device in enumerate(devices) if self._device in (None, device.id)]
        fitting = [number for number in allowed if outlook.memory.peak <= capacities[number]]
        if not fitting:
            raise too_large(outlook.memory, [devices[n] for n in allowed], [capacities[n] for n in allowed])
        scores = {}
        for number in fitting:
            total = sum(outlook.seconds[number])
            scores[number] = outlook.policy.score(total, {devices[number].id: total}, devices)
        best = min(fitting, key=lambda number: scores[number])
        if len(allowed) == 1:
            why = "the only device" if self._device is None else "the device asked for"
        else:
            why = f"the best of {len(fitting)} devices with memory enough, by {outlook.policy.name}"
        return dict.fromkeys([node.id for node in graph.steps], devices[best].id), f"whole graph on one device: {why}"


def too_large(need: Memory, devices: Sequence[Device], capacities: Sequence[int], tried: str = "") -> SchedulingError:
    """The error for a graph that no device, or no placement ``tried``, has memory for."""
    have = ", ".join(f"{device.id} has {gib(has)}" for device, has in zip(devices, capacities, strict=True))
    return SchedulingError(
        f"the graph needs {gib(need.peak)} ({gib(need.inputs)} of weights and inputs, "
        f"{gib(need.peak - need.inputs)} of results at once); {have or 'there is no device'}{tried}",
        where=f"node {need.node}" if need.node >= 0 else "",
        hint="use a device with more memory, a smaller batch or a smaller dtype; of a node's memory a tenant sees its "
        "quota at most",
    )
