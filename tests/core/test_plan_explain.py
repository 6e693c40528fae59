"""What plans say of their nodes: golden texts, and each kind of reason."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from core.dags import GIB, Table, device, graph_of, plan_at
from core.test_schedule_constraints import chain, plan_of, written
from labelled import decoder
from plans import two

from genie.errors import PlanError
from genie.plan import ExecutionPlan, Explanation

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize("node", [0, 6, 7])
def test_the_text_is_stable(node: int) -> None:
    assert f"{two(decoder(2, 1)).explain(node)}\n" == (GOLDEN / f"explain_{node}.txt").read_text()


def test_it_is_json_and_back() -> None:
    plan = two(decoder(2, 1))
    for node in plan.graph.steps:
        why = plan.explain(node)
        assert msgspec.json.decode(msgspec.json.encode(why), type=Explanation) == why


@pytest.mark.parametrize("node", ["x", None, 1.5, object()])
def test_what_is_no_node_is_refused(node: object) -> None:
    with pytest.raises(PlanError, match="the plan has no node ") as caught:
        plan_of(chain()).explain(node)  # type: ignore[arg-type]
    assert "a node's id: a number" in caught.value.hint


def test_ids_that_there_are_not_are_refused_with_those_there_are() -> None:
    with pytest.raises(PlanError, match="the plan has no node 99") as caught:
        plan_of(chain()).explain(99)
    assert caught.value.hint == "ids go from 0 to 3"


def test_a_busy_device_is_waited_for() -> None:
    graph = graph_of([[0], [0]], [64, 64, 64], 1, [1, 2])
    why = plan_at(graph, [device("a"), device("b")], Table({(n, d): 1.0 for n in (0, 1) for d in "ab"}), "aa").explain(
        1
    )
    assert why.wait is not None
    assert (why.wait.kind, why.wait.device, why.wait.node, why.wait.value) == ("device", "a", 0, -1)
    assert why.waits == "a, which runs #0 before"


def test_an_operand_made_just_before_is_waited_for() -> None:
    why = plan_of(chain()).explain(1)
    assert why.wait is not None
    assert (why.wait.kind, why.wait.node, why.wait.value) == ("operand", 0, 1)


def across(latency: float) -> ExecutionPlan:
    """Two values made on a, for b, each as large; the second is sent once the first has left."""
    graph = graph_of([[0], [0], [1], [2]], [64, GIB, GIB, 64, 64], 1, [3, 4])
    model = Table({(n, d): 1.0 for n in range(4) for d in "ab"}, latency, 1.0 / GIB)
    return plan_at(graph, [device("a"), device("b")], model, "aabb")


def test_transfers_are_waited_for_and_bound_by_the_network_when_longer_than_the_work() -> None:
    first, second = across(1.0).explain(2), across(1.0).explain(3)
    assert first.wait is not None
    assert second.wait is not None
    assert (first.wait.kind, first.wait.device, first.wait.node, first.wait.bytes) == ("transfer", "a", 0, GIB)
    assert (first.wait.idle, first.bound) == (3.0, "network")
    assert first.behind == "sent at 1 s, when #0 has made it"
    assert (second.wait.idle, second.bound) == (1.0, "")  # one second of work, one of waiting
    assert second.behind == "sent at 3 s, when a has sent %1"
    assert "bound by network: b is idle 3 s" in str(first)
    assert across(0.0).explain(3).bound == ""


def test_a_transfer_that_waits_for_the_receiver_says_so() -> None:
    graph = graph_of([[0], [1], [2, 3]], [8, 8, GIB, GIB, 8], 2, [4])
    seconds = {(n, d): 1.0 for n in range(3) for d in "abc"}
    plan = plan_at(graph, [device("a"), device("b"), device("c")], Table(seconds, 0.0, 1.0 / GIB), "abc")
    assert plan.explain(2).behind == "sent at 2 s, when c has received %2"


@pytest.mark.parametrize(
    ("asked", "kinds", "said"),
    [
        ({"pins": {0: "a"}}, ("pin",), "pins={0: 'a'} (#0 on a)"),
        ({"exclude": {0: "b"}}, ("exclusion",), "exclude={0: b} (#0 on a)"),
        ({"pins": {2: "a"}}, ("pin", "co-location"), "written in place"),
    ],
)
def test_what_keeps_a_node_from_a_device_has_a_kind(asked: dict, kinds: tuple[str, ...], said: str) -> None:
    graph = written() if "pins" in asked and 2 in asked["pins"] else chain()
    (other,) = plan_of(graph, **asked).explain(0).alternatives
    assert (other.device, other.kinds, other.latency) == ("b", kinds, 0.0)
    assert said in other.refused
    assert f"it can't run there ({', '.join(kinds)})" in str(plan_of(graph, **asked).explain(0))


def test_memory_has_what_is_needed_and_there() -> None:
    graph = graph_of([[0], [1]], [4 * GIB, 64, 64], 1, [2])
    devices = [device("big", 8), device("small", 2)]
    model = Table({(n, d.id): 1.0 for n in range(2) for d in devices})
    (other,) = plan_at(graph, devices, model, ["big", "big"]).explain(0).alternatives
    assert (other.kinds, other.need, other.have) == (("memory",), 4 * GIB + 64, 2 * GIB)


def test_an_alternative_has_the_transfers_it_causes_and_those_it_saves() -> None:
    plan = across(1.0)
    (other,) = plan.explain(2).alternatives
    assert (other.device, other.seconds, other.transfers, other.saved) == ("a", 1.0, 0.0, 2.0)
    assert other.latency == plan.pin(2, "a").latency
    (other,) = plan.explain(0).alternatives
    assert (other.transfers, other.saved) == (1 + 64 / GIB, 2.0)


def test_a_plan_of_one_device_has_no_alternatives() -> None:
    assert plan_of(chain(), devices=(device("a"),)).explain(0).alternatives == ()
