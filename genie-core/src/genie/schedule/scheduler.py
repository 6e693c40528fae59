"""The scheduler: graph → plan, through a cost model, a placement strategy and a policy."""

from __future__ import annotations

import inspect
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from math import isfinite
from typing import NamedTuple

import msgspec

from genie.device import Device
from genie.errors import ConfigError, SchedulingError
from genie.graph import Graph, Node, verify
from genie.graph.collecting import paused_gc
from genie.graph.sizes import sizes
from genie.interfaces import Appraising, CostModel, Estimate, PlacementStrategy, Policy
from genie.plan import (
    Again,
    Constraint,
    Decision,
    ExecutionPlan,
    Groups,
    Links,
    Transfer,
    broken,
    conflict,
    exact,
    grouped,
    liveness,
    makespan,
    peaks,
    refuse,
    split_storage,
    timeline,
    transfers,
)
from genie.plan import verify as verify_plan
from genie.schedule.compiled import choice, split_up
from genie.schedule.constraints import Where, asked, homes_of
from genie.schedule.cost import RooflineCostModel, Transfers
from genie.schedule.cost.regional import regional
from genie.schedule.evaluate import gib, memory
from genie.schedule.given import amount, bytes_of, devices_of, mapping, policy_of
from genie.schedule.placement import InformedStrategy, Outlook
from genie.schedule.policy import Caps
from genie.schedule.portfolio import Portfolio
from genie.schedule.recompute import best, choices, released, waited_for
from genie.schedule.ways import ways

_Estimate = Callable[[Node, Device], float]


class _Appraisal(NamedTuple):
    """One device's estimates, by step; ``details`` when the cost model says where each comes from."""

    seconds: Sequence[float]
    details: Sequence[Estimate] | None


