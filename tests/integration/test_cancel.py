"""A node's work is stopped, between two operators, when nobody wants it any more."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, cast

import attrs
import pytest
import torch
from local.both import Both, Program, tensor_of
from local.long_work import MOST, Executing

import genie
from genie.bindings import Prediction, parameters
from genie.errors import Cancelled, ConnectionLost, ExecutionTimedOut, GenieError, SessionClosed
from genie.loops import Loop
from genie.remote import NodeServer, RemoteBackend, RemoteSession
from genie.remote.control import ControlClient, ControlPlane
from genie.remote.node.meters import Meter
from genie.wire import Kind
from genie_backend_local import LocalBackend
from genie_backend_tcp import TcpTransport

from .conftest import MakeNode, command
from .conftest import Node as Process


@attrs.define
class Node:
    server: NodeServer
    clients: list[RemoteBackend] = attrs.field(factory=list)

    def client(self, *, resumes: bool = True) -> Both:
        backend = RemoteBackend(
            "tcp", TcpTransport(stall_timeout=10), (self.server.address,), timeout=MOST, resumes=resumes
        )
        self.clients.append(backend)
        return Both(cast(Any, backend.connect(backend.devices()[-1])))

    def stopped(self) -> int:
        """Executions that were, by the node's own count."""
        look = self.server.meters.look()
        return sum(meter.said.get("stopped_executions", 0) for meter in look.open.values())

    def empty(self) -> None:
        started = time.monotonic()
        assert self.server.wait_for_sessions(0, MOST)
        assert time.monotonic() - started < MOST


@pytest.fixture
def make_server() -> Iterator[Callable[..., Node]]:
    made: list[tuple[Node, LocalBackend]] = []

    def make(execution_seconds: float = 0.0, **options: Any) -> Node:
        backend = LocalBackend(execution_seconds=execution_seconds)
        server = NodeServer(backend, TcpTransport(stall_timeout=10), devices=("cpu",), **options)
        server.start()
        made.append((Node(server), backend))
        return made[-1][0]

    yield make
    for node, backend in made:
        for client in node.clients:
            client.close()
        node.server.close()
        backend.close()


def begin(both: Both) -> Executing:
    """The node is at it when this returns: nothing that is asked after it is answered."""
    work = Executing(both)
    work.ended()  # sending it, that is
    return work


def at_work(node: Node, sessions: int = 1) -> list[str]:
    """Which sessions are at an execution, once so many are: reading its plan is work, too, and what is stopped then is
    not what comes later."""
    deadline = time.monotonic() + MOST

    def executes(meter: Meter) -> bool:
        return meter.at_work() and meter.counts[Kind.LOAD_PLAN] > 0 and not meter._fresh

    while len(found := [name for name, its in node.server.meters.look().open.items() if executes(its)]) < sessions:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def drop(both: Both) -> None:
    """The client is gone without a word."""
    cast(Any, both.session)._conversation._connection.close()


@pytest.mark.parametrize("resumes", [False, True])
def test_a_client_that_hangs_up(make_server: Callable[..., Node], resumes: bool) -> None:
    node = make_server(lease_seconds=1.0)
    both = node.client(resumes=resumes)
    begin(both)
    at_work(node)
    drop(both)
    node.empty()


def test_a_client_that_says_goodbye(make_server: Callable[..., Node]) -> None:
    node = make_server(lease_seconds=600.0)
    both = node.client()
    begin(both)
    at_work(node)
    both.session.close()
    node.empty()


def test_a_client_that_comes_back_finds_its_work_going_on(make_server: Callable[..., Node]) -> None:
    node = make_server(lease_seconds=60.0)
    both = node.client()
    work = begin(both)
    at_work(node)
    drop(both)
    deadline = time.monotonic() + MOST
    while not node.server.sessions()[0].away:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(1.5)  # several looks of the node's
    assert node.stopped() == 0
    session = cast(RemoteSession, both.session)
    session.cancel_work()  # or it would take minutes
    with pytest.raises(Cancelled):
        session.fetch(work.outputs[1])


def test_an_operator_ends_a_session(make_server: Callable[..., Node]) -> None:
    node = make_server()
    both, other = node.client(), node.client()
    work = begin(both)
    (name,) = at_work(node)
    assert not node.server.cancel("no-such-session", "")
    assert node.server.cancel(name, "an operator of the node cancelled it")
    assert node.server.wait_for_sessions(1, MOST)
    with pytest.raises((ConnectionLost, SessionClosed), match="an operator of the node cancelled it"):
        both.session.fetch(work.outputs[1])
    still_good(other)


def test_an_operator_stops_what_a_session_is_at(make_server: Callable[..., Node]) -> None:
    node = make_server()
    control = ControlPlane(node.server, lambda _: None)
    port = control.start("127.0.0.1", 0)
    try:
        both = node.client()
        work = begin(both)
        at_work(node)
        with ControlClient(f"127.0.0.1:{port}", timeout=MOST) as client:
            (info,) = client.sessions()
            assert not client.cancel("another", work_only=True)
            assert client.cancel(info.id, work_only=True)
        with pytest.raises(Cancelled, match="an operator of the node"):
            both.session.fetch(work.outputs[1])
        still_good(both)
    finally:
        control.close()


