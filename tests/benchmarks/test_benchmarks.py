"""The benchmarks run, on tiny sizes, and their runs prove that what they time is right. No speed is asserted here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(code: str, timeout: float = 170.0) -> Any:
    """``code`` in a process of its own, beside the benchmarks; what it prints as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, cwd=BENCHMARKS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def end_to_end() -> Any:
    """Every program on tiny sizes, over both links, in one run."""
    return run(
        "import json, bench_end_to_end as bench;"
        "names = ('gpt2', 'llama', 'bert', 'compiled', 'small', 'bulk');"
        "print(json.dumps(bench.run(rounds=2, only=names, megabytes=1, tiny=True)))"
    )


@pytest.mark.models
def test_programs_end_to_end(end_to_end: Any) -> None:
    assert end_to_end["equal"] is True
    kinds = ["generate", "generate", "forward", "compiled decode"]
    rows = end_to_end["programs"]
    assert [(row["link"], row["kind"]) for row in rows] == [(link, kind) for link in ("tcp", "unix") for kind in kinds]
    for row in rows:
        assert row["equal"] is True
        assert row["pairs"] == 2
        assert row["native ms"] > 0
        assert row["remote ms"] > 0
        if row["kind"] == "generate":
            assert row["sent B/token"] > 0
            assert row["round trips/token"] >= 1  # every token is looked at


@pytest.mark.models
def test_small_and_bulk_end_to_end(end_to_end: Any) -> None:
    assert [row["link"] for row in end_to_end["small"]] == ["tcp", "unix"]
    assert all(row["equal"] and row["remote µs"] > 0 and row["raw echo µs"] > 0 for row in end_to_end["small"])
    assert all(row["equal"] and row["up GB/s"] > 0 and row["down GB/s"] > 0 for row in end_to_end["bulk"])


@pytest.mark.models
def test_fairness() -> None:
    told = run(
        "import json, bench_fairness as bench;"
        "print(json.dumps(bench.run(seconds=2, clients=1, tokens=4, rounds=2, weights=(1, 2), tiny=True, "
        "only=('shares', 'alone'))))"
    )
    assert told["equal"] is True
    assert sum(row["share"] for row in told["shares"]) == pytest.approx(1)
    assert all(row["generations"] > 0 for row in told["shares"])
    assert told["alone"][0]["execution ns"] > 0


@pytest.mark.models
def test_semantics() -> None:
    [row] = run(
        "import json, genie, bench_semantics as bench; genie.init(backend='local');"
        "print(json.dumps([bench.measure(1, 2, 2)]))"
    )
    assert row["patterns"] >= 10
    assert row["with_phase"] > 0.5
    assert row["facts_ms"] > 0
    assert row["annotate_ms"] > 0


def test_capture() -> None:
    result = run("import json, bench_capture as bench; print(json.dumps(bench.run(blocks=3)))")
    assert result["equal"] is True
    rows = {row["operator"]: row for row in result["operators"]}
    assert {"add", "matmul", "view", "layer_norm", "attention", "linear", "softmax", "gelu", "cat", "index"} <= set(
        rows
    )
    # What is called "record" must not have had a send inside.
    assert all(row["segments sent inside"] == 0 for row in rows.values())
    assert result["memory"]["bytes_per_pending_op"] > 0


@pytest.mark.models
def test_start() -> None:
    result = run("import json, bench_start as bench; print(json.dumps(bench.run(rounds=1, workload='tiny')))")
    assert result["equal"] is True
    assert result["import"]["imports_a_framework"] is False
    assert result["move"]["second"]["bytes_sent"] < result["move"]["first"]["bytes_sent"]


@pytest.mark.models
def test_cost() -> None:
    found = run("import json, bench_cost as bench; print(json.dumps(bench.run(rounds=2, tiny=True, quick=True)))")
    kinds = {row["estimate"] for row in found["accuracy"]["operators"]}
    assert kinds == {
        "roofline, figures", "roofline", "interpolated, held out", "interpolated, held out model", "profiled"
    }  # fmt: skip
    assert all(row["ops"] > 10 for row in found["accuracy"]["operators"])
    assert [row["model"] for row in found["accuracy"]["models"]] == ["gpt2 prefill", "gpt2 decode", "bert", "cnn"]
    assert 0 <= found["timing"]["timed"] < 1
    assert found["estimates"]["profile, first µs"] > 0


def test_a_wrong_result_is_told() -> None:
    """The proof of equality can fail."""
    code = (
        "import json, torch, bench_end_to_end as bench;"
        "row = bench.compare('x', lambda: torch.zeros(2), lambda: torch.ones(2), 2);"
        "print(json.dumps(row))"
    )
    row = run(code)
    assert row["equal"] is False
    assert row["largest difference"] == 1.0


@pytest.mark.models
def test_generate() -> None:
    result = run(
        "import json, bench_generate as bench;"
        "print(json.dumps(bench.run(only=('gpt2',), tokens=16, rounds=1, delay_ms=4, tiny=True)))"
    )
    assert result["equal"] is True
    near, far = result["rows"]
    assert (near["link"], far["link"]) == ("no delay", "+4 ms")
    for row in (near, far):
        assert row["loop tokens/s"] > 0
        assert 0 < row["bytes/token"] < 1000
        assert row["round trips"] < 16  # fewer than tokens


@pytest.mark.models
def test_observability() -> None:
    found = run("import json, bench_observability as b; print(json.dumps(b.run(rounds=2, only='tiny', small=20)))")
    assert found["equal"] is True
    for rows in (found["generation"], found["small"]):
        assert [row["observed"] for row in rows] == ["bare", "metrics", "sampled", "traced"]
        assert all(row["ratio"] > 0 for row in rows)


