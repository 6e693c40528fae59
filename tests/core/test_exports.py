"""The public names, pinned: a change here is a change of the contract."""

from __future__ import annotations

import subprocess
import sys

import genie

PUBLIC = """
    Cluster CostModel Device ExecutionPlan GenieError Graph HostValue PatternMatcher PlacementStrategy Policy
    RemoteClient Scheduler Settings TensorSpec __version__ aio annotate cancel capture compile device_count devices
    engine execute execute_local generate get_graph get_stats hookimpl init init_cluster inspect is_capturing load map
    mark on_shutdown
    register_backend register_cost_model register_frontend register_pattern register_placement_strategy
    register_policy register_transport run save session set_backend set_log_level settings shutdown summary verify
"""


def python(source: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=True
    ).stdout.strip()


def test_the_public_names() -> None:
    assert sorted(genie.__all__) == sorted(PUBLIC.split())


def test_each_is_there() -> None:
    assert [name for name in genie.__all__ if getattr(genie, name, None) is None] == []


def test_importing_has_no_effects_and_brings_nothing_heavy() -> None:
    heavy = "torch jax numpy grpc pluggy structlog rich typer asyncio yaml"
    source = (
        "import sys, threading, signal, structlog; configured = structlog.is_configured()\n"
        "before = (threading.active_count(), signal.getsignal(signal.SIGINT), sys.excepthook)\n"
        "import genie\n"
        "assert before == (threading.active_count(), signal.getsignal(signal.SIGINT), sys.excepthook)\n"
        "assert structlog.is_configured() == configured\n"
        "from genie import runtime; assert runtime._current is None"
    )
    python(source)
    assert python(f"import sys, genie; print(*[m for m in {heavy.split()} if m in sys.modules])") == ""


def test_importing_brings_few_modules() -> None:
    source = "import sys; before = set(sys.modules); import genie; print(len(set(sys.modules) - before))"
    assert int(python(source)) < 250  # what it takes to import, nearly
