"""The default strategy: many candidates, the best of them annealed, all judged by one evaluator (natively)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from genie.device import Device
from genie.errors import ConfigError, SchedulingError
from genie.graph import Graph
from genie.graph.sizes import sizes
from genie.interfaces import Policy
from genie.plan import exact, grouped, liveness
from genie.schedule.cost import RooflineCostModel
from genie.schedule.evaluate import memory
from genie.schedule.placement import Outlook, SingleDevice, too_large
from genie.schedule.policy import BUILT_IN, Choosy, MinLatency
from genie.schedule.problem import build
from genie.schedule.ways import ways

if TYPE_CHECKING:
    from genie.schedule._search import Answer

# What a search may cost: so many steps evaluated in all, and so many placements of a small graph.
_STEPS = 900_000
_MOST = 40_000

_User = Callable[[float, list[float]], tuple[float, float]]


class Portfolio:
    """Candidates by rule (every single device, earliest finish at several grains, independent parts, cuts into stages),
    improved by simulated annealing under a budget of evaluations.

    The answer depends on the graph, the devices and the estimates alone. ``effort`` multiplies the budget; 0 is the
    candidates as they are.
    """

    name = "portfolio"

    def __init__(self, effort: float = 1.0, seed: int = 0) -> None:
        if not effort >= 0:
            raise ConfigError(f"effort must not be negative, not {effort!r}")
        self._effort = effort
        self._seed = seed

    def place(self, graph: Graph, devices: Sequence[Device]) -> Mapping[int, str]:
        cost = RooflineCostModel()
        nodes = graph.nodes()
        seconds = [[cost.estimate_compute(node, device) for node in nodes] for device in devices]
        releases = liveness(graph)
        outlook = Outlook(
            seconds,
            memory(graph, releases),
            MinLatency(),
            [device.memory_bytes for device in devices],
            ways(devices, cost.estimate_transfer, cost.name),
            grouped(len(graph.steps), len(devices), exact(graph, {})),
            {},
            releases,
            sizes(graph),
        )
        return self.place_knowing(graph, devices, outlook)[0]

    def place_knowing(self, graph: Graph, devices: Sequence[Device], outlook: Outlook) -> tuple[Mapping[int, str], str]:
        if len(devices) == 1 or outlook.groups is None or self._pointless(outlook):
            return SingleDevice().place_knowing(graph, devices, outlook)
        answer = self._search(graph, devices, outlook)
        if not answer["feasible"]:
            tried = ", and no split of it fits" if answer["proven"] else f", and none of {answer['judged']} splits fits"
            raise too_large(outlook.memory, devices, outlook.capacities, tried)
        ids = [device.id for device in devices]
        used = set(answer["place"])
        if len(used) == 1:
            fitting = sum(outlook.memory.peak <= has for has in outlook.capacities)
            rule = (
                f"whole graph on one device: the best of {fitting} devices with memory enough, by {outlook.policy.name}"
            )
        else:
            rule = f"{answer['rule']}: the best of {answer['judged']} placements, by {outlook.policy.name}"
        return {node.id: ids[place] for node, place in zip(graph.steps, answer["place"], strict=True)}, rule

    def _search(self, graph: Graph, devices: Sequence[Device], outlook: Outlook) -> Answer:
        assert outlook.groups is not None
        problem = build(
            graph,
            outlook.seconds,
            outlook.links,
            outlook.capacities,
            outlook.groups,
            outlook.homes,
            outlook.releases,
            outlook.size,
        )
        chosen = outlook.policy
        caps = outlook.caps
        native = type(chosen) in BUILT_IN
        try:
            return problem.search(
                objective=chosen.name if native else "min_latency",
                price=[device.compute_tflops for device in devices],
                # The kernels of a CPU and its sockets take the same cores; of a GPU they do not.
                handling=[1.0 if device.kind == "cpu" else 0.0 for device in devices],
                thrift=outlook.thrift,
                latency_cap=(caps.latency_ms or 0.0) / 1e3,
                cost_cap=caps.cost or 0.0,
                handover=_soonest(outlook),
                user=None if native else _asking(chosen, devices),
                budget=self._budget(len(graph.steps)),
                seed=self._seed,
            )
        except SchedulingError:
            raise
        except ValueError as error:
            raise SchedulingError(f"the search was given what is no problem: {error}") from error

    def _budget(self, steps: int) -> int:
        """How many steps may be evaluated in all."""
        # A small graph takes less for all else, and a large one is given more time.
        share = 1 + max(0.0, 1.4 - steps / 700) if steps < 4000 else (steps / 4000) ** 0.6
        return int(self._effort * min(_MOST * steps, _STEPS * share))

    def _pointless(self, outlook: Outlook) -> bool:
        """Whether one device is done before another could be told to help."""
        if type(outlook.policy) is not MinLatency or outlook.caps.latency_ms or outlook.caps.cost or outlook.homes:
            return False
        fitting = [
            sum(row) for row, has in zip(outlook.seconds, outlook.capacities, strict=True) if outlook.memory.peak <= has
        ]
        everywhere = (1 << len(outlook.capacities)) - 1
        free = outlook.groups is not None and all(mask == everywhere for mask in outlook.groups.allowed)
        return free and bool(fitting) and min(fitting) <= _soonest(outlook)


def _soonest(outlook: Outlook) -> float:
    """What it takes to hand over to another device at all: a plan must gain as much by each further one."""
    return min((link.latency for link in outlook.links), default=0.0)


def _asking(chosen: Policy, devices: Sequence[Device]) -> _User:
    """A policy of somebody else's as the search asks it: the score, and 1 for what it calls infeasible."""
    ids = [device.id for device in devices]

    def ask(makespan: float, busy: list[float]) -> tuple[float, float]:
        seconds = dict(zip(ids, busy, strict=True))
        try:
            score = float(chosen.score(makespan, seconds, devices))
            refused = isinstance(chosen, Choosy) and not chosen.feasible(makespan, seconds, devices)
        except Exception as error:  # a plugin may raise anything
            raise SchedulingError(f"the policy {chosen.name!r} failed: {type(error).__name__}: {error}") from error
        if score != score:
            raise SchedulingError(f"the policy {chosen.name!r} gives a plan of {makespan:.3g} s no score")
        return score, float(refused)

    return ask
