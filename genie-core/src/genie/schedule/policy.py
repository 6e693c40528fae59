"""Policies: one number for a candidate plan; the least wins. Caps: what it must keep besides, if anything can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import NamedTuple, Protocol, runtime_checkable

from genie.device import Device
from genie.errors import ConfigError
from genie.interfaces import Policy


class MinLatency:
    """The shortest time from start to end."""

    name = "min_latency"

    def score(self, makespan: float, device_seconds: Mapping[str, float], devices: Sequence[Device]) -> float:
        return makespan


class MinCost:
    """The least capacity taken: seconds of each device times its TFLOPS, for prices follow speed."""

    name = "min_cost"

    def score(self, makespan: float, device_seconds: Mapping[str, float], devices: Sequence[Device]) -> float:
        return sum(device_seconds.get(device.id, 0.0) * device.compute_tflops for device in devices)


class MaxThroughput:
    """The least time of the busiest device: what bounds the rate when requests follow each other.

    A search also counts a device's port as busy while it sends or receives, and with it the cores of a CPU.
    """

    name = "max_throughput"

    def score(self, makespan: float, device_seconds: Mapping[str, float], devices: Sequence[Device]) -> float:
        return max(device_seconds.values(), default=0.0)


@runtime_checkable
class Choosy(Protocol):
    """What a policy may be besides: one that says which candidates will not do. They lose to those that do."""

    def feasible(self, makespan: float, device_seconds: Mapping[str, float], devices: Sequence[Device]) -> bool: ...


class Caps(NamedTuple):
    """What a plan should keep under; ``None`` is no cap. ``cost`` is in device seconds times TFLOPS.

    Candidates over a cap lose to those under it. If there are none, the one that exceeds it least wins and says so
    among its rules, or, when ``strict``, nothing does.
    """

    latency_ms: float | None = None
    cost: float | None = None
    strict: bool = False

    def checked(self) -> Caps:
        for name, cap in (("latency_cap_ms", self.latency_ms), ("cost_cap", self.cost)):
            if cap is not None and not (isinstance(cap, int | float) and isfinite(cap) and cap > 0):
                raise ConfigError(f"{name} must be a positive number, not {cap!r}")
        return self

    def exceeded(self, makespan: float, device_seconds: Mapping[str, float], devices: Sequence[Device]) -> list[str]:
        """In words, the caps that a plan exceeds."""
        found = []
        if self.latency_ms is not None and makespan * 1e3 > self.latency_ms:
            found.append(f"a latency of {self.latency_ms:g} ms is exceeded: {makespan * 1e3:.3g} ms")
        if self.cost is not None and (cost := MinCost().score(makespan, device_seconds, devices)) > self.cost:
            found.append(f"a cost of {self.cost:g} is exceeded: {cost:.3g}")
        return found


_POLICIES = {made.name: made for made in (MinLatency, MinCost, MaxThroughput)}
BUILT_IN = tuple(_POLICIES.values())


def policy(name: str) -> Policy:
    """A built-in policy by name. Raises :class:`ConfigError`."""
    if name not in _POLICIES:
        raise ConfigError(f"there is no policy {name!r}", hint=f"policies: {', '.join(_POLICIES)}")
    return _POLICIES[name]()
