"""Nodes and programs as real processes on loopback, every wait with a deadline."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from genie.remote.control import ControlClient

HERE = Path(__file__).parent
DEADLINE = 30.0


def environment(**more: str) -> dict[str, str]:
    """For a process of a user: no setting of this one's, and the module beside the tests importable."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GENIE_")}
    paths = [str(HERE), *filter(None, [inherited.get("PYTHONPATH")])]
    return {**inherited, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **more}


class Nursery:
    """Processes of Python that have imported torch already (see ``nursery.py``)."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "nursery.py")],
                stdin=theirs.fileno(),
                env=environment(TORCH_DEVICE_BACKEND_AUTOLOAD="0"),
            )
        ours.settimeout(DEADLINE)
        self._requests = ours

    def start(
        self, argv: Sequence[str], settings: Mapping[str, str], *, module: str = "", stderr: Path | None = None
    ) -> Child:
        """A program, or a module run as one. What it writes to stderr can be had from the child, or goes to a file."""
        out, their_out = os.pipe()
        err, their_err = os.pipe() if stderr is None else (-1, os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
        request = {"argv": [str(arg) for arg in argv], "module": module, "environment": environment(**settings)}
        socket.send_fds(self._requests, [json.dumps(request).encode()], [their_out, their_err])
        os.close(their_out)
        os.close(their_err)
        pid = json.loads(self._requests.recv(64))
        return Child(self, pid, os.pidfd_open(pid), Reader(out), Reader(err) if err >= 0 else None)

    def status(self, pid: int) -> int:
        """Of a child that has ended."""
        self._requests.send(json.dumps({"wait": pid}).encode())
        return int(json.loads(self._requests.recv(64)))

    def close(self) -> None:
        self._requests.close()
        self._process.wait(DEADLINE)


class Reader:
    """What comes out of a pipe, by the line or all of it."""

    def __init__(self, descriptor: int) -> None:
        self.text = b""
        self._descriptor = descriptor
        self._open = True

    def more(self, deadline: float) -> bool:
        """Whether there was more before the deadline and the end."""
        if not self._open or not select.select([self._descriptor], [], [], max(deadline - time.monotonic(), 0))[0]:
            return False
        data = os.read(self._descriptor, 1 << 16)
        self.text += data
        if not data:
            self.close()
        return bool(data)

    def line(self, deadline: float) -> str:
        while b"\n" not in self.text and self.more(deadline):
            pass
        line, newline, self.text = self.text.partition(b"\n")
        return (line + newline).decode()

    def rest(self, deadline: float) -> str:
        while self.more(deadline):
            pass
        text, self.text = self.text, b""
        return text.decode()

    def close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._descriptor)


def _state(thread: Path) -> str:
    return (thread / "stat").read_text().rpartition(")")[2].split()[0]


@attrs.define
class Child:
    """A program that runs, or ran."""

    nursery: Nursery
    pid: int
    handle: int
    out: Reader
    err: Reader | None
    returncode: int | None = None

    def said(self, word: str) -> str:
        """The first line from now on that starts with ``word``."""
        deadline = time.monotonic() + DEADLINE
        while line := self.out.line(deadline):
            if line.startswith(word):
                return line
        self.signal(signal.SIGKILL)
        raise AssertionError(f"never said {word!r}: {self.err.rest(deadline) if self.err else ''}")

    def signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            signal.pidfd_send_signal(self.handle, number)

    def pause(self) -> None:
        """Stop it where it is, until SIGCONT; a thread that runs stops a moment after the signal."""
        self.signal(signal.SIGSTOP)
        deadline = time.monotonic() + DEADLINE
        while any(_state(thread) != "T" for thread in Path(f"/proc/{self.pid}/task").iterdir()):
            assert time.monotonic() < deadline, "never stopped"

    @property
    def running(self) -> bool:
        return self.returncode is None and not select.select([self.handle], [], [], 0)[0]

    def wait(self, timeout: float = DEADLINE) -> int:
        """Its status, once it has ended by itself."""
        if self.returncode is None:
            if not select.select([self.handle], [], [], timeout)[0]:
                self.signal(signal.SIGKILL)
                raise AssertionError(f"not ended within {timeout} s: {self.err.rest(0) if self.err else ''}")
            self.returncode = self.nursery.status(self.pid)
            os.close(self.handle)
        return self.returncode

    def ended(self, timeout: float = DEADLINE) -> tuple[int, str, str]:
        """Status, output and errors."""
        deadline = time.monotonic() + timeout
        out = self.out.rest(deadline)
        err = self.err.rest(deadline) if self.err else ""
        return self.wait(max(deadline - time.monotonic(), 0)), out, err

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()
        self.out.close()
        if self.err is not None:
            self.err.close()


@attrs.define
class Node:
    """A ``genie serve`` that said it is ready."""

    process: Child
    address: str
    control: str
    log: Path
    facts: Mapping[str, Any] = attrs.field(factory=dict)  # as it said when it was ready

    def sessions(self) -> int:
        with ControlClient(self.control) as client:
            return len(client.sessions())

    def wait_for_sessions(self, count: int) -> None:
        """Until it has exactly so many; the control plane is asked, which has no way to tell by itself."""
        deadline = time.monotonic() + DEADLINE
        with ControlClient(self.control) as client:
            while (now := len(client.sessions())) != count:
                assert time.monotonic() < deadline, f"{now} sessions, not {count}"
                time.sleep(0.01)

    @property
    def resident(self) -> int:
        """Bytes of memory of the process itself, without pages shared with others."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
        raise AssertionError("no RssAnon")

    def stop(self) -> None:
        self.process.kill()


