"""Engines: the stages composed, for one device or for several. What a frontend is given."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

from genie import telemetry, tracing
from genie.device import Device
from genie.errors import GenieError, SchedulingError
from genie.graph import Graph
from genie.graph import verify as verify_graph
from genie.graph.once import forget
from genie.interfaces import Learning, Profiling, Session
from genie.plan import ExecutionPlan
from genie.plan import verify as verify_plan
from genie.replan import Replanner
from genie.schedule import Scheduler
from genie.spread import NOWHERE, Residency, SpreadSession

LEARN_SECONDS = 10.0  # between two questions what operators took
_ROOM = 0.1  # of a device's memory: for caches that grow, and for what the next graphs compute

Annotate = Callable[[Graph], Graph]


class DeviceEngine:
    """See :class:`genie.interfaces.Engine`: graph → annotate → schedule → verify → load, on one device."""

    def __init__(
        self,
        device: Device,
        session: Session,
        scheduler: Scheduler,
        annotated: Annotate,
        learns: Learning | None = None,
    ) -> None:
        self.device = device
        self.session = session
        self._scheduler = scheduler
        self._annotated = annotated
        self._learns = learns
        self._ask_after = time.monotonic() + LEARN_SECONDS

    def prepare(self, graph: Graph, handles: Sequence[int] = ()) -> int:
        """The plan's id in the session. ``handles`` are those of the first execution's inputs."""
        started = time.perf_counter_ns()
        verify_graph(graph)
        annotated = self._annotated(graph)
        with tracing.span("genie.schedule", nodes=len(graph.steps), devices=len(self._scheduler.devices)):
            plan = self._planned(annotated, handles)
        forget(graph)
        with tracing.span("genie.load"):
            verify_plan(plan)
            number = self.session.load(plan)
        telemetry.counters.add("graphs")
        telemetry.counters.add("graph_nodes", len(graph.steps))
        telemetry.counters.add("prepare_ns", time.perf_counter_ns() - started)
        return number

    def looked(self) -> None:
        """See :class:`genie.interfaces.Engine`. Now and then, what operators took is asked."""
        if self._learns is not None and time.monotonic() >= self._ask_after:
            self.learn()
            self._ask_after = time.monotonic() + LEARN_SECONDS

    def learn(self) -> None:
        """Tell the cost model what operators took since the last time."""
        if self._learns is None:
            return
        for device, session in zip(self._scheduler.devices, self.sessions(), strict=True):
            if isinstance(session, Profiling):
                with contextlib.suppress(GenieError):  # a session that ended says so where it is used
                    self._learns.observe(device, session.profile())

    def sessions(self) -> Sequence[Session]:
        return (self.session,)

    def rest(self) -> None:
        """Nothing goes on in the background any more."""

    def _planned(self, graph: Graph, handles: Sequence[int]) -> ExecutionPlan:
        return self._scheduler.schedule(graph)


class SpreadEngine(DeviceEngine):
    """The same, where the scheduler chooses among several devices, given where values live."""

    def __init__(
        self,
        sessions: Sequence[Session],
        scheduler: Scheduler,
        annotated: Annotate,
        learns: Learning | None = None,
        *,
        prefetch: bool = True,
    ) -> None:
        devices = scheduler.devices  # one per session
        spread = SpreadSession(everything(devices), sessions, self._placed, devices, prefetch=prefetch)
        super().__init__(spread.device, spread, scheduler, annotated, learns)
        self._spread = spread
        self._epoch = learns.epoch if learns is not None else 0
        self.replanner = Replanner(spread, scheduler, devices[0].id)

    def learn(self) -> None:
        """And when estimates no longer hold, plans are looked over."""
        super().learn()
        if self._learns is not None and self._learns.epoch != self._epoch:
            self._epoch = self._learns.epoch
            self.replanner.start()

    def sessions(self) -> Sequence[Session]:
        return self._spread.members

    def rest(self) -> None:
        self.replanner.stop()

    def _planned(self, graph: Graph, handles: Sequence[int]) -> ExecutionPlan:
        return self._placed(graph, self._spread.residency(graph, handles) if handles else NOWHERE)

    def _placed(self, graph: Graph, known: Residency) -> ExecutionPlan:
        """The best of: with room to grow, where values live; without the room; with what can move moved, for values
        on different devices may be written together."""
        draws = self._scheduler.devices[0].id
        roomy = {
            device.id: known.held.get(device.id, 0) + int(_ROOM * device.memory_bytes)
            for device in self._scheduler.devices
        }
        fixed = {value: home for value, home in known.homes.items() if value not in known.movable}
        for homes, occupied in ((known.homes, roomy), (known.homes, known.held)):
            with contextlib.suppress(SchedulingError):
                return self._scheduler.schedule(graph, homes=homes, occupied=occupied, draws=draws)
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
        engines=tuple(sorted({each for device in devices for each in device.engines})),
    )
