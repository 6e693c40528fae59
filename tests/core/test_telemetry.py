"""Logs go to standard error and are ours to configure only when nobody else has; counters add up."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

from genie.telemetry import Counters


def python(source: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=True)


def test_counts_and_sources_add_up() -> None:
    counters = Counters()
    counters.add("ops", 2)
    counters.add("ops")
    counters.add_source("a", lambda: {"ops": 10, "syncs": 1})
    counters.add_source("b", lambda: {"syncs": 2})
    assert counters.snapshot() == {"ops": 13, "syncs": 3}
    counters.add_source("b", lambda: {"syncs": 5})
    counters.remove_source("a")
    counters.clear()
    assert counters.snapshot() == {"syncs": 5}


def test_a_source_may_count() -> None:
    counters = Counters()

    def source() -> dict[str, int]:
        counters.add("asked")
        return {}

    counters.add_source("a", source)
    counters.snapshot()
    assert counters.snapshot()["asked"] == 1


def test_counting_from_many_threads_loses_nothing() -> None:
    counters = Counters()
    threads = [threading.Thread(target=lambda: [counters.add("n") for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters.snapshot() == {"n": 8000}


def test_events_are_filtered_and_go_to_standard_error() -> None:
    done = python(
        "from genie import telemetry; import structlog\n"
        "log = structlog.get_logger('genie.test')\n"
        "telemetry.configure('WARNING'); log.info('hidden'); log.warning('shown', node='a')\n"
        "telemetry.configure('INFO'); log.info('now')\n"
    )
    assert done.stdout == ""
    assert "hidden" not in done.stderr
    assert "shown" in done.stderr
    assert "node=a" in done.stderr
    assert "now" in done.stderr


def test_json_lines() -> None:
    done = python(
        "from genie import telemetry; import structlog\n"
        "telemetry.configure('INFO', json=True); structlog.get_logger().info('hello', count=3)\n"
    )
    event = json.loads(done.stderr)
    assert (event["event"], event["count"], event["level"]) == ("hello", 3, "info")


def test_a_programs_own_logging_is_left_alone() -> None:
    done = python(
        "import structlog; structlog.configure(processors=[structlog.processors.JSONRenderer()])\n"
        "from genie import telemetry\n"
        "telemetry.configure('CRITICAL'); structlog.get_logger().info('mine')\n"
    )
    assert json.loads(done.stdout) == {"event": "mine"}


def test_a_log_that_cannot_be_written_stops_nobody() -> None:
    done = python(
        "import sys\nfrom genie import telemetry\n"
        "telemetry.configure('INFO')\nerror, sys.stderr = sys.stderr, open('/dev/full', 'w', buffering=1)\n"
        "telemetry.get_logger('x').info('lost')\nsys.stderr = error\n"
        "telemetry.get_logger('x').info('there again')\nprint('went on')"
    )
    assert done.stdout == "went on\n"
    assert "there again" in done.stderr
