"""Plans made anew when estimates change: in the background, and only where that is worth the moving."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from genie import telemetry
from genie.errors import GenieError
from genie.graph import Graph
from genie.plan import ExecutionPlan, timeline
from genie.schedule import Scheduler
from genie.spread import SpreadSession, Used

log = telemetry.get_logger("genie.replan")

_STOP_SECONDS = 30.0
_WORTH = 10.0  # what a plan took so far, over what a search takes: below, none is made
_LEAST_GAIN = 0.05  # of a plan's score: less is within what estimates are wrong by


class Replanner:
    """Looks over the plans of a session. Plans go on being executed meanwhile."""

    def __init__(self, session: SpreadSession, scheduler: Scheduler, draws: str) -> None:
        self._session = session
        self._scheduler = scheduler
        self._draws = draws
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._considered: dict[int, int] = {}  # plan → executions it had when it was last looked at
        self._search_seconds = 0.0  # what the last search took

    def start(self) -> None:
        """Look over them, unless that is going on already."""
        if not self._stopped and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._run, name="genie-replan", daemon=True)
            self._thread.start()

    def wait(self, timeout: float) -> bool:
        """Whether it is done within so many seconds."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    def stop(self) -> None:
        """For good; a search that is going on is waited for."""
        self._stopped = True
        self.wait(_STOP_SECONDS)

    def _run(self) -> None:
        for used in self._session.used():
            if self._stopped:
                return
            # One that was kept is looked at again when it has run as many times again.
            if used.runs < 2 * self._considered.get(used.number, 0):
                continue
            try:
                self._consider(used)
            except GenieError as error:  # the session ended, say: the program will hear of it where it matters
                log.info("plan kept", plan=used.number, reason=error.message)

    def _consider(self, used: Used) -> None:
        plan, known = used.plan, used.known
        graph, schedule = plan.graph, self._scheduler.schedule
        weights = {value for value in known.movable if value in _weights(graph)}
        others = {value: home for value, home in known.homes.items() if value not in weights}
        now = schedule(graph, homes=known.homes, occupied=known.held, draws=self._draws, like=plan)
        if now.latency * used.runs < _WORTH * self._search_seconds:
            return  # whatever is found, looking for it takes more than it can bring
        self._considered[used.number] = used.runs
        started = time.monotonic()
        # As if weights were wherever they are wanted: what it takes to bring them there is reckoned apart, once.
        new = schedule(graph, homes=others, occupied=known.held, draws=self._draws)
        self._search_seconds = time.monotonic() - started
        before, after = self._score(now), self._score(new)
        if after >= before * (1 - _LEAST_GAIN) or new.placement == plan.placement:
            return
        # A plan that ran so many times will run as many times again.
        gain = (1 - after / before) * now.latency * used.runs
        cost = _moving(new, {value: known.homes[value] for value in weights})
        if gain <= cost:
            log.info("plan kept", plan=used.number, gain_s=gain, moving_s=cost)
            return
        self._session.replace(used.number, new)
        telemetry.counters.add("replans")
        log.info("plan replaced", plan=used.number, gain_s=gain, moving_s=cost, rule=new.rules[0])

    def _score(self, plan: ExecutionPlan) -> float:
        seen = timeline(plan.graph, plan.decisions, plan.transfers, len(plan.devices))
        busy = {device.id: seconds for device, seconds in zip(plan.devices, seen.busy, strict=True)}
        return self._scheduler.policy.score(seen.makespan, busy, plan.devices)


def _weights(graph: Graph) -> set[int]:
    return {entry.value for entry in graph.inputs if entry.origin in ("parameter", "buffer", "constant")}


def _moving(plan: ExecutionPlan, homes: Mapping[int, str]) -> float:
    """Seconds to bring values from where they live to where the plan uses them, one after the other."""
    ids = [device.id for device in plan.devices]
    ways = {(ids[link.source], ids[link.target]): link for link in plan.links}
    seconds = 0.0
    seen: set[tuple[int, int]] = set()
    for node, made in zip(plan.graph.steps, plan.decisions, strict=True):
        for value in node.operands():
            if value in homes and (value, made.device) not in seen:
                seen.add((value, made.device))
                way = ways.get((homes[value], ids[made.device]))
                if way is not None:
                    seconds += way.latency + plan.graph.values[value].nbytes / way.bytes_per_second
    return seconds
