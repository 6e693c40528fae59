"""The ways between devices, as the cost model tells them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite

from genie.device import Device
from genie.errors import SchedulingError
from genie.plan import Link

_PROBE = 1 << 30


def ways(
    devices: Sequence[Device], estimate: Callable[[Device, Device, int], float], model: str, message: float = 0.0
) -> tuple[Link, ...]:
    """Each ordered pair's latency and bandwidth: what nothing takes, and what each byte of a GiB adds to that.
    ``message`` seconds come on top of each latency."""
    found: list[Link] = []
    for i, source in enumerate(devices):
        for j, target in enumerate(devices):
            if i == j:
                continue
            try:
                nothing, much = float(estimate(source, target, 0)), float(estimate(source, target, _PROBE))
            except Exception as error:  # a plugin may raise anything
                raise SchedulingError(
                    f"the cost model {model!r} failed: {type(error).__name__}: {error}",
                    where=f"from {source.id} to {target.id}",
                ) from error
            if not (isfinite(nothing) and isfinite(much) and 0 <= nothing <= much):
                raise SchedulingError(
                    f"the cost model {model!r} gives the way from {source.id} to {target.id} no time in seconds",
                    hint="estimate_transfer must be finite, not negative, and not fall with more bytes",
                )
            speed = _PROBE / (much - nothing) if much > nothing else float("inf")
            found.append(Link(i, j, nothing + message, speed))
    return tuple(found)
