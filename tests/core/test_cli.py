"""The ``genie`` command: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rows import Row, Trace

import genie
from genie import Device, Scheduler, cli, codec
from genie.graph import Graph

DEADLINE = 30.0


@pytest.fixture
def graph() -> Graph:
    trace = Trace([Row(1, 2), Row(3, 4)])
    x, y = (Row(trace=trace, value=index) for index in range(2))
    return trace.graph((x + y) * 3.0)


@pytest.fixture
def plan_file(graph: Graph, tmp_path: Path) -> Path:
    device = Device(id="gpu0", type="GPU", memory_gb=1, compute_tflops=1)
    path = tmp_path / "a.plan"
    codec.save(Scheduler([device]).schedule(graph), path)
    return path


@pytest.fixture
def graph_file(graph: Graph, tmp_path: Path) -> Path:
    codec.save(graph, tmp_path / "a.graph")
    return tmp_path / "a.graph"


def command(*args: str, path: Path | None = None) -> dict[str, Any]:
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(path), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"args": [sys.executable, "-m", "genie", *args], "env": environment, "stdin": subprocess.DEVNULL}


def run(*args: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(**command(*args, path=path), capture_output=True, text=True, timeout=DEADLINE)


# --- artifacts -----------------------------------------------------------------------------------


def test_inspect_prints_the_stable_text(graph: Graph, graph_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(graph_file)]) == 0
    assert capsys.readouterr().out == graph.text()


def test_inspect_prints_json(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(plan_file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["devices"][0]["id"] == "gpu0"


def test_explain_a_plans_node(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", str(plan_file), "1"]) == 0
    assert "gpu0" in capsys.readouterr().out
    assert cli.main(["explain", str(plan_file), "1", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["node"], answer["device"], answer["source"]) == (1, "gpu0", "roofline")


def test_explain_a_graphs_node(graph_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", str(graph_file), "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["operation"] == "aten::add.Tensor"
    assert cli.main(["explain", str(graph_file), "0"]) == 0
    assert "operation: aten::add.Tensor" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("break_it", "error"),
    [
        (lambda path: path.unlink(), "CodecError: cannot read"),
        (lambda path: path.write_bytes(b""), "CodecError: 0 bytes are too few"),
        (lambda path: path.write_bytes(b"x" * 100), "CodecError: this is no graph or plan"),
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "CodecError:"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\xff"), "CodecError:"),
        (lambda path: path.write_bytes(path.read_bytes()[:6] + b"\x09" + path.read_bytes()[7:]), "VersionMismatch:"),
    ],
    ids=["missing", "empty", "foreign", "cut", "damaged", "version"],
)
def test_a_bad_file_is_one_readable_block(
    plan_file: Path, capsys: pytest.CaptureFixture[str], break_it: Callable[[Path], object], error: str
) -> None:
    break_it(plan_file)
    assert cli.main(["inspect", str(plan_file)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(error)
    assert str(plan_file) in shown.err
    assert "Traceback" not in shown.err


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--debug", "inspect", str(tmp_path / "none")]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_unknown_node(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", str(plan_file), "77"]) == 1
    assert "no node 77" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args", [["frobnicate"], ["inspect"], ["inspect", "x", "--nope"], ["serve", "--port", "99999"]]
)
def test_wrong_usage_is_status_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(args) == 2
    shown = capsys.readouterr()
    assert "Usage" in shown.err + shown.out
    assert "Traceback" not in shown.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"genie {genie.__version__}\n"


def test_help() -> None:
    assert cli.main(["--help"]) == 0


# --- plugins -------------------------------------------------------------------------------------


@pytest.fixture
def broken(distribution: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from genie.plugins import Registry

    distribution("acme-broken", {"acme_broken": "import [no] missing_thing_xyz"}, {"broken": "acme_broken"})
    monkeypatch.setattr(cli, "registry", Registry())


@pytest.mark.usefixtures("broken")
def test_plugins_list_shows_failures(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "list", "--json"]) == 0
    rows = {row["distribution"]: row for row in json.loads(capsys.readouterr().out)}
    assert "SyntaxError" in rows["acme-broken"]["error"]
    assert rows["genie-core"]["error"] == ""
    assert cli.main(["plugins", "list"]) == 0
    text = capsys.readouterr().out
    assert "min_latency" in text
    assert "SyntaxError" in text


@pytest.mark.usefixtures("broken")
def test_plugins_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "info", "roofline", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["kind"], row["distribution"], row["error"]) == ("cost_model", "genie-core", "")
    assert row["made"].endswith("RooflineCostModel")
    assert cli.main(["plugins", "info", "acme-broken"]) == 0
    assert "SyntaxError" in capsys.readouterr().out
    assert cli.main(["plugins", "info", "nonsense"]) == 1
    assert "no plugin is named 'nonsense'" in capsys.readouterr().err


# --- nodes ---------------------------------------------------------------------------------------


@contextmanager
def serving(third_party: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A node of the abacus backend in a process of its own, and what it said when it was ready."""
    arguments = command("serve", "--backend", "abacus", "--port", "0", "--json", *options, path=third_party)
    with subprocess.Popen(**arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as node:
        try:
            assert node.stdout is not None
            ready, _, _ = select.select([node.stdout], [], [], DEADLINE)
            line = node.stdout.readline() if ready else ""
            assert line, node.stderr.read() if node.poll() is not None and node.stderr else "nothing in time"
            yield node, json.loads(line)
        finally:
            if node.poll() is None:
                node.kill()


def test_a_node_says_when_it_is_ready_and_what_it_is(third_party: Path) -> None:
    with serving(third_party) as (_, ready):
        assert ready["event"] == "ready"
        assert ready["devices"] == ["abacus:0"]
        done = run("node", "status", ready["address"], "--json")
        assert done.returncode == 0, done.stderr
        status = json.loads(done.stdout)
        assert status["address"] == ready["address"]
        assert status["devices"][0]["id"] == "abacus:0"
        text = run("node", "status", ready["address"])
        assert "abacus:0" in text.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_node_ends_cleanly_when_told(third_party: Path, number: signal.Signals) -> None:
    with serving(third_party) as (node, _):
        node.send_signal(number)
        _, err = node.communicate(timeout=DEADLINE)
        assert node.returncode in (0, 130)
        assert "Traceback" not in err


def test_a_taken_port_is_an_error(third_party: Path) -> None:
    with serving(third_party) as (_, ready):
        port = ready["address"].rpartition(":")[2]
        done = run("serve", "--backend", "abacus", "--port", port, path=third_party)
        assert done.returncode == 1
        assert port in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "named"),
    [(["--backend", "abacsu"], "did you mean 'abacus'"), (["--device", "abacus:7"], "abacus:7")],
)
def test_serve_refuses_what_is_not_there(third_party: Path, options: list[str], named: str) -> None:
    done = run("serve", "--backend", "abacus", "--port", "0", *options, path=third_party)
    assert done.returncode == 1
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_the_status_of_a_node_that_is_not_there() -> None:
    start = time.monotonic()
    done = run("node", "status", "127.0.0.1:1")
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - start < 15


