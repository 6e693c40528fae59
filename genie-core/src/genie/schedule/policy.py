"""Policies: one number for a candidate plan; the least wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    """The least time of the busiest device: what bounds the rate when requests follow each other."""

    name = "max_throughput"

    def score(self, makespan: float, device_seconds: Mapping[str, float], devices: Sequence[Device]) -> float:
        return max(device_seconds.values(), default=0.0)


_POLICIES = {made.name: made for made in (MinLatency, MinCost, MaxThroughput)}


def policy(name: str) -> Policy:
    """A built-in policy by name. Raises :class:`ConfigError`."""
    if name not in _POLICIES:
        raise ConfigError(f"there is no policy {name!r}", hint=f"policies: {', '.join(_POLICIES)}")
    return _POLICIES[name]()