MakeNode = Callable[..., Node]
StartProgram = Callable[..., Child]


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


def start_node(nursery: Nursery, log: Path, *options: str, **settings: str) -> Node:
    arguments = ["genie", "serve", "--port", "0", "--json", *options]
    if "--device" not in options:
        arguments += ["--device", "cpu"]
    settings = {"GENIE_LEASE_SECONDS": "1", **settings}  # tests need not wait long for a client that was killed
    process = nursery.start(arguments, settings, module="genie", stderr=log)
    line = process.out.line(time.monotonic() + DEADLINE)
    if not line:
        process.kill()
        raise AssertionError(f"the node did not start: {log.read_text()}")
    facts = json.loads(line)
    host = facts["address"].rpartition(":")[0]
    return Node(process, facts["address"], f"{host}:{facts['control_port']}", log, facts)


@pytest.fixture(scope="session")
def shared_node(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = start_node(nursery, tmp_path_factory.mktemp("node") / "log")
    yield node
    node.stop()


@pytest.fixture
def node(shared_node: Node) -> Iterator[Node]:
    """The node most tests use: each must leave it alive, with no session and nothing to complain about."""
    shared_node.log.write_text("")
    yield shared_node
    assert shared_node.process.running, shared_node.log.read_text()
    shared_node.wait_for_sessions(0)
    assert "Traceback" not in shared_node.log.read_text()


@pytest.fixture
def make_node(nursery: Nursery, tmp_path: Path) -> Iterator[MakeNode]:
    """A node of the test's own, which it may ill-treat."""
    made: list[Node] = []

    def make(*options: str, **settings: str) -> Node:
        made.append(start_node(nursery, tmp_path / f"node-{len(made)}.log", *options, **settings))
        return made[-1]

    yield make
    for each in made:
        each.stop()


@pytest.fixture
def user(node: Node, fresh_runtime: None) -> Iterator[Callable[..., Any]]:
    """This process as a user's: ``user(node, …)`` connects it; afterwards it has left in order."""
    import genie
    import genie_pytorch  # noqa: F401  (makes the device)

    def connect(*nodes: Node, **settings: Any) -> None:
        genie.shutdown()
        genie.init(nodes=[node.address for node in nodes], **{"timeout": 20.0, "connect_timeout": 10.0, **settings})

    yield connect
    genie.shutdown()


@pytest.fixture
def program(nursery: Nursery, tmp_path: Path) -> Iterator[StartProgram]:
    """``program(source, node, …)`` starts a Python program in a process of its own; ``settings`` are variables."""
    started: list[Child] = []

    def start(source: str, *nodes: Node, args: tuple[str, ...] = (), **settings: str) -> Child:
        path = tmp_path / f"program_{len(started)}.py"
        path.write_text(textwrap.dedent(source))
        if nodes:
            settings = {"GENIE_NODES": ",".join(node.address for node in nodes), **settings}
        started.append(nursery.start([str(path), *args], settings))
        return started[-1]

    yield start
    for each in started:
        each.kill()


def command(*args: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """The ``genie`` command, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "genie", *args],
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
