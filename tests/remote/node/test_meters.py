"""What a node counts is what happened: to the record, while sessions work, and after they have gone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

import pytest
from remote.peers import Node
from remote.test_loop import begin

from genie.errors import GenieError, LimitExceeded
from genie.remote.node import meters
from genie.remote.node.meters import BOUNDS, MOST_TENANTS, OTHER, Meter, Meters, cumulated, named
from genie.remote.seen.observed import observe
from genie.testing import single
from genie.testing.plans import spec
from genie.wire import Kind

ADD = single("aten::add.Tensor", [spec(2)] * 2, spec(2))


@pytest.fixture
def make_node(make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Node]:
    """A session that has answered is done a moment later: looks wait for that, on a busy machine, too."""
    monkeypatch.setattr(meters, "_LOOK_SECONDS", 10.0)
    return make_node


def test_requests_are_counted_by_kind(node: Node) -> None:
    caller = node.client()
    one = caller.put([1, 2])
    for _ in range(5):
        assert caller.get(caller.run(ADD, [one, one])) == [2, 4]
    view = observe(node.server)
    assert view.requests["LOAD_PLAN"] == 1
    assert view.requests["EXECUTE"] == view.requests["FETCH"] == 5
    assert view.plan_misses == 1
    assert view.plan_hits == 4
    for stage, count in (("plan", 1), ("execute", 5), ("fetch", 5), ("queue", 5), ("send", 5)):
        latency = view.latencies[stage]
        assert (latency.count, latency.buckets[-1]) == (count, count)
        assert latency.seconds > 0 or stage == "queue"  # a look that came alone waited for nothing
    (session,) = view.sessions
    assert session.executions == 5
    assert session.memory_bytes > 0
    (tenant,) = view.tenants
    assert (tenant.sessions, tenant.opened, tenant.requests) == (1, 1, sum(view.requests.values()))


def test_bytes_are_those_of_the_client(node: Node) -> None:
    caller = node.client()
    large = caller.put([0.0] * (1 << 16), 1 << 16)
    caller.get(large)
    view = observe(node.server)
    sent = caller.session.traffic["bytes_sent"]
    assert view.bytes_in == sent
    assert view.bytes_out >= 4 << 16
    assert view.latencies["receive"].count == 1  # bulk data alone is timed


def test_what_ended_stays_counted(node: Node) -> None:
    caller = node.client()
    caller.get(caller.run(ADD, [caller.put([1, 2]), caller.put([3, 4])]))
    before = observe(node.server)
    caller.session.close()
    node.wait_for_sessions(0)
    after = observe(node.server)
    assert after.sessions == ()
    assert after.requests["EXECUTE"] == before.requests["EXECUTE"] == 1
    assert after.latencies["execute"] == before.latencies["execute"]
    assert after.devices[0].used_bytes == 0
    assert after.devices[0].largest_bytes >= before.devices[0].used_bytes > 0
    assert after.tenants[0].opened == 1
    assert after.tenants[0].sessions == 0


def test_errors_and_refusals_are_counted(make_node: Callable[..., Node]) -> None:
    node = make_node(max_sessions=1)
    caller = node.client()
    bad = caller.run(
        single("aten::add.Tensor", [spec(2), spec(3)], spec(2)), [caller.put([1, 2]), caller.put([1, 2, 3])]
    )
    with pytest.raises(GenieError, match="add"):
        caller.get(bad)
    with pytest.raises(LimitExceeded):
        node.client()
    view = observe(node.server)
    assert view.failures == 1
    assert view.refused == {"LimitExceeded": 1}


def test_names_of_tenants_are_few_and_harmless() -> None:
    meters = Meters()
    made = [Meter(f"s{number}") for number in range(MOST_TENANTS + 5)]
    for number, meter in enumerate(made):
        meters.opened(meter, f"host{number}", "cpu")
        meter.arrived(10)
    look = meters.look()
    assert len(look.tenants) == MOST_TENANTS + 1
    assert look.tenants[OTHER].sessions == 5
    assert look.tenants[OTHER].bytes_in == 50
    for meter in made:
        meters.closed(meter)
        meters.closed(meter)  # twice is once
    assert meters.look().tenants[OTHER].bytes_in == 50
    assert named("lab-3:4242") == named("lab-3:1") == "lab-3"
    assert named("a:b") == "a:b"
    assert named('x"\\\n' + "y" * 200) == "x" + "y" * 60
    assert named("\n") == OTHER


def test_buckets_are_cumulated_and_bounded() -> None:
    meter = Meter()
    row = meter.rows["execute"]
    meter.arrived(1)
    meter.done(Kind.EXECUTE)
    counts, total, seconds = cumulated(row)
    assert len(counts) == len(BOUNDS)
    assert (counts[-1], total) == (1, 1)
    assert 0 < seconds < BOUNDS[-1]
    assert BOUNDS[0] <= 10e-6
    assert BOUNDS[-1] >= 10
    row[40] += 3  # beyond the last bound, and still counted
    assert cumulated(row)[1] == 4
    assert cumulated(row)[0][-1] == 1


def test_the_backend_is_asked_by_one_thread_at_a_time() -> None:
    """However looks and messages meet."""
    inside = 0
    overlaps = 0
    at_work = False

    def ask() -> dict[str, int]:
        nonlocal inside, overlaps
        inside += 1
        for _ in range(500):  # at each turn another thread may come
            overlaps += inside > 1 or at_work
        inside -= 1
        return {"memory_bytes": 7}

    meter = Meter("s", ask)
    over = threading.Event()

    missed = 0

    def look() -> None:
        nonlocal missed
        while not over.is_set():
            event = meter.visit()
            if event is not None:
                missed += not event.wait(5.0)

    looking = threading.Thread(target=look)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # they take turns at any place
    try:
        looking.start()
        for _ in range(1000):
            meter.arrived(1)
            at_work = True
            for _ in range(100):
                pass
            meter.done(Kind.EXECUTE)
            at_work = False
            meter.leave()
            for _ in range(2000):  # and waits for its client
                pass
    finally:
        sys.setswitchinterval(interval)
    over.set()
    looking.join(10.0)
    assert not looking.is_alive()
    assert (overlaps, missed) == (0, 0)
    assert meter.said == {"memory_bytes": 7}


def test_a_look_does_not_wait_for_long_work() -> None:
    meters = Meters()
    meter = Meter("s", lambda: {"memory_bytes": 5})
    meters.opened(meter, "c", "cpu")
    assert meters.look().open["s"].said == {"memory_bytes": 5}
    meter.arrived(1)  # and never done
    assert meters.look().open["s"].said == {"memory_bytes": 5}
    meter.leave()
    assert meters.look().open["s"].said == {"memory_bytes": 5}


def test_loops_are_counted_by_iteration_and_failure(node: Node) -> None:
    caller = node.client()
    _, iterations = begin(caller, 3)
    assert len(list(iterations)) == 3
    view = observe(node.server)
    assert (view.loops, view.iterations, view.latencies["execute"].count, view.failures) == (1, 3, 3, 0)
    caller.run(single("aten::no_such", [spec(2)], spec(2)), [caller.put([1, 2])])
    _, iterations = begin(caller, 3)
    with pytest.raises(GenieError):
        next(iterations)
    assert observe(node.server).failures == 1


def test_a_message_that_arrives_during_a_look_waits_for_its_end() -> None:
    entered = threading.Event()
    during: list[bool] = []

    def arrive() -> None:
        meter.arrived(1)
        entered.set()

    def ask() -> dict[str, int]:
        session.start()
        during.append(entered.wait(0.2))
        return {}

    meter = Meter("s", ask)
    session = threading.Thread(target=arrive)
    assert meter.visit() is None
    assert entered.wait(5.0)
    session.join(5.0)
    assert during == [False]


def test_a_session_at_work_tells_when_it_is_done() -> None:
    asked: list[str] = []

    def ask() -> dict[str, int]:
        asked.append(threading.current_thread().name)
        return {}

    meter = Meter("s", ask)
    meter.arrived(1)
    event = meter.visit()
    assert event is not None
    assert (asked, event.is_set()) == ([], False)
    session = threading.Thread(target=meter.leave, name="the session's")
    session.start()
    assert event.wait(5.0)
    session.join(5.0)
    assert asked == ["the session's"]
    assert meter.visit() is None
