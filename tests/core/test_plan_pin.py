"""Plans changed by hand, and what they say of other places."""

from __future__ import annotations

import msgspec
import pytest
from core.dags import GIB, Table, device, graph_of, plan_at, problems
from core.test_schedule_constraints import A, B, chain, plan_of, written
from hypothesis import given, settings
from hypothesis import strategies as st

from genie.codec import decode, encode
from genie.errors import PlanError, SchedulingError
from genie.plan import verify


def whole():
    return plan_of(chain())


def test_a_pinned_node_moves_and_all_follows():
    plan = whole().pin(2, "b")
    verify(plan)
    assert [plan.placement[i] for i in range(4)] == ["a", "a", "b", "a"]
    assert [(move.value, move.source, move.target) for move in plan.transfers] == [(2, 0, 1), (3, 1, 0)]
    assert plan.latency == 4 + 2 * 0.5
    assert plan.explain(2).rule == "plan.pin(2, 'b')"
    assert plan.explain(1).rule == whole().explain(1).rule
    assert decode(encode(plan)) == plan


def test_modules_and_nodes_are_pinned_and_may_be_pinned_again():
    plan = whole().pin("layers.0", "b")
    assert [plan.placement[i] for i in range(4)] == ["b", "b", "a", "a"]
    back = plan.pin(plan.graph.get_node(0), "a")
    assert [back.placement[i] for i in range(4)] == ["a", "b", "a", "a"]
    assert [held.steps for held in back.constraints] == [(1,), (0,)]
    for _ in range(20):  # over and over
        back = back.pin(0, "b").pin(0, "a")
    verify(back)


def test_a_device_may_be_given_itself():
    assert whole().pin(2, B) == whole().pin(2, "b")
    with pytest.raises(PlanError, match="the plan has no device 'c'") as caught:
        whole().pin(2, device("c"))
    assert caught.value.hint == "its devices: a, b"


def test_what_must_go_with_it_goes_with_it():
    plan = plan_of(written()).pin(0, "b")
    assert [plan.placement[i] for i in range(4)] == ["b", "b", "b", "a"]


def test_what_can_not_be_is_refused_with_the_reason():
    plan = plan_of(written(), pins={2: "a"})
    with pytest.raises(SchedulingError) as caught:
        plan.pin(0, "b")
    for part in ("plan.pin(0, 'b')", "pins={2: 'a'}", "written in place"):
        assert part in caught.value.message
    graph = graph_of([[0]], [4 * GIB, 64], 1, [1])
    small = plan_at(graph, [device("big", 8), device("small", 2)], Table({(0, "big"): 1.0, (0, "small"): 1.0}), ["big"])
    with pytest.raises(SchedulingError, match=r"puts 4 GiB on small, which has 2 GiB"):
        small.pin(0, "small")
    for bad, said in ((9, "no node 9"), ("layer", "no node of a module"), (True, "no node True")):
        with pytest.raises(PlanError, match=said):
            whole().pin(bad, "b")
    with pytest.raises(PlanError, match="no device 'c'"):
        whole().pin(0, "c")
    with pytest.raises(PlanError, match="does not know the way"):
        msgspec.structs.replace(whole(), links=()).pin(0, "b")


@settings(max_examples=100)
@given(problems(), st.data())
def test_a_pinned_plan_is_the_one_the_scheduler_makes_of_those_places(problem, data):
    graph, devices, model = problem
    ids = [each.id for each in devices]
    places = [data.draw(st.sampled_from(ids)) for _ in graph.steps]
    node, where = data.draw(st.sampled_from(range(len(places)))), data.draw(st.sampled_from(ids))
    pinned = plan_at(graph, devices, model, places).pin(node, where)
    verify(pinned)
    places[node] = where
    made = plan_at(graph, devices, model, places)
    for field in ("transfers", "latency", "peak_memory", "stages", "releases"):
        assert getattr(pinned, field) == getattr(made, field)


def test_an_explanation_says_when_why_and_what_else():
    plan = plan_of(chain(), pins={0: "b", 1: "b", 2: "a"})
    why = plan.explain(2)
    assert (why.start, why.finish, why.critical) == (2.5, 3.5, True)
    assert why.waits == "%2, 64 bytes that take 500 ms from b"
    assert why.constraints == ("pins={2: 'a'}: #2 on a",)
    (other,) = why.alternatives
    assert (other.device, other.seconds) == ("b", 1.0)
    assert "pins={2: 'a'}" in other.refused
    (other,) = plan.explain(3).alternatives
    assert (other.transfers, other.latency, other.refused) == (0.5, 5.0, "")
    text = str(plan.explain(3))
    assert "on the critical path" in text
    assert "on b it would take 1 s and 500 ms of transfers; the plan would take 5 s" in text
    assert msgspec.json.decode(msgspec.json.encode(why))["alternatives"][0]["device"] == "b"


def test_an_explanation_names_memory():
    graph = graph_of([[0], [1]], [4 * GIB, 64, 64], 1, [2])
    devices = [device("big", 8), device("small", 2)]
    model = Table({(n, d.id): 1.0 for n in range(2) for d in devices})
    (other,) = plan_at(graph, devices, model, ["big", "big"]).explain(0).alternatives
    assert "puts 4 GiB on small, which has 2 GiB" in other.refused


def test_waits_are_told_apart():
    plan = plan_of(chain(), pins={0: "b", 1: "b"})
    assert plan.explain(0).waits == ""
    assert plan.explain(1).waits == "%1 of #0, which b runs before"
    assert {A.id, B.id} == set(plan.placement.values()) | {"a"}
