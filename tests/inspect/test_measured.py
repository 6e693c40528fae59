"""What a plan took, beside what was predicted."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from core.test_schedule_constraints import chain, plan_of
from inspect_page import data
from labelled import decoder
from plans import pipeline, profile_of, two

from genie import ExecutionPlan, codec
from genie.cli import main
from genie.emulate import Report, Span, Traffic
from genie.errors import PlanError
from genie.inspect import comparison, page
from genie.inspect.measured import measured


def trace_of(plan: ExecutionPlan, scale: float = 2.0, since: float = 5.0, calls: int = 1) -> Report:
    """An emulated run in which stages take ``scale`` times what the plan says, in the plan's order."""
    times, ids, spans = plan.timeline, [device.id for device in plan.devices], []
    for call in range(calls):
        begin = since + call * times.makespan * scale * 3
        spans.append(Span(f"client → {ids[0]}", "float32[4]", begin - 0.5 * times.makespan, begin, 16))
        for stage in plan.stages:
            first, last = times.steps[stage.steps[0]].start, times.steps[stage.steps[-1]].finish
            spans.append(Span(ids[stage.device], "a stage", begin + first * scale, begin + last * scale))
        for move, span in zip(plan.transfers, times.transfers, strict=True):
            way = f"{ids[move.source]} → {ids[move.target]}"
            spans.append(Span(way, "a value", begin + span.start * scale, begin + span.finish * scale, move.bytes))
    spans.sort(key=lambda span: (span.start, span.finish))
    return Report(1.0, {}, {("client", ids[0]): Traffic(16, 1, 0.5)}, tuple(spans))


# --- a profile ------------------------------------------------------------------------------------


def test_measured_times_are_laid_out_by_the_rules_of_the_plan(tmp_path: Path) -> None:
    plan = pipeline(decoder(3), 3)
    seen = measured(plan, profile_of(plan, lambda _: 2.0, tmp_path).model(plan.devices))
    assert all(seen.known)
    for made, (start, finish) in zip(plan.decisions, seen.steps, strict=True):
        assert finish - start == pytest.approx(2 * made.seconds, rel=0.01)  # a row holds for all of its shapes
    sent = sum(plan.transfers[number].seconds for number in plan.timeline.critical_transfers)
    assert seen.makespan == pytest.approx(2 * (plan.latency - sent) + sent, rel=0.01)
    assert [b - a for a, b in seen.transfers] == pytest.approx([move.seconds for move in plan.transfers])


def test_what_was_not_measured_takes_what_was_predicted_and_is_told_apart(tmp_path: Path) -> None:
    plan = two(decoder(2, 1))
    seen = measured(plan, profile_of(plan, lambda name: 0.0 if name == "aten::mul" else 1.0, tmp_path).model())
    missing = [node.operation for node, known in zip(plan.graph.steps, seen.known, strict=True) if not known]
    assert missing == ["aten::mul", "aten::mul"]
    assert seen.makespan == pytest.approx(plan.latency)
    assert seen.note == "18 of 20 nodes measured, transfers as predicted"


def test_a_profile_of_other_shapes_is_refused(tmp_path: Path) -> None:
    plan = two(decoder())
    with pytest.raises(PlanError, match="none of the plan's operators were measured"):
        measured(plan, profile_of(plan, lambda _: 0.0, tmp_path).model())
    with pytest.raises(PlanError, match="int measures nothing"):
        measured(plan, 3)  # type: ignore[arg-type]


# --- a trace --------------------------------------------------------------------------------------


def test_stages_and_transfers_of_a_trace_are_those_of_the_plan() -> None:
    plan = two(decoder(2, 1))
    seen = measured(plan, trace_of(plan))
    assert sorted(bar.stage for bar in seen.bars if bar.stage >= 0) == list(range(len(plan.stages)))
    assert sorted(bar.transfer for bar in seen.bars if bar.transfer >= 0) == list(range(len(plan.transfers)))
    assert seen.makespan == pytest.approx(2 * plan.latency)
    assert seen.note == ""
    [upload] = [bar for bar in seen.bars if bar.where == "client → gpu0"]
    assert upload.start < upload.finish == 0  # what the client did first is before the start


def test_of_several_calls_the_last_is_shown() -> None:
    plan = pipeline(decoder(3), 3)
    one, three = measured(plan, trace_of(plan)), measured(plan, trace_of(plan, calls=3))
    assert three.note == "the last of 3 calls"
    assert [(b.where, b.stage, b.transfer) for b in three.bars] == [(b.where, b.stage, b.transfer) for b in one.bars]
    assert three.makespan == pytest.approx(one.makespan)


