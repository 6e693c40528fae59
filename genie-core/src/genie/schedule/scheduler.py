"""The scheduler: graph → plan, through a cost model, a placement strategy and a policy."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from types import MappingProxyType

from genie.device import Device
from genie.errors import ConfigError, SchedulingError
from genie.graph import Graph, Node, verify
from genie.interfaces import CostModel, PlacementStrategy, Policy
from genie.plan import Decision, ExecutionPlan, Transfer, liveness, split_storage
from genie.plan import verify as verify_plan
from genie.schedule.cost import RooflineCostModel, Transfers
from genie.schedule.evaluate import gib, makespan, memory, split_peaks, transfers
from genie.schedule.placement import InformedStrategy, Outlook, SingleDevice
from genie.schedule.policy import policy as policy_named

_Estimate = Callable[[Node, Device], float]


class Scheduler:
    """Places graphs on ``devices``.

    >>> gpu = Device(id="gpu0", type="GPU", memory_gb=16, compute_tflops=10, network_gbps=100)
    >>> plan = Scheduler(devices=[gpu], policy="min_latency").schedule(Graph((), (), (), ()))
    >>> plan.latency_ms
    0.0
    """

    def __init__(self, devices: Sequence[Device], policy: str | Policy = "min_latency") -> None:
        self.devices = tuple(devices)
        if not self.devices:
            raise ConfigError("a scheduler needs at least one device")
        if len({device.id for device in self.devices}) < len(self.devices):
            raise ConfigError("two devices have one id")
        self.policy = policy_named(policy) if isinstance(policy, str) else policy
        self._strategy: PlacementStrategy = SingleDevice()
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
        homes: Mapping[int, str] = MappingProxyType({}),
        held: Mapping[str, int] = MappingProxyType({}),
        draws: str | None = None,
    ) -> ExecutionPlan:
        """A verified plan. Raises ``GraphError`` for a bad graph and :class:`SchedulingError` when nothing fits, or
        when a cost model or a strategy answers what can't be used."""
        verify(graph)
        devices, steps = self.devices, graph.steps
        nodes: Sequence[Node] = steps if type(self._cost) is RooflineCostModel and _annotated(graph) else graph.nodes()
        seconds = [self._estimates(nodes, device) for device in devices]
        releases = liveness(graph)
        need = memory(graph, releases)
        if isinstance(self._strategy, InformedStrategy):
            placement, rule = self._strategy.place_knowing(graph, devices, Outlook(seconds, need, self.policy))
        else:
            placement, rule = self._strategy.place(graph, devices), f"strategy {_name(self._strategy)}"
        places = self._places(graph, placement)
        one = len(devices) == 1
        rows: Sequence[tuple[float, ...]] = [()] * len(steps) if one else list(zip(*seconds, strict=True))
        decisions = tuple([Decision(d, seconds[d][i], self._source, 0, rows[i]) for i, d in enumerate(places)])
        moves: tuple[Transfer, ...] = ()
        peaks = [0] * len(devices)
        if len(set(places)) < 2:
            peaks[places[0] if places else 0] = need.peak
        else:
            moves = transfers(graph, places, devices, self._transfer)
            peaks = split_peaks(graph, places, len(devices), releases, moves)
        self._check(moves, peaks)
        plan = ExecutionPlan(
            graph=graph,
            devices=devices,
            decisions=decisions,
            releases=releases,
            transfers=moves,
            rules=(rule,),
            policy=self.policy.name,
            latency=makespan(graph, decisions, moves),
            peak_memory=tuple(peaks),
        )
        verify_plan(plan)
        return plan

    def _estimates(self, nodes: Sequence[Node], device: Device) -> list[float]:
        compute = self._compute
        try:
            seconds = [float(compute(node, device)) for node in nodes]
            sound = all(map(isfinite, seconds)) and (not seconds or min(seconds) >= 0)
        except Exception as error:  # a plugin may raise anything
            raise SchedulingError(
                f"the cost model {self._source!r} failed: {type(error).__name__}: {error}", where=device.id
            ) from error
        if not sound:
            bad = next(node for node, cost in zip(nodes, seconds, strict=True) if not (isfinite(cost) and cost >= 0))
            raise SchedulingError(
                f"the cost model {self._source!r} gives node {bad.id} ({bad.target}) no time in seconds"
            )
        return seconds

    def _places(self, graph: Graph, placement: Mapping[int, str]) -> list[int]:
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
        return places

    def _check(self, moves: Sequence[Transfer], peaks: Sequence[int]) -> None:
        for move in moves:
            if not (isfinite(move.seconds) and move.seconds >= 0):
                raise SchedulingError(f"{self._source!r} gives the transfer of %{move.value} no time in seconds")
        for device, peak in zip(self.devices, peaks, strict=True):
            if peak > device.memory_bytes:
                raise SchedulingError(
                    f"the strategy {_name(self._strategy)!r} puts {gib(peak)} on {device.id}, "
                    f"which has {gib(device.memory_bytes)}"
                )


def _annotated(graph: Graph) -> bool:
    return all(node.semantics is not None and node.semantics.bytes_read is not None for node in graph.steps)


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
