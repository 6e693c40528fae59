"""The ``genie`` command: what it prints, and how it ends."""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from core.graph_examples import attention_step
from rich.console import Console
from rows import Row, Trace

import genie
from genie import Device, Scheduler, cli, codec
from genie.cli import artifacts, plugins
from genie.graph import Graph, Semantics

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


def test_inspect_prints_the_tree(graph_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(graph_file)]) == 0
    shown = capsys.readouterr().out
    assert "2 nodes" in shown
    assert "FLOP" in shown  # annotated on the way
    assert "\x1b" not in shown


def test_inspect_prints_the_stable_text(graph: Graph, graph_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(graph_file), "--text", "--as-is"]) == 0
    assert capsys.readouterr().out == graph.text()
    assert cli.main(["inspect", str(graph_file), "--text"]) == 0
    assert capsys.readouterr().out == genie.annotate(graph).text()


def test_inspect_prints_graphviz(graph_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(graph_file), "--dot"]) == 0
    assert "n0 -> n1" in capsys.readouterr().out


def test_inspect_writes_a_page(graph_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "out.html"
    assert cli.main(["inspect", str(graph_file), "--html", str(page)]) == 0
    assert str(page) in capsys.readouterr().out
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert cli.main(["inspect", str(graph_file), "--html", str(tmp_path / "none" / "out.html")]) == 1
    assert "ConfigError: cannot write" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_leaves_the_old_one(
    graph_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "out.html"
    page.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert cli.main(["inspect", str(graph_file), "--html", str(page)]) == 1
    assert page.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.graph", "out.html"]


def test_inspect_is_cut_to_the_terminal(graph_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    terminal = Console(file=written, force_terminal=True, width=30, highlight=False, soft_wrap=True)
    monkeypatch.setattr(artifacts, "out", terminal)
    assert cli.main(["inspect", str(graph_file)]) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", written.getvalue()).splitlines()
    assert max(map(len, lines)) == 30
    assert any(line.startswith("all") for line in lines)


def test_diff_ends_as_diff_does(
    graph: Graph, graph_file: Path, plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["diff", str(graph_file), str(graph_file)]) == 0
    assert capsys.readouterr().out == "equal: 2 nodes\n"
    assert cli.main(["diff", str(graph_file), str(plan_file)]) == 0
    capsys.readouterr()
    other = tmp_path / "b.graph"
    marked = [msgspec.structs.replace(node, semantics=Semantics(phase="decode")) for node in graph.steps]
    codec.save(msgspec.structs.replace(graph, steps=tuple(marked)), other)
    assert cli.main(["diff", str(graph_file), str(other), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["equal"], len(answer["changed"]), answer["added"], answer["removed"]) == (False, 2, [], [])
    assert cli.main(["diff", str(graph_file), str(tmp_path / "none")]) == 2
    assert "CodecError: cannot read" in capsys.readouterr().err


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


def test_explain_gives_the_evidence_below_its_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codec.save(attention_step(), tmp_path / "a.graph")
    assert cli.main(["explain", str(tmp_path / "a.graph"), "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("  semantic_role: attention") + 1] == "      framework: the operator's name"
    assert cli.main(["explain", str(tmp_path / "a.graph"), "4", "--json"]) == 0
    [evidence] = json.loads(capsys.readouterr().out)["evidence"]
    assert (evidence["label"], evidence["source"], evidence["confidence"]) == ("role", "framework", 1.0)


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
    "args",
    [
        ["frobnicate"],
        ["inspect"],
        ["inspect", "x", "--nope"],
        ["serve", "--port", "99999"],
        ["inspect", "x", "--dot", "--json"],
    ],
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


# --- models --------------------------------------------------------------------------------------

MADE = """
from genie.graph import Graph, Input, Node, Ref, TensorSpec
row = TensorSpec((2,), "float32")
number = 3

def graph():
    return Graph((row, row), (Input(0),), (Node(0, "aten::neg", "", (Ref(0),), (1,)),), (1,))

def nothing(): ...

def asks(for_something): ...

def inner_error():
    asks()

def fails():
    {}["x"]
"""


@pytest.fixture
def made(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "made_here.py").write_text(MADE)
    path = list(sys.path)
    yield str(tmp_path / "made_here.py")
    sys.path[:] = path
    sys.modules.pop("made_here", None)


def test_inspect_shows_what_a_function_makes(made: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", f"{made}:graph", "--dot"]) == 0
    assert "aten::neg" in capsys.readouterr().out


def test_inspect_finds_a_module(made: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(Path(made).parent)
    assert cli.main(["inspect", "made_here:graph", "--text"]) == 0
    assert "aten::neg" in capsys.readouterr().out


@pytest.mark.usefixtures("fresh_runtime")
@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("{made}:other", "no attribute 'other'"),
        ("{made}:number", "'number' is int, not a function"),
        ("{made}:nothing", "captured nothing"),
        ("{made}:asks", "cannot be called without arguments"),
        ("{made}.py:graph", "no file"),
        ("no_such_package.module:graph", "no module 'no_such_package'"),
        (":graph", "'' names no module"),
        ("..relative:graph", "names no module"),
    ],
)
def test_a_model_that_is_none(made: str, model: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", model.format(made=made)]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("ConfigError:")
    assert says in shown
    assert "the function takes no arguments" in shown


@pytest.mark.parametrize(("name", "error"), [("inner_error", TypeError), ("fails", KeyError)])
def test_an_error_of_the_users_function_is_theirs(made: str, name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        cli.main(["inspect", f"{made}:{name}"])


# --- plugins -------------------------------------------------------------------------------------


@pytest.fixture
def broken(distribution: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from genie.plugins import Registry

    distribution("acme-broken", {"acme_broken": "import [no] missing_thing_xyz"}, {"broken": "acme_broken"})
    monkeypatch.setattr(plugins, "registry", Registry())


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