class Scheduler:
    """Places graphs on ``devices``.

    ``latency_cap_ms`` and ``cost_cap`` (seconds of devices times their TFLOPS) are kept if any placement keeps them;
    if none does, the plan says so among its rules, or with ``strict`` there is none. ``reserved`` are bytes of devices
    that others hold. A value may be computed again on a second device, where that is cheaper than to send it and takes
    up to ``recompute_ms`` (``plan.again``). ``message_ms`` is what a transfer takes besides its way: being asked for,
    sent and received by whoever runs the plan; ``thrift`` is the share of its time that each transfer must save for a
    shorter latency to be worth it: estimates are not that sure.

    >>> gpu = Device(id="gpu0", type="GPU", memory_gb=16, compute_tflops=10, network_gbps=100)
    >>> plan = Scheduler(devices=[gpu], policy="min_latency").schedule(Graph((), (), (), ()))
    >>> plan.latency_ms
    0.0
    """

    def __init__(
        self,
        devices: Sequence[Device],
        policy: str | Policy = "min_latency",
        *,
        latency_cap_ms: float | None = None,
        cost_cap: float | None = None,
        strict: bool = False,
        reserved: Mapping[str, int] | None = None,
        recompute_ms: float = 0.0,
        message_ms: float = 0.0,
        thrift: float = 0.0,
    ) -> None:
        self.devices = devices_of(devices)
        self.policy = policy_of(policy)
        self._caps = Caps(latency_cap_ms, cost_cap, strict).checked()
        self._reserved = bytes_of("reserved", self.devices, reserved)
        self._recompute = amount("recompute_ms", recompute_ms) / 1e3
        self._message = amount("message_ms", message_ms) / 1e3
        self._thrift = amount("thrift", thrift)
        self._strategy: PlacementStrategy = Portfolio()
        self.set_cost_model(RooflineCostModel())

    def set_cost_model(self, model: CostModel) -> None:
        """Estimates come from ``model`` from now on. One without ``estimate_transfer`` leaves that to the default,
        one whose ``estimate_compute`` takes only the node is taken to mean every device."""
        if not callable(getattr(model, "estimate_compute", None)):
            raise ConfigError(f"the cost model {model!r} has no estimate_compute(node)")
        self._cost: CostModel = model
        self._source: str = getattr(model, "name", type(model).__name__)
        self._compute = _with_device(model)
        self._transfer = getattr(model, "estimate_transfer", None) or Transfers().seconds

    def set_placement_strategy(self, strategy: PlacementStrategy) -> None:
        if not callable(getattr(strategy, "place", None)):
            raise ConfigError(f"the placement strategy {strategy!r} has no place(graph, devices)")
        self._strategy = strategy

    def schedule(
        self,
        graph: Graph,
        *,
        homes: Mapping[int, str | Device] | None = None,
        pins: Mapping[Where, str | Device] | None = None,
        exclude: Mapping[Where, Collection[str | Device] | str | Device] | None = None,
        draws: str | Device | None = None,
        occupied: Mapping[str, int] | None = None,
        like: ExecutionPlan | None = None,
    ) -> ExecutionPlan:
        """A verified plan.

        A device is given as it is or by its id. ``homes`` says on which device inputs live already: weights that are
        there, caches. To use one elsewhere costs a transfer from there. ``occupied`` are bytes of devices (by id) that
        other values take now. ``pins`` and ``exclude`` say where nodes, by their ids or the paths
        of their modules, must or must not run; ``draws`` names the device that draws random numbers. ``like`` a plan of
        the graph nodes stay where they are: what that costs by today's estimates.

        Raises ``GraphError`` for a bad graph and :class:`SchedulingError` when nothing fits, when what is asked can't
        all hold (with a smallest set in conflict), or when a cost model or a strategy answers what can't be used.
        """
        verify(graph)
        if like is not None and not isinstance(like, ExecutionPlan):
            raise ConfigError(f"like= must be a plan of the graph, not {like!r}")
        its = mapping("homes", homes), mapping("pins", pins), mapping("exclude", exclude)
        with paused_gc(len(graph.steps)):
            return self._schedule(graph, *its, draws, occupied or {}, like)

    def _schedule(
        self,
        graph: Graph,
        homes: Mapping[int, str | Device],
        pins: Mapping[Where, str | Device],
        exclude: Mapping[Where, Collection[str | Device] | str | Device],
        draws: str | Device | None,
        occupied: Mapping[str, int],
        like: ExecutionPlan | None,
    ) -> ExecutionPlan:
        devices, steps = self.devices, graph.steps
        living = homes_of(graph, devices, homes)
        wanted = asked(graph, devices, pins, exclude, draws)
        one = len(devices) == 1
        nodes: Sequence[Node] = steps if type(self._cost) is RooflineCostModel and _annotated(graph) else graph.nodes()
        appraisals = [self._appraise(nodes, device) for device in devices]
        seconds = [each.seconds for each in appraisals]
        releases = liveness(graph)
        need = memory(graph, releases)
        now = bytes_of("occupied", devices, occupied)
        taken = [min(a + b, d.memory_bytes) for a, b, d in zip(self._reserved, now, devices, strict=True)]
        capacities = [device.memory_bytes - its for device, its in zip(devices, taken, strict=True)]
        held = wanted if one else [*wanted, *exact(graph, living)]
        links = () if one else ways(devices, self._transfer, self._source, self._message)
        groups = Groups([], []) if one else grouped(len(steps), len(devices), held)
        if not all(groups.allowed):
            refuse(graph, [device.id for device in devices], conflict(len(steps), len(devices), held))
        size = () if one else sizes(graph)
        outlook = Outlook(
            seconds,
            need,
            self.policy,
            capacities,
            links,
            groups,
            living,
            releases,
            size,
            self._caps,
            self._thrift,
        )
        placement, rule = self._place(graph, outlook) if like is None else (like.placement, "as it was")
        places = self._places(graph, placement, held)
        rows: Sequence[tuple[float, ...]] = [()] * len(steps) if one else list(zip(*seconds, strict=True))
        decisions = self._decisions(places, appraisals, rows)
        moves: tuple[Transfer, ...] = ()
        again: tuple[Again, ...] = ()
        most = [0] * len(devices)
        if one or (len(set(places)) < 2 and not living):
            most[places[0] if places else 0] = need.peak
        else:
            moves = transfers(graph, places, Links(links), living, size)
            if self._recompute and moves:
                again = self._again(graph, outlook, held, places, decisions, moves)
                moves = transfers(graph, places, Links(links), living, size, again)
            most = list(peaks(graph, places, len(devices), releases, living, size, again))
        self._check(most, capacities)
        latency = makespan(graph, decisions, moves, len(devices), again)
        plan = ExecutionPlan(
            graph=graph,
            devices=devices,
            decisions=decisions,
            releases=releases,
            transfers=moves,
            again=again,
            rules=(rule, *self._exceeded(lambda: timeline(graph, decisions, moves, len(devices), again).busy, latency)),
            policy=self.policy.name,
            latency=latency,
            peak_memory=tuple(most),
            links=links,
            homes=tuple(sorted(living.items())),
            constraints=tuple(wanted),
            capacities=tuple(capacities) if any(taken) else (),
        )
        if graph.artifacts:
            plan = _engined(plan)
        verify_plan(plan)
        return plan

    def _place(self, graph: Graph, outlook: Outlook) -> tuple[Mapping[int, str], str]:
        if not isinstance(self._strategy, InformedStrategy):
            return self._strategy.place(graph, self.devices), f"strategy {_name(self._strategy)}"
        return self._strategy.place_knowing(graph, self.devices, outlook)

    def _appraise(self, nodes: Sequence[Node], device: Device) -> _Appraisal:
        details: Sequence[Estimate] | None = None
        try:
            cost = self._cost
            if isinstance(cost, Appraising):
                details = regional(nodes, cost.appraise(nodes, device), lambda inner: cost.appraise(inner, device))
                seconds = [float(each.seconds) for each in details]
            else:
                compute = self._compute
                seconds = [float(compute(node, device)) for node in nodes]
            sound = len(seconds) == len(nodes) and all(map(isfinite, seconds)) and (not seconds or min(seconds) >= 0)
        except Exception as error:  # a plugin may raise anything
            raise SchedulingError(
                f"the cost model {self._source!r} failed: {type(error).__name__}: {error}", where=device.id
            ) from error
        if not sound:
            bad = next((n for n, cost in zip(nodes, seconds, strict=False) if not (isfinite(cost) and cost >= 0)), None)
            what = f"node {bad.id} ({bad.target})" if bad is not None else f"{len(nodes) - len(seconds)} nodes"
            raise SchedulingError(f"the cost model {self._source!r} gives {what} no time in seconds")
        return _Appraisal(array("d", seconds), details)

    def _decisions(
        self, places: Sequence[int], appraisals: Sequence[_Appraisal], rows: Sequence[tuple[float, ...]]
    ) -> tuple[Decision, ...]:
        if all(each.details is None for each in appraisals):
            times, source = [each.seconds for each in appraisals], self._source
            return tuple([Decision(d, times[d][i], source, 0, rows[i]) for i, d in enumerate(places)])
        made: list[Decision] = []
        for step, device in enumerate(places):
            details = appraisals[device].details
            assert details is not None
            its = details[step]
            made.append(Decision(device, float(its.seconds), its.source, 0, rows[step], its.error, its.bound))
        return tuple(made)

    def _places(self, graph: Graph, placement: Mapping[int, str], held: Sequence[Constraint]) -> list[int]:
        """Per step, the index of its device; checked, for strategies may be anyone's."""
        index = {device.id: number for number, device in enumerate(self.devices)}
        try:
            places = [index[placement[node.id]] for node in graph.steps]
        except (KeyError, TypeError):
            bad = next(node for node in graph.steps if not _placed(node, placement, index))
            raise SchedulingError(
                f"the strategy {_name(self._strategy)!r} puts node {bad.id} ({bad.target}) on no device of "
                f"{', '.join(index)}"
            ) from None
        if len(set(places)) > 1 and (value := split_storage(graph, places)) is not None:
            raise SchedulingError(
                f"the strategy {_name(self._strategy)!r} splits the memory of %{value}, which is written to in place",
                hint="keep nodes that share written memory on one device",
            )
        if (first := broken(places, held)) is not None:
            raise SchedulingError(
                f"the strategy {_name(self._strategy)!r} does not keep what must hold: {first.text}",
                where=f"node {graph.steps[first.steps[0]].id}" if first.steps else "",
            )
        return places

    def _check(self, most: Sequence[int], capacities: Sequence[int]) -> None:
        for device, peak, has in zip(self.devices, most, capacities, strict=True):
            if peak > has:
                raise SchedulingError(
                    f"the strategy {_name(self._strategy)!r} puts {gib(peak)} on {device.id}, which has {gib(has)}"
                )

    def _again(
        self,
        graph: Graph,
        outlook: Outlook,
        held: Sequence[Constraint],
        places: Sequence[int],
        decisions: Sequence[Decision],
        moves: Sequence[Transfer],
    ) -> tuple[Again, ...]:
        """The steps that run on a second device, too, because the plan is better for it."""
        count, homes, links = len(self.devices), outlook.homes, Links(outlook.links)
        ids = [device.id for device in self.devices]

        def judge(again: tuple[Again, ...]) -> float:
            sent = transfers(graph, places, links, homes, outlook.size, again)
            most = peaks(graph, places, count, outlook.releases, homes, outlook.size, again)
            if any(need > has for need, has in zip(most, outlook.capacities, strict=True)):
                return float("inf")
            times = timeline(graph, decisions, sent, count, again)
            busy = dict(zip(ids, times.busy, strict=True))
            if outlook.caps.exceeded(times.makespan, busy, self.devices):
                return float("inf")
            return self.policy.score(times.makespan, busy, self.devices)

        options = choices(graph, places, outlook.seconds, moves, held, outlook.releases, self._recompute)
        if not options:
            return ()
        times = timeline(graph, decisions, moves, count)
        now = self.policy.score(times.makespan, dict(zip(ids, times.busy, strict=True)), self.devices)
        last = released(graph, outlook.releases)
        return best(options, waited_for(times, moves, options), judge, now, last)

    def _exceeded(self, busy: Callable[[], Sequence[float]], latency: float) -> list[str]:
        if self._caps.latency_ms is None and self._caps.cost is None:
            return []
        seconds = {device.id: its for device, its in zip(self.devices, busy(), strict=True)}
        found = self._caps.exceeded(latency, seconds, self.devices)
        if found and self._caps.strict:
            raise SchedulingError(
                f"no placement keeps the caps; of the best one {'; '.join(found)}",
                hint="raise the cap, add devices, or leave out strict=True",
            )
        return found


