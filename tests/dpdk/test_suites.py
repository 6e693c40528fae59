"""The suites, each in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from dpdk import namespaces, suites

pytest.importorskip("genie_backend_dpdk", reason="genie-backend-dpdk is not installed: it needs DPDK")


@pytest.mark.parametrize("suite", ["memif_suite.py", "session_suite.py"])
def test_as_an_ordinary_user(suite: str, subtests: pytest.Subtests) -> None:
    """The conformance suite over memif, and a model of a session."""
    with suites.ordinary_user() as process:
        suites.run(process, suite, subtests)


@pytest.mark.parametrize("suite", ["keys_suite.py", "death_suite.py", "devices_suite.py", "fork_suite.py"])
def test_as_this_user(suite: str, subtests: pytest.Subtests) -> None:
    with suites.own_process() as process:
        suites.run(process, suite, subtests)


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_over_a_network_interface(mtu: int, subtests: pytest.Subtests) -> None:
    """The conformance suite over a veth pair."""
    with namespaces.one(mtu) as name, suites.own_process(*namespaces.inside(name)) as process:
        suites.run(process, "af_packet_suite.py", subtests)


def test_a_process_that_crashes_fails_one_test(subtests: pytest.Subtests, tmp_path: Path) -> None:
    suite = tmp_path / "crashing_suite.py"
    suite.write_text("import os\ndef test_it(): os.abort()\n")
    with suites.own_process() as process, pytest.raises(pytest.fail.Exception, match="SIGABRT") as failed:
        suites.run(process, str(suite), subtests)
    assert "in test_it" in str(failed.value)


@pytest.mark.parametrize("size", [100, 1_000_000])
@pytest.mark.parametrize("polling", ["busy", "idle"])
def test_a_process_that_ends_while_it_polls(polling: str, size: int) -> None:
    with suites.own_process() as process:
        done = process.python(str(suites.HERE / "leaving.py"), polling, str(size), timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_process_that_ends_while_deadlines_pass() -> None:
    with suites.own_process() as process:
        done = process.python(str(suites.HERE / "leaving.py"), "waiting", timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
