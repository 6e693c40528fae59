"""Engines: the stages composed, for one device or for several. What a frontend is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from genie import telemetry
from genie.device import Device
from genie.errors import SchedulingError
from genie.graph import Graph
from genie.graph import verify as verify_graph
from genie.graph.once import forget
from genie.interfaces import Session
from genie.plan import ExecutionPlan
from genie.plan import verify as verify_plan
from genie.schedule import Scheduler
from genie.spread import NOWHERE, Residency, SpreadSession

Annotate = Callable[[Graph], Graph]


class DeviceEngine:
    """See :class:`genie.interfaces.Engine`: graph → annotate → schedule → verify → load, on one device."""

    def __init__(self, device: Device, session: Session, scheduler: Scheduler, annotated: Annotate) -> None:
        self.device = device
        self.session = session
        self._scheduler = scheduler
        self._annotated = annotated

    def prepare(self, graph: Graph, handles: Sequence[int] = ()) -> int:
        """The plan's id in the session. ``handles`` are those of the first execution's inputs."""
        started = time.perf_counter_ns()
        verify_graph(graph)
        plan = self._planned(self._annotated(graph), handles)
        forget(graph)
        verify_plan(plan)
        number = self.session.load(plan)
        telemetry.counters.add("graphs")
        telemetry.counters.add("graph_nodes", len(graph.steps))
        telemetry.counters.add("prepare_ns", time.perf_counter_ns() - started)
        return number

    def _planned(self, graph: Graph, handles: Sequence[int]) -> ExecutionPlan:
        return self._scheduler.schedule(graph)


class SpreadEngine(DeviceEngine):
    """The same, where the scheduler chooses among several devices, given where values live."""

    def __init__(self, sessions: Sequence[Session], scheduler: Scheduler, annotated: Annotate) -> None:
        spread = SpreadSession(everything([session.device for session in sessions]), sessions, self._placed)
        super().__init__(spread.device, spread, scheduler, annotated)
        self._spread = spread

    def _planned(self, graph: Graph, handles: Sequence[int]) -> ExecutionPlan:
        return self._placed(graph, self._spread.residency(graph, handles) if handles else NOWHERE)

    def _placed(self, graph: Graph, known: Residency) -> ExecutionPlan:
        draws = self._spread.members[0].device.id
        try:
            return self._scheduler.schedule(graph, homes=known.homes, occupied=known.held, draws=draws)
        except SchedulingError:
            # Values on different devices may be written together: then those move that can.
            fixed = {value: home for value, home in known.homes.items() if value not in known.movable}
            if len(fixed) == len(known.homes):
                raise
            return self._scheduler.schedule(graph, homes=fixed, occupied=known.held, draws=draws)


def everything(devices: Sequence[Device]) -> Device:
    """Several devices as the one a program sees."""
    kinds = {device.type for device in devices}
    return Device(
        id="+".join(device.id for device in devices)[:128],
        type=kinds.pop() if len(kinds) == 1 else "mixed",
        memory_gb=sum(device.memory_gb for device in devices),
        compute_tflops=sum(device.compute_tflops for device in devices),
        network_gbps=max(device.network_gbps for device in devices),
    )
