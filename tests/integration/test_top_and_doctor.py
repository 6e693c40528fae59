"""``genie top`` and ``genie doctor`` beside nodes that work, that are gone, and that are something else."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from genie.config import Settings
from genie.errors import ConfigError
from genie.plugins import Registry
from genie.remote.client import doctor as checks
from genie.testing import Caller

from .conftest import DEADLINE, Node, command, environment


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nobody answers."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{sock.getsockname()[1]}"


@contextlib.contextmanager
def client(node: Node) -> Iterator[Caller]:
    from genie.remote import RemoteBackend
    from genie_backend_tcp import TcpTransport

    backend = RemoteBackend("tcp", TcpTransport(), (node.address,), timeout=20.0)
    try:
        yield Caller(backend.connect(backend.devices()[0]))
    finally:
        backend.close()


def test_top_once_for_scripts(node: Node) -> None:
    with client(node) as caller:
        caller.get(caller.put([1, 2]))
        done = command("top", node.address, "--once", "--json", "--interval", "0.2")
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)
    assert told["address"] == node.address
    assert told["problem"] == ""
    assert told["rates"]["seconds"] >= 0.2
    (session,) = told["view"]["sessions"]
    assert session["client"] == f"{socket.gethostname()}:{os.getpid()}"
    assert session["memory_bytes"] > 0
    assert {"queue", "receive", "plan", "execute", "fetch", "send"} == set(told["rates"]["stages"])


def test_top_once_for_people(node: Node, nobody: str) -> None:
    done = command("top", node.address, "--once", "--interval", "0.1", COLUMNS="140")
    assert done.returncode == 0, done.stderr
    assert node.address in done.stdout
    assert "serving" in done.stdout
    done = command("top", node.address, nobody, "--once", "--interval", "0.1", COLUMNS="140")
    assert done.returncode == 1
    assert "no node answers" in done.stdout
    assert "serving" in done.stdout  # the other one is shown all the same


def test_top_without_a_node() -> None:
    done = command("top", "--once")
    assert done.returncode == 1
    assert "which nodes?" in done.stderr


def test_top_lives_until_interrupted(node: Node) -> None:
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "genie", "top", node.address, "--interval", "0.1"]
    settings = environment(TERM="xterm", COLUMNS="140", LINES="40")
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=settings) as process:
        os.close(theirs)
        seen = b""
        deadline = time.monotonic() + DEADLINE
        while seen.count(b"serving") < 3:
            assert time.monotonic() < deadline, seen[-2000:]
            if select.select([ours], [], [], 0.5)[0]:
                seen += os.read(ours, 1 << 16)
        process.send_signal(signal.SIGINT)
        while process.poll() is None:
            assert time.monotonic() < deadline
            if select.select([ours], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):  # a terminal nobody has open any more
                    seen += os.read(ours, 1 << 16)
        assert process.returncode == 0
    os.close(ours)
    assert b"Traceback" not in seen


def test_doctor_finds_a_node_in_order(node: Node) -> None:
    done = command("doctor", node.address, "--megabytes", "4", "--json")
    assert done.returncode == 0, done.stderr
    findings = {each["check"]: each for each in json.loads(done.stdout) if each["node"] == node.address}
    assert {each["level"] for each in findings.values()} <= {"ok", "warning"}
    assert list(findings) == [
        "data port",
        "version",
        "control port",
        "torch",
        "clock",
        "sessions",
        "devices",
        "unix socket",
        "transport",
        "secrecy",
        "round trip",
        "bandwidth up",
        "bandwidth down",
        "content",
    ]
    for check, unit in (("clock", "s"), ("round trip", "s"), ("bandwidth up", "B/s"), ("bandwidth down", "B/s")):
        assert findings[check]["unit"] == unit
    assert 0 < findings["round trip"]["value"] < 10
    assert findings["bandwidth up"]["value"] > 0
    assert abs(findings["clock"]["value"]) < 60
    assert findings["devices"]["level"] == "warning"  # it serves its CPU
    assert findings["devices"]["todo"]
    assert findings["unix socket"]["text"].startswith("works")


def test_doctor_says_what_to_do_in_one_line(node: Node, nobody: str) -> None:
    done = command("doctor", nobody, node.address, "--megabytes", "1")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    (failure,) = [line for line in lines if line.startswith("failure")]
    assert nobody in failure
    assert "→ start the node there" in failure
    assert any(line.startswith("ok") and "round trip" in line for line in lines)
    assert all(line.startswith(("ok", "warning", "failure")) for line in lines)


def test_doctor_beside_something_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = command("doctor", address, GENIE_CONNECT_TIMEOUT="0.3")
    assert done.returncode == 1
    assert "did not greet" in done.stdout
    assert "Traceback" not in done.stderr


def test_doctor_without_nodes_looks_at_this_side() -> None:
    done = command("doctor", "--json")
    assert done.returncode == 0, done.stderr
    names = [each["check"] for each in json.loads(done.stdout)]
    assert names[0] == "versions"
    assert "nodes" in names


def test_doctor_says_what_a_transport_can_not_do_here() -> None:
    class Able:
        def abilities(self) -> dict[str, str]:
            return {"wings": "there is no air", "wheels": ""}

    def refuse(settings: Settings) -> object:
        raise ConfigError("it takes no such setting", hint="take another")

    plugins = Registry(())
    plugins.register("transport", "able", lambda settings: Able())
    plugins.register("transport", "plain", lambda settings: object())
    plugins.register("transport", "refused", refuse)
    found = {each.check: each for each in checks.this_side(plugins, Settings())}
    assert found["able, wings"].text == "no: there is no air"
    assert found["able, wheels"].text == "yes"
    assert (found["refused"].level, found["refused"].todo) == ("warning", "take another")
    assert not any(check.startswith("plain") for check in found)
