"""Rates and quantiles between two looks, whatever happened in between."""

from __future__ import annotations

from genie.remote.node.meters import BOUNDS
from genie.remote.seen.observed import Latency, NodeView, Process
from genie.remote.seen.rates import rates


def view(at: float, started: float = 0.0, executions: int = 0, took: tuple[int, ...] = ()) -> NodeView:
    """``took`` are the places of buckets."""
    buckets = tuple(sum(place <= k for place in took) for k in range(len(BOUNDS)))
    return NodeView(
        address="n",
        genie="1",
        time=at,
        started=started,
        requests={"EXECUTE": executions},
        latencies={"execute": Latency(buckets, len(took), 0.0)},
        process=Process(cpu_seconds=at / 2),
    )


def test_rates_are_of_the_time_between() -> None:
    seen = rates(view(10, executions=100, took=(3, 3)), view(12, executions=140, took=(3, 3, *[5] * 98, 9, 9)))
    assert seen.seconds == 2
    assert seen.executions == seen.requests == 20
    assert seen.cpu == 0.5
    its = seen.stages["execute"]
    assert (its.count, its.p50, its.p99) == (100, BOUNDS[5], BOUNDS[9])


def test_the_first_look_is_since_the_start() -> None:
    seen = rates(None, view(10, started=5, executions=50))
    assert (seen.seconds, seen.executions) == (5, 10)
    its = seen.stages["execute"]
    assert (its.count, its.p50, its.p99) == (0, None, None)


def test_a_node_started_anew_is_not_compared() -> None:
    seen = rates(view(10, started=0, executions=1000), view(12, started=11, executions=7))
    assert (seen.seconds, seen.executions) == (1, 7)


def test_what_took_longer_than_all_bounds() -> None:
    seen = rates(None, view(10, took=(99,)))
    assert seen.stages["execute"].p99 is None
    assert seen.stages["execute"].count == 1
