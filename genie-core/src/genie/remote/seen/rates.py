"""What happened on a node between two looks at it."""

from __future__ import annotations

import math

import msgspec

from genie.remote.seen.observed import Latency, NodeView


class Quantiles(msgspec.Struct, frozen=True):
    """Seconds that half, and 99 of 100, kept: the upper bounds of their buckets. ``None`` where nothing happened, or
    it took longer than the last bound."""

    count: int
    p50: float | None
    p99: float | None


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Per second, over ``seconds``; ``cpu`` in cores."""

    seconds: float
    requests: float
    executions: float
    bytes_in: float
    bytes_out: float
    failures: float
    cpu: float
    stages: dict[str, Quantiles]


def rates(before: NodeView | None, now: NodeView) -> Rates:
    """Without ``before``, and when the node was started anew in between: since its start."""
    if before is not None and before.started == now.started and before.bounds == now.bounds:
        since, seconds = before, now.time - before.time
    else:
        since = NodeView(address=now.address, genie=now.genie, time=now.started, started=now.started)
        seconds = now.time - now.started
    seconds = max(seconds, 1e-3)
    nothing = Latency((0,) * len(now.bounds), 0, 0.0)
    return Rates(
        seconds=seconds,
        requests=_per_second(sum(since.requests.values()), sum(now.requests.values()), seconds),
        executions=_per_second(_executions(since), _executions(now), seconds),
        bytes_in=_per_second(since.bytes_in, now.bytes_in, seconds),
        bytes_out=_per_second(since.bytes_out, now.bytes_out, seconds),
        failures=_per_second(since.failures, now.failures, seconds),
        cpu=_per_second(since.process.cpu_seconds, now.process.cpu_seconds, seconds),
        stages={
            stage: _quantiles(since.latencies.get(stage, nothing), latency, now.bounds)
            for stage, latency in now.latencies.items()
        },
    )


def _executions(view: NodeView) -> int:
    return view.requests.get("EXECUTE", 0) + view.iterations


def _per_second(before: float, now: float, seconds: float) -> float:
    return max(now - before, 0.0) / seconds


def _quantiles(before: Latency, now: Latency, bounds: tuple[float, ...]) -> Quantiles:
    count = now.count - before.count
    grown = [mine - its for mine, its in zip(now.buckets, before.buckets, strict=False)]

    def at(share: float) -> float | None:
        due = math.ceil(share * count)
        return next((bound for bound, number in zip(bounds, grown, strict=False) if number >= due), None)

    return Quantiles(count, at(0.5), at(0.99)) if count > 0 else Quantiles(0, None, None)
