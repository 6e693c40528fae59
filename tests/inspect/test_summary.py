"""What a plan and its modules come to."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from core.dags import Table, device, graph_of, plan_at, problems
from core.test_schedule_constraints import chain, plan_of
from core.test_schedule_recompute import costs, scheduled, table_for_both
from hypothesis import given, settings
from hypothesis import strategies as st
from inspect_page import data
from labelled import HARM, decoder, hostile
from plans import pipeline, two

from genie import ExecutionPlan, codec
from genie.cli import main
from genie.errors import PlanError
from genie.inspect import Summary, module_part, page, summary

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    codec.save(two(decoder(2, 1)), tmp_path / "two.plan")
    return tmp_path / "two.plan"


def test_the_texts_are_stable() -> None:
    plan = two(decoder(2, 1))
    assert str(summary(plan)) == (GOLDEN / "plan.summary.txt").read_text()
    assert str(module_part(plan, "model.layers.0")) == (GOLDEN / "plan.module.txt").read_text()


def test_devices_and_links_are_those_of_the_timeline() -> None:
    plan = pipeline(decoder(4, 2), 3)
    its, times = summary(plan), plan.timeline
    assert [each.busy for each in its.devices] == list(times.busy)
    assert [each.need for each in its.devices] == list(plan.peak_memory)
    assert sum(link.bytes for link in its.links) == sum(move.bytes for move in plan.transfers)
    assert sum(link.seconds for link in its.links) == pytest.approx(sum(times.sent))
    assert its.stages == len(plan.stages)


@settings(max_examples=60)
@given(problems(), st.data())
def test_the_critical_path_adds_up_to_the_latency(problem, data) -> None:
    graph, devices, model = problem
    places = [data.draw(st.sampled_from([each.id for each in devices])) for _ in graph.steps]
    its = summary(plan_at(graph, devices, model, places))
    assert sum(part.seconds for part in its.critical) == pytest.approx(its.latency)
    assert sum(its.bounds.values()) == pytest.approx(its.latency)
    assert sum(part.share for part in its.critical) == pytest.approx(1)
    assert [part.seconds for part in its.critical] == sorted((part.seconds for part in its.critical), reverse=True)


def far_apart(latency: float) -> ExecutionPlan:
    graph = graph_of([[0], [1]], [64, 64, 64], 1, [2])
    return plan_at(
        graph, [device("a"), device("b")], Table({(n, d): 1.0 for n in range(2) for d in "ab"}, latency), "ab"
    )


def test_the_bottleneck_is_what_most_of_the_path_is_spent_on() -> None:
    assert summary(far_apart(0.5)).bottleneck == "a, 40% of the time"
    assert summary(far_apart(3.0)).bottleneck == "a → b, 60% of the time: 64 bytes (network)"
    assert summary(far_apart(3.0)).bounds == {"network": 3.0, "what is not known": 2.0}


def test_what_is_run_again_is_on_the_path_and_in_the_page() -> None:
    plan = scheduled(table_for_both(), costs(), homes={0: "b"})
    assert len(plan.again) == 2
    its, why = summary(plan), plan.explain(3)
    assert sum(part.seconds for part in its.critical) == pytest.approx(its.latency)
    assert sum(its.bounds.values()) == pytest.approx(its.latency)
    assert why.wait is not None
    assert (why.wait.kind, why.wait.node) == ("operand", 1)  # which b runs again just before
    assert "recomputed on b" in str(plan.explain(1))
    chart = data(page(plan))["chart"]
    assert chart["again"] == [0, 1, 3, 1, 1, 3]
    assert len(chart["agains"]) == 8


def test_constraints_in_force_are_named() -> None:
    its = summary(plan_of(chain(), pins={"layers.0": "b"}, exclude={3: "b"}))
    assert its.constraints == ("pins={'layers.0': 'b'}: #0 #1 on b", "exclude={3: b}: #3 on a")
    assert "constraints\n  pins={'layers.0': 'b'}: #0 #1 on b\n" in str(its)


def test_a_module_counts_what_is_below_it_and_no_other() -> None:
    plan = two(decoder(12))
    its = module_part(plan, "model.layers.1")
    assert its.nodes == 8  # not those of layers 10 and 11
    assert its.devices == {"gpu0": 6, "gpu1": 2}
    mine = [
        s for s, n in enumerate(plan.graph.steps) if plan.graph.modules[n.module].path.startswith("model.layers.1.")
    ]
    assert its.start <= min(plan.timeline.steps[step].start for step in mine)
    assert its.seconds <= plan.latency
    (other, _) = its.alternatives
    assert (other.device, other.latency) == ("gpu0", plan.pin("model.layers.1", "gpu0").latency)
    assert its.departs > 0
    assert its.arrives > 0


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(PlanError, match=r"no node of a module 'model\.layer'"):
        module_part(two(decoder()), "model.layer")


def test_an_empty_plan_has_a_summary() -> None:
    plan = plan_of(graph_of([], [64], 1, [0]))
    its = summary(plan)
    assert (its.latency, its.bottleneck, its.critical) == (0.0, "none", ())
    assert str(its).startswith("min_latency: 0 µs estimated, 0 nodes in 0 stages\n")


def test_names_do_no_harm() -> None:
    plan = pipeline(hostile(), 2)
    assert all(line.isprintable() for line in str(summary(plan)).splitlines())
    assert all(line.isprintable() for line in str(module_part(plan, f"top.{HARM}")).splitlines())


# --- the command ----------------------------------------------------------------------------------


def test_explain_a_plan(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(plan_file)]) == 0
    assert capsys.readouterr().out == (GOLDEN / "plan.summary.txt").read_text()
    assert main(["explain", str(plan_file), "--json"]) == 0
    answer = msgspec.convert(json.loads(capsys.readouterr().out), Summary)
    assert answer == summary(two(decoder(2, 1)))


def test_explain_a_module(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(plan_file), "model.layers.0"]) == 0
    assert capsys.readouterr().out == (GOLDEN / "plan.module.txt").read_text()
    assert main(["explain", str(plan_file), "model.layers.0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nodes"] == 9
    assert main(["explain", str(plan_file), "nowhere"]) == 1
    assert "no node of a module 'nowhere'" in capsys.readouterr().err


def test_explain_a_graph_wants_a_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codec.save(decoder(), tmp_path / "a.graph")
    assert main(["explain", str(tmp_path / "a.graph")]) == 2
    assert "which node?" in capsys.readouterr().err
    assert main(["explain", str(tmp_path / "a.graph"), "model"]) == 2
    assert "'model' is none" in capsys.readouterr().err
