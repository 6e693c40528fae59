"""When things happen, by hand."""

from __future__ import annotations

from core.dags import Table, device, graph_of, plan_at

from genie.plan import Span

A, B, C = device("a"), device("b"), device("c")
GIB = 1 << 30


def test_a_device_sends_one_value_at_a_time_in_the_order_it_made_them():
    # a makes two values for b and c; each takes two seconds on the way.
    graph = graph_of([[0], [0], [1], [2]], [8, GIB, GIB, 8, 8], 1, [3, 4])
    model = Table({(n, d): 1.0 for n in range(4) for d in "abc"}, 1.0, 1.0 / GIB)
    times = plan_at(graph, [A, B, C], model, "aabc").timeline
    assert times.transfers == (Span(1.0, 3.0, "made", 0), Span(3.0, 5.0, "sender", 0))
    assert times.steps[2:] == (Span(3.0, 4.0, "transfer", 0), Span(5.0, 6.0, "transfer", 1))
    assert (times.sent, times.received) == ((4.0, 0.0, 0.0), (0.0, 2.0, 2.0))
    assert (times.critical_steps, times.critical_transfers) == ((0, 3), (0, 1))


def test_a_device_receives_one_value_at_a_time_the_soonest_first():
    graph = graph_of([[0], [0], [1, 2]], [8, GIB, GIB, 8], 1, [3])
    seconds = {(n, d): 1.0 for n in range(3) for d in "abc"} | {(0, "a"): 2.0}
    times = plan_at(graph, [A, B, C], Table(seconds, 0.0, 1.0 / GIB), "abc").timeline
    # b's is made at 1, sooner than a's at 2; the input is sent to b as soon as the plan starts.
    assert times.transfers[0] == Span(0.0, 8 / GIB, "", -1)
    assert times.steps[1].finish == 1 + 8 / GIB
    assert [span.waits for span in times.transfers[1:]] == ["receiver", "made"]
    assert times.makespan == 1 + 8 / GIB + 1 + 1 + 1


def test_transfers_overlap_work_and_a_value_travels_once():
    graph = graph_of([[0], [1], [1], [1]], [8, GIB, 8, 8, 8], 1, [2, 3, 4])
    model = Table({(n, d): 1.0 for n in range(4) for d in "ab"}, 0.0, 1.0 / GIB)
    plan = plan_at(graph, [A, B], model, "aabb")
    assert len(plan.transfers) == 1
    times = plan.timeline
    assert times.steps[1] == Span(1.0, 2.0, "device", 0)
    assert times.transfers == (Span(1.0, 2.0, "made", 0),)
    assert (times.makespan, times.busy) == (4.0, (2.0, 2.0))


def test_one_device_is_one_step_after_the_other():
    graph = graph_of([[0], [1]], [8, 8, 8], 1, [2])
    times = plan_at(graph, [A, B], Table({(n, d): 0.5 for n in range(2) for d in "ab"}), "bb").timeline
    assert times.steps == (Span(0.0, 0.5), Span(0.5, 1.0, "device", 0))
    assert times.busy == (0.0, 1.0)
    assert times.critical_steps == (0, 1)
