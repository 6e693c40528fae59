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


@pytest.mark.models
@pytest.mark.parametrize("program", ["gpt2", "llama", "bert", "compiled"])
def test_programs_end_to_end(program: str) -> None:
    result = run(
        "import json, bench_end_to_end as bench;"
        f"print(json.dumps(bench.run(rounds=2, links=('tcp',), only=('{program}',), tiny=True)))"
    )
    (row,) = result["programs"]
    assert result["equal"] is True
    assert row["equal"] is True
    assert row["pairs"] == 2
    assert row["ratio"] > 0
    if program in ("gpt2", "llama"):
        assert row["sent B/token"] > 0
        assert row["round trips/token"] >= 1


def test_small_and_bulk_end_to_end() -> None:
    result = run(
        "import json, bench_end_to_end as bench;"
        "print(json.dumps(bench.run(rounds=2, only=('small', 'bulk'), megabytes=1, tiny=True)))"
    )
    assert result["equal"] is True
    assert [row["link"] for row in result["small"]] == ["tcp", "unix"]
    assert all(row["remote µs"] > 0 and row["raw echo µs"] > 0 for row in result["small"])
    assert all(row["up GB/s"] > 0 and row["down GB/s"] > 0 for row in result["bulk"])


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