def test_a_client_cancels_what_it_asked(make_server: Callable[..., Node]) -> None:
    node = make_server()
    both = node.client()
    work = begin(both)
    begin(both)  # waits in the socket meanwhile
    session = cast(RemoteSession, both.session)
    session.cancel_work()
    with pytest.raises(Cancelled, match="its client asked"):
        session.fetch(work.outputs[1])
    still_good(both)
    session.cancel_work()  # of nothing
    still_good(both)


def test_ctrl_c_while_waiting_leaves_the_work_going_on(make_server: Callable[..., Node]) -> None:
    """The prompt is back at once; whoever wants the node back, too, cancels."""
    node = make_server()
    both = node.client()
    work = begin(both)
    session = cast(RemoteSession, both.session)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        _interrupted(lambda: session.fetch(work.outputs[1]))
    assert time.monotonic() - started < MOST
    assert node.stopped() == 0
    session.cancel_work()
    with pytest.raises(Cancelled):
        session.fetch(work.outputs[1])
    still_good(both)


def test_closing_a_node_at_work(make_server: Callable[..., Node]) -> None:
    node = make_server()
    both = node.client()
    begin(both)
    at_work(node)
    started = time.monotonic()
    node.server.close()
    assert time.monotonic() - started < 10.0
    assert not node.server.sessions()
    with suppress(GenieError):
        both.session.close()


def test_an_execution_that_takes_too_long(make_server: Callable[..., Node]) -> None:
    node = make_server(execution_seconds=0.3)
    both = node.client()
    work = begin(both)
    with pytest.raises(ExecutionTimedOut, match=r"longer than the 0\.3 s") as caught:
        both.session.fetch(work.outputs[1])
    assert caught.value.stage == "execute"
    assert caught.value.source == "train.py:12"
    still_good(both)


@pytest.mark.parametrize("limit", [0.0, 0.2])
def test_a_loop_that_is_stopped(make_server: Callable[..., Node], limit: float) -> None:
    """By its client after some iterations; or in one that takes too long."""
    node = make_server(execution_seconds=limit)
    both = node.client()
    program = Program()
    x, carried = program.input(torch.eye(512)), program.input(torch.eye(512), donated=True)
    value = carried
    for _ in range(2000 if limit else 1):
        value = program.call("aten::mm", value, x)
    graph = program.graph(value, program.call("aten::sum", value, None))
    handles = [both.put(tensor) for tensor in program.given]
    words = [both.handles(2), *handles, *parameters(graph)]
    bindings = Prediction(2, parameters(graph)).encode(words, anew=True)
    iterations = both.session.loop(both.load(graph), bindings, Loop(carries=((1, 0),), emit=(1,)), 1 << 20)
    if limit:
        with pytest.raises(ExecutionTimedOut):
            next(iterations)
    else:
        next(iterations)
        cast(RemoteSession, both.session).cancel_work()
        with pytest.raises(Cancelled):
            for _ in iterations:
                pass
    with pytest.raises(StopIteration):
        next(iterations)
    still_good(both)


def still_good(both: Both) -> None:
    program = Program()
    x = program.input(torch.arange(3.0))
    graph = program.graph(program.call("aten::mul.Scalar", x, 3))
    (made,) = both.execute_native(graph, [both.put(program.given[0])])
    assert tensor_of(cast(Any, both.session.fetch(made))).equal(torch.arange(3.0) * 3)


def _interrupt_main() -> None:
    import signal

    signal.pthread_kill(cast(int, threading.main_thread().ident), signal.SIGINT)


def _interrupted(work: Callable[[], object]) -> None:
    interrupt = threading.Timer(0.5, _interrupt_main)
    interrupt.start()
    work()


def test_a_program_takes_back_what_it_asked(node: Process, user: Callable[..., None]) -> None:
    user(node)
    x = torch.eye(1024, device="remote_accelerator")
    y = x
    for _ in range(1000):
        y = y @ x
    with pytest.raises(KeyboardInterrupt):
        _interrupted(lambda: y.sum().item())
    genie.cancel()
    with pytest.raises(Cancelled, match="its client asked"):
        y.sum().item()
    assert x.sum().item() == 1024
    assert (torch.ones(3, device="remote_accelerator") * 2).tolist() == [2.0] * 3


def test_the_commands_of_an_operator(make_node: MakeNode) -> None:
    node = make_node()
    backend = RemoteBackend("tcp", TcpTransport(stall_timeout=10), (node.address,), timeout=MOST)
    try:
        both = Both(cast(Any, backend.connect(backend.devices()[-1])))
        begin(both)
        with ControlClient(node.control) as control:
            (info,) = control.sessions()
        done = command("node", "cancel", node.address, info.id, "--json")
        assert (done.returncode, json.loads(done.stdout)["cancelled"]) == (0, "session"), done.stderr
        node.wait_for_sessions(0)
        again = command("node", "cancel", node.address, info.id, "--work")
        assert again.returncode == 1
        assert f"no session '{info.id}'" in again.stderr
    finally:
        backend.close()
    drained = command("node", "drain", node.address, "--seconds", "1")
    assert drained.returncode == 0, drained.stderr
    assert "0 sessions have 1 s to end" in drained.stdout
