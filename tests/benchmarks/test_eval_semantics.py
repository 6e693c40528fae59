"""The evaluation of semantics asks what it should, and tells right from wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

BEGIN = """
import json, attrs, genie, torch
import eval_semantics as evaluation
from semantics import suite
from semantics.truth import Call, Program
genie.init(backend="local")
models = {model.name: model for model in suite.MODELS}
"""


def run(code: str) -> Any:
    """``code`` in a process of its own, beside the benchmarks; what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code], capture_output=True, text=True, timeout=170, cwd=BENCHMARKS
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def two() -> Any:
    return run("print(json.dumps(evaluation.run(only=('zork-lists', 'plain-resnet'))))")


def test_models_run_and_are_asked(two: Any) -> None:
    assert two["ran"] == 2
    assert [row["equal"] for row in two["models"]] == [True, True]
    asked = {row["truth"]: sum(n for name, n in row.items() if name != "truth") for row in _table(two, "phase")}
    # Both modes: each call by itself, and all in one graph.
    assert asked == {"prefill": 2, "decode": 8, "vision_encode": 4}
    assert {row["truth"] for row in _table(two, "workload")} == {"language_model", "vision"}
    assert {row["truth"] for row in _table(two, "modality")} == {"text", "vision"}
    assert set(two["figures"]) == {"named", "without names"}


def test_caches_and_weights_are_found_by_identity(two: Any) -> None:
    kept = {row["truth"]: sum(n for name, n in row.items() if name != "truth") for row in _table(two, "residency")}
    # Two layers, keys and values: five calls leave them and four are given them; all in one graph, five versions.
    assert kept["kv_cache"] == 4 * (5 + 4) + 4 * 5
    assert "recurrent_state" not in kept
    assert kept["weight"] > 0


def test_a_right_label_is_right(two: Any) -> None:
    figures = next(row for row in two["models"] if row["model"] == "plain-resnet")["named"]
    assert figures["workload"] == 1.0
    assert figures["phase"] == 1.0
    assert figures["residency weight recall"] == 1.0
    assert figures["residency weight precision"] == 1.0


def test_a_wrong_label_is_wrong() -> None:
    code = """
false = attrs.evolve(
    models["plain-resnet"].truth,
    workload="audio",
    calls=(Call("denoise"), Call("vision_encode", also="fusion")),
    towers=(attrs.evolve(models["plain-resnet"].truth.towers[0], modality="audio"),),
)
print(json.dumps(evaluation.run(models=[attrs.evolve(models["plain-resnet"], truth=false)], hidden=(False,))))
"""
    result = run(code)
    figures = result["figures"]["named"]
    assert (figures["workload"], figures["phase"], figures["modality"]) == (0.0, 0.0, 0.0)
    missed = {each.partition(":")[0] for each in result["bars_missed"]}
    assert {"workload", "phase", "modality"} <= missed
    told = [(each["label"], each["truth"], each["answer"]) for each in result["misses"]]
    assert ("phase", "denoise", "vision_encode") in told
    assert ("phase", "vision_encode with fusion", "vision_encode without fusion") in told


def test_a_cache_that_is_none_is_wrong() -> None:
    """A program that says of an activation that it keeps it as a cache is not believed by the graph."""
    code = """
def build(stage):
    layer = torch.nn.Linear(4, 4)
    def run(stage):
        x = stage.put(torch.ones(2, 4))
        with torch.no_grad(), stage.call():
            y = layer(x)
            stage.keep(kv_cache=[y])
        with torch.no_grad(), stage.call():
            z = layer(y).relu()
            stage.keep(kv_cache=[])
        return [z]
    return Program(run, (layer,))

model = attrs.evolve(models["plain-table-mlp"], name="liar", build=build)
print(json.dumps(evaluation.run(models=[model], hidden=(False,))))
"""
    result = run(code)
    assert result["models"][0]["equal"] is True
    assert result["figures"]["named"]["residency kv_cache recall"] == 0.0
    assert result["figures"]["named"]["residency weight recall"] == 1.0
    assert any(each.startswith("residency kv_cache recall") for each in result["bars_missed"])


def test_a_result_that_differs_fails() -> None:
    code = """
def build(stage):
    def run(stage):
        with stage.call():
            y = stage.put(torch.ones(2)) * (1 if stage.device.type == "cpu" else 2)
        return [y]
    return Program(run)

model = attrs.evolve(models["plain-table-mlp"], name="other", build=build)
print(json.dumps(evaluation.run(models=[model], hidden=(False,))))
"""
    result = run(code)
    assert result["models"][0]["equal"] is False
    assert result["bars_missed"] == ["other: Differs: per call: result 0 differs by 1"]


def test_names_are_hidden() -> None:
    code = """
from semantics.answers import nameless
layer = torch.nn.Linear(4, 4).to("remote_accelerator")
with genie.capture():
    layer(torch.ones(2, 4))
graph = genie.get_graph()
bare = nameless(graph)
text = bare.text()
print(json.dumps([graph.fingerprint == bare.fingerprint, "Linear" in graph.text(), "Linear" in text, "weight" in text,
                  [each.origin for each in bare.inputs] == [each.origin for each in graph.inputs]]))
"""
    same, named, linear, weight, origins = run(code)
    assert same and named and origins
    assert not linear and not weight


def _table(result: Any, label: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = result["confusion"]["named"][label]
    return rows