def _engined(plan: ExecutionPlan) -> ExecutionPlan:
    """With what runs it, where there is a choice."""
    places = {made.device for made in plan.decisions}
    if len(places) > 1:
        split_up(plan.graph)
        return plan
    device = plan.devices[places.pop() if places else 0]
    made = choice(plan.graph, device, plan.decisions, plan.latency)
    return msgspec.structs.replace(plan, engine=made)


def _annotated(graph: Graph) -> bool:
    return all(
        known is not None and known.bytes_read is not None and known.bytes_written is not None
        for known in [node.semantics for node in graph.steps]
    )


def _name(strategy: object) -> str:
    return str(getattr(strategy, "name", type(strategy).__name__))


def _placed(node: Node, placement: Mapping[int, str], index: Mapping[str, int]) -> bool:
    try:
        return placement[node.id] in index
    except (KeyError, TypeError):
        return False


def _with_device(model: CostModel) -> _Estimate:
    """``estimate_compute`` called with the device if it can take one."""
    estimate = model.estimate_compute
    try:
        inspect.signature(estimate).bind(None, None)
    except TypeError:
        alone: Callable[[Node], float] = estimate  # the contract allows models that only look at the node
        return lambda node, _device: alone(node)
    except ValueError:  # no signature to be had: a native callable
        pass
    return estimate