def test_a_trace_of_something_else_on_these_devices_is_shown_as_it_was_seen() -> None:
    plan = plan_of(chain(), pins={0: "b", 1: "b", 2: "a"})
    report = SimpleNamespace(trace=[Span("a", "else", 1.0, 2.0), Span("a", "more", 2.0, 4.0)])
    seen = measured(plan, report)
    assert [(bar.what, bar.start, bar.finish, bar.stage) for bar in seen.bars] == [
        ("else", 0, 1, -1),
        ("more", 1, 3, -1),
    ]
    assert "as it was seen" in seen.note
    with pytest.raises(PlanError, match="no work of the plan's devices") as caught:
        measured(plan, SimpleNamespace(trace=[Span("c", "else", 1.0, 2.0)]))
    assert "it has c" in caught.value.hint


# --- as text, as a page, by the command -----------------------------------------------------------


def test_a_comparison_has_what_is_off_by_most_first(tmp_path: Path) -> None:
    plan = two(decoder(2, 1))
    found = comparison(plan, profile_of(plan, lambda name: 3.0 if name == "aten::mul" else 1.0, tmp_path).model())
    assert {part.what for part in found.parts[:2]} == {"model.layers.0.mlp", "model.layers.1.mlp"}
    assert found.parts[0].measured > found.parts[0].predicted
    assert found.parts[2].measured == pytest.approx(found.parts[2].predicted)
    lines = str(comparison(plan, trace_of(plan))).splitlines()
    assert lines[0] == "measured: emulated run"
    assert lines[3].split()[0] == "plan"
    assert lines[3].endswith("+100%")


def test_the_page_has_both(tmp_path: Path) -> None:
    plan = two(decoder(2, 1))
    chart = data(page(plan, measured=profile_of(plan, lambda _: 2.0, tmp_path).model()))["chart"]
    assert chart["measured"]["known"] == "1" * len(plan.graph.steps)
    assert len(chart["measured"]["times"]) == 2 * len(plan.graph.steps)
    assert chart["measured"]["makespan"] > chart["makespan"] == round(plan.latency * 1e9)
    chart = data(page(plan, measured=trace_of(plan)))["chart"]
    assert len(chart["measured"]["bars"]) == 1 + len(plan.stages) + len(plan.transfers)
    with pytest.raises(PlanError, match="schedule it first"):
        page(decoder(), measured=trace_of(plan))


def test_files_of_every_kind_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = two(decoder(2, 1))
    codec.save(plan, tmp_path / "a.plan")
    directory = tmp_path / "profiles"
    profile = profile_of(plan, lambda _: 2.0, directory)
    (one, *_) = profile.save()
    (tmp_path / "exported.json").write_bytes(msgspec.json.encode(profile.records()))
    (tmp_path / "trace.json").write_text(trace_of(plan).to_json())
    said = {}
    for name in (directory, tmp_path / "exported.json", one, tmp_path / "trace.json"):
        assert main(["inspect", str(tmp_path / "a.plan"), "--measured", str(name)]) == 0
        said[name] = capsys.readouterr().out
    assert said[directory] == said[tmp_path / "exported.json"] == str(comparison(plan, profile.model()))
    assert "of 20 nodes measured" in said[one]  # of one device alone
    assert said[tmp_path / "trace.json"] == str(comparison(plan, trace_of(plan)))
    args = ["inspect", str(tmp_path / "a.plan"), "--measured", str(tmp_path / "trace.json")]
    assert main([*args, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == "emulated run"
    assert main([*args, "--html", str(tmp_path / "a.html")]) == 0
    assert data((tmp_path / "a.html").read_text())["chart"]["measured"]["source"] == "emulated run"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "neither a profile nor a report"),
        ("[1]", "neither a profile nor a report"),
        ('{"trace": [{"where": "gpu0"}]}', "neither a profile nor a report"),
        ("[" * 100_000, "neither a profile nor a report"),
        ('{"trace": [{"where": "gpu0", "what": "", "start": 2, "finish": 1}]}', "trace[0] has impossible times"),
        ('{"trace": []}', "no work of the plan's devices"),
        ("[]", "the profile has none of the plan's devices: gpu: gpu0 at 10.0.0.1:8888"),
        (None, "cannot read"),
    ],
)
def test_a_file_that_tells_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    codec.save(two(decoder()), tmp_path / "a.plan")
    if content is not None:
        (tmp_path / "measured.json").write_text(content)
    assert main(["inspect", str(tmp_path / "a.plan"), "--measured", str(tmp_path / "measured.json")]) == 1
    assert said in capsys.readouterr().err


def test_a_graph_has_no_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codec.save(decoder(), tmp_path / "a.graph")
    assert main(["inspect", str(tmp_path / "a.graph"), "--measured", str(tmp_path)]) == 1
    assert "a graph has no times" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "a.graph"), "--measured", str(tmp_path), "--dot"]) == 2