# --- programs ------------------------------------------------------------------------------------

SCRIPT = """
import sys, genie
assert __name__ == "__main__"
import beside
print(sys.argv[1:], genie.settings().backend, [device.id for device in genie.devices()])
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "prog.py").write_text(SCRIPT)
    return tmp_path / "prog.py"


def test_run_runs_a_program_here(script: Path, third_party: Path) -> None:
    done = run("run", "--backend", "abacus", str(script), "--json", "-x", "1", path=third_party)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['--json', '-x', '1'] abacus ['abacus:0']"


def test_run_runs_a_program_on_a_node(script: Path, third_party: Path) -> None:
    with serving(third_party) as (_, ready):
        done = run("run", "--node", ready["address"], str(script))
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"[] tcp ['{ready['address']}/abacus:0']"


def test_run_ends_as_the_program_does(script: Path, third_party: Path) -> None:
    script.write_text("import sys; sys.exit(7)")
    assert run("run", "--backend", "abacus", str(script), path=third_party).returncode == 7
    script.write_text("\n\n{}['x']")
    done = run("run", "--backend", "abacus", str(script), path=third_party)
    assert done.returncode == 1
    assert "KeyError" in done.stderr
    script.write_text("import genie\n\ngenie.engine(9)")
    done = run("run", "--backend", "abacus", str(script), path=third_party)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "no device 9" in done.stderr
    assert f"{script}:3" in done.stderr


def test_run_without_a_program_or_a_node(tmp_path: Path, script: Path) -> None:
    done = run("run", str(tmp_path / "none.py"))
    assert (done.returncode, "no program" in done.stderr) == (1, True)
    done = run("run", "--node", "127.0.0.1:1", str(script))
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_a_program_with_130(script: Path, third_party: Path) -> None:
    script.write_text("import threading\nprint('on', flush=True)\nthreading.Event().wait(60)")
    arguments = command("run", "--backend", "abacus", str(script), path=third_party)
    with subprocess.Popen(**arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert "Traceback" not in err