@pytest.mark.models
def test_recovery() -> None:
    found = run("import json, bench_recovery as b; print(json.dumps(b.run(rounds=2, only='tiny', small=20)))")
    assert found["equal"] is True
    assert 0 < found["log_bytes_per_token"] < 10_000
    assert found["kept_bytes"] > 0
    for rows in (found["generation"], found["small"], found["upload"]):
        assert [row["sessions"] for row in rows] == ["plain", "recovery"]
        assert all(row["ratio"] > 0 for row in rows)


@pytest.mark.models
def test_nodes_killed_at_random() -> None:
    found = run("import json, campaign_node_death as c; print(json.dumps(c.run(kills=3, seed=1)))")
    assert found["equal"] is True, found["failures"]
    everything = found["programs"][-1]
    assert everything["kills"] >= 3
    assert everything["recoveries"] >= 2
    assert everything["equal"] == everything["runs"]


def test_scheduler() -> None:
    result = run(
        "import json, bench_scheduler as bench;print(json.dumps(bench.run(rounds=1, starts=1, effort=1.0, small=True)))"
    )
    assert all(row["placement ms"] > 0 and row["plan ms"] > 0 and row["cost µs"] > 0 for row in result["times"])
    assert {row["family"] for row in result["quality"]} == {"llm", "branching", "random"}
    assert all(row["ratio"] >= 1.0 for row in result["quality"])
    assert all(ratio >= 1.0 - 1e-9 for ratio in result["tiny"])


def test_published_graphs(tmp_path: Path) -> None:
    """An instance in the published format, placed and ordered; a schedule that can't be is found out."""
    chain = {
        "name": "two.tasks",
        "task_graph": {
            "tasks": [{"name": "b", "cost": 4.0}, {"name": "a", "cost": 2.0}],
            "dependencies": [{"source": "a", "target": "b", "size": 3.0}],
        },
        "network": {
            "nodes": [{"name": "slow", "speed": 1.0}, {"name": "fast", "speed": 2.0}],
            "edges": [{"source": "slow", "target": "fast", "speed": 1.0}],
        },
    }
    file = tmp_path / "workflows" / "x" / "two" / "graph.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(chain))
    found = run(
        "import json; from pathlib import Path; from scheduling import dagbench;"
        f"[instance] = dagbench.instances(Path({str(tmp_path)!r}));"
        "bad = {'a': ('fast', 0.0, 1.0), 'b': ('slow', 1.0, 5.0)};\n"
        "try:\n dagbench.check(instance, bad)\n"
        "except ValueError as error:\n print(json.dumps([dagbench.ours(instance, 10000), str(error)]))"
    )
    assert found == [3.0, "b starts before what it needs from a is there"]


@pytest.mark.models
def test_batching() -> None:
    result = run(
        "import json, bench_batching as bench;"
        "print(json.dumps(bench.run(only=('gpt2',), counts=(1, 2), tokens=8, rounds=1, tiny=True)))"
    )
    assert result["equal"] is True
    assert [(row["clients"], row["batching"]) for row in result["rows"]] == [
        (count, way) for count in (1, 2) for way in ("off", "exact", "stacked")
    ]
    for row in result["rows"]:
        assert row["tokens/s"] > 0
        assert row["of off"] > 0
        if row["clients"] == 1 or row["batching"] == "off":
            assert row["batched"] == row["products"] == 0


def test_checkpoints() -> None:
    rows = run("import json, bench_checkpoints as bench; print(json.dumps(bench.measure(1, 8, 1)))")
    names = ["disk: first", "node: first", "disk: next", "node: next", "disk: back", "node: back on a third"]
    assert [row[""] for row in rows] == [*names, "node: back in place", "through the client"]
    moved = {row[""]: row["client's bytes"] for row in rows}
    assert moved["disk: first"] > 1 << 20 > moved["disk: next"] > 1 << 17
    assert all(number < 1 << 16 for name, number in moved.items() if name.startswith("node"))


def test_memory() -> None:
    told = run(
        "import json, bench_memory as bench;"
        "print(json.dumps({**bench.run(2, ('steps', 'swap'), megabytes=16), 'rooms': bench.bench_rooms(2, (1,))}))"
    )
    assert told["equal"] is True
    assert [row["execution"] for row in told["steps"]] == ["100 additions", "200 inputs"]
    ways = [("host memory", "out"), ("host memory", "back"), ("a file", "out"), ("a file", "back")]
    assert [(row["to"], row["way"]) for row in told["swap"]] == ways
    assert all(row["ms/GB"] > 0 for row in told["swap"])
    assert told["rooms"][0]["equal"] is True


@pytest.mark.models
def test_generation_while_memory_is_short() -> None:
    short = run("import json, bench_memory as bench; print(json.dumps(bench.bench_generate(2, True)))", 400.0)[1]
    assert short["equal"] is True
    assert short["out MB"] > 0


@pytest.mark.models
def test_product() -> None:
    """In a file of its own: its clients are processes that begin with the program's."""
    done = subprocess.run(
        [sys.executable, "bench_product.py", "--rounds", "2", "--only", "tiny", "--json"],
        capture_output=True,
        text=True,
        timeout=170,
        cwd=BENCHMARKS,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["equal"] is True
    assert [row["node"] for row in found["generation"]] == ["plain", "product", "product, TLS"]
    assert all(row["pairs"] == 2 and row["tokens/s"] > 0 for row in found["generation"])
    assert found["lineage"]["recoveries"] == 0
    assert found["lineage"]["bytes_per_token"] > 0
    assert found["lineage"]["session_bytes"] > 0
