"""A node in a process of its own, its control plane, and what people ask it."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest
from remote.peers import Node
from structlog.testing import capture_logs

from genie.errors import BackendUnavailable, ConfigError, ConnectionLost, DeadlineExceeded, RemoteOpError
from genie.remote import NodeServer, RemoteBackend, RemoteClient, status
from genie.remote.control import ControlClient, ControlPlane
from genie.remote.node import server
from genie.remote.node.session.messages import NodeSession
from genie.testing import Caller, MemoryTransport, NullBackend, single
from genie.testing.plans import spec
from genie_backend_tcp import TcpTransport

_SERVE = """
import genie
from genie import config
from genie.plugins import registry
from genie.testing import NullBackend
from genie_backend_tcp import TcpTransport
from genie.remote import serve
registry.register("backend", "null-served", lambda settings: NullBackend())
registry.register("transport", "tcp-served", lambda settings: TcpTransport(stall_timeout=settings.timeout))
serve(config.resolve().settings, port=0, backend="null-served", transport="tcp-served", json=True)
"""


class Process:
    def __init__(self, directory: Path) -> None:
        self.errors = directory / "stderr"
        with self.errors.open("wb") as errors:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", _SERVE], stdout=subprocess.PIPE, stderr=errors, env=os.environ, text=True
            )
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line, self.errors.read_text()
        self.ready = json.loads(line)
        self.address: str = self.ready["address"]

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait(10)
        assert self.popen.stdout is not None
        self.popen.stdout.close()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path)
    yield process
    process.end()


def _client(address: str, shortcut: bool = True) -> tuple[RemoteBackend, Caller]:
    backend = RemoteBackend("tcp", TcpTransport(stall_timeout=10), (address,), timeout=10.0, shortcut=shortcut)
    return backend, Caller(backend.connect(backend.devices()[0]))


def test_the_ready_line_says_where(process: Process) -> None:
    assert process.ready["event"] == "ready"
    assert process.ready["devices"] == ["null:0"]
    assert process.ready["control_port"] > 0
    backend, caller = _client(process.address)
    assert caller.get(caller.put([1, 2])) == [1, 2]
    backend.close()


@pytest.mark.parametrize("shortcut", [False, True])
def test_a_node_killed_in_the_middle(process: Process, shortcut: bool) -> None:
    backend, caller = _client(process.address, shortcut)
    handle = caller.put([1, 2])
    assert caller.get(handle) == [1, 2]
    process.popen.send_signal(signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(ConnectionLost) as caught:
        caller.get(handle)
    assert time.monotonic() - started < 5
    assert caught.value.hint
    with pytest.raises(BackendUnavailable):
        RemoteBackend("tcp", TcpTransport(), (process.address,)).devices()
    backend.close()


def test_sigterm_lets_sessions_end(process: Process) -> None:
    backend, caller = _client(process.address)
    handle = caller.put([7])
    caller.session.synchronize()
    process.popen.send_signal(signal.SIGTERM)
    with ControlClient(f"127.0.0.1:{process.ready['control_port']}") as control:
        deadline = time.monotonic() + 5
        while control.healthy():
            assert time.monotonic() < deadline
    assert caller.get(handle) == [7]
    backend.close()
    assert process.popen.wait(10) == 0


def test_ctrl_c_ends_at_once_and_cleanly(process: Process) -> None:
    backend, caller = _client(process.address)
    caller.session.synchronize()
    process.popen.send_signal(signal.SIGINT)
    assert process.popen.wait(10) == 0
    assert "Traceback" not in process.errors.read_text()
    directory = process.ready["local_address"].removeprefix("unix:")
    assert not os.path.exists(os.path.dirname(directory))
    backend.close()


def test_a_client_killed_while_uploading(make_node: Callable[..., Node]) -> None:
    """A real socket that breaks within a tensor: the memory comes back, others go on."""
    node = make_node(transport=TcpTransport(stall_timeout=5), address="127.0.0.1:0", local=False)
    bystander = node.client()
    kept = bystander.put([1])
    bystander.session.synchronize()
    script = (
        "import os, sys, threading\n"
        "from genie.remote.greeting import meet\n"
        "from genie_backend_tcp import TcpTransport\n"
        "from genie.testing.plans import spec\n"
        "from genie.wire import Kind, frames, messages\n"
        "met = meet(TcpTransport(), sys.argv[1], 0, 5.0)\n"
        "size = 64 << 20\n"
        "value = messages.put_value(1, spec(size, dtype='uint8'))\n"
        "header = frames.one(met.dialogue.next_seq(), Kind.UPLOAD, value, size)\n"
        "met.connection.send(header + bytes(1 << 20))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, node.server.address], timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL
    node.wait_for_sessions(1)
    assert sum(session.stats()["memory_bytes"] for session in node.local.sessions) == 4
    assert bystander.get(kept) == [1]


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match="taken"):
            NodeServer(NullBackend(), TcpTransport(), f"127.0.0.1:{port}").start()


def test_a_device_the_host_has_not() -> None:
    with pytest.raises(ConfigError, match="cuda:9"):
        NodeServer(NullBackend(), TcpTransport(), "127.0.0.1:0", devices=["cuda:9"]).start()


def test_noise_on_the_data_port(make_node: Callable[..., Node]) -> None:
    node = make_node(transport=TcpTransport(stall_timeout=5), address="127.0.0.1:0", local=False)
    host, port = node.server.address.split(":")
    for noise in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(300), b"\xa7G\x01\x00" + b"\xff" * 60, b""):
        other = socket.create_connection((host, int(port)), timeout=5)
        with other, contextlib.suppress(ConnectionError):  # what the node leaves unread resets the connection
            other.sendall(noise)
            if not noise:
                other.shutdown(socket.SHUT_WR)
            while other.recv(4096):
                pass
    caller = node.client()
    assert caller.get(caller.put([1])) == [1]


# --- control -------------------------------------------------------------------------------------


@pytest.fixture
def controlled(make_node: Callable[..., Node]) -> Iterator[tuple[Node, list[float]]]:
    node = make_node(transport=TcpTransport(stall_timeout=5), address="127.0.0.1:0", local=False)
    drains: list[float] = []
    control = ControlPlane(node.server, drains.append)
    node.server.control_port = control.start("127.0.0.1", 0)
    yield node, drains
    control.close()


def test_status(controlled: tuple[Node, list[float]]) -> None:
    node, _ = controlled
    caller = node.client()
    found = status(node.server.address, transport=node.transport)
    assert found.control == "serving"
    assert [device.id for device in found.devices] == ["null:0"]
    assert len(found.sessions) == 1
    assert found.sessions[0].device == "null:0"
    assert str(os.getpid()) in found.sessions[0].client
    assert found.versions["python"].startswith("3.")
    assert found.content["content_bytes"] == 0
    assert caller.get(caller.put([1])) == [1]


def test_draining_by_the_control_plane(controlled: tuple[Node, list[float]]) -> None:
    node, drains = controlled
    with ControlClient(f"127.0.0.1:{node.server.control_port}") as control:
        assert control.healthy()
        assert control.drain(12.0) == 0
        assert drains == [12.0]
        assert not control.healthy()


def test_data_goes_on_without_control(make_node: Callable[..., Node]) -> None:
    node = make_node(transport=TcpTransport(stall_timeout=5), address="127.0.0.1:0", local=False)
    control = ControlPlane(node.server, lambda seconds: None)
    node.server.control_port = control.start("127.0.0.1", 0)
    caller = node.client()
    control.close()
    assert caller.get(caller.put([1])) == [1]
    found = status(node.server.address, transport=node.transport, timeout=0.5)
    assert found.control == "unreachable"
    assert [device.id for device in found.devices] == ["null:0"]
    with ControlClient(f"127.0.0.1:{node.server.control_port}", timeout=0.5) as client, pytest.raises(DeadlineExceeded):
        client.capabilities()


def test_a_taken_control_port_is_replaced(make_node: Callable[..., Node], capfd: pytest.CaptureFixture[str]) -> None:
    node = make_node(transport=TcpTransport(stall_timeout=5), address="127.0.0.1:0", local=False)
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        control = ControlPlane(node.server, lambda seconds: None)
        with capture_logs() as logs:
            port = control.start("127.0.0.1", taken)
        try:
            assert port not in (0, taken)
            assert [(each["log_level"], each["taken"], each["port"]) for each in logs] == [("warning", taken, port)]
            assert capfd.readouterr().err == ""  # nor does gRPC say anything by itself
            with ControlClient(f"127.0.0.1:{port}") as client:
                assert client.capabilities().address == node.server.address
        finally:
            control.close()


def test_a_control_plane_at_every_address(node: Node) -> None:
    """As the data port of a node without a host."""
    control = ControlPlane(node.server, lambda seconds: None)
    try:
        port = control.start("", 0)
        assert port > 0
        with ControlClient(f"127.0.0.1:{port}") as client:
            assert client.healthy()
    finally:
        control.close()


def test_housekeeping_gives_back_what_lies_idle(make_node: Callable[..., Node]) -> None:
    class Hoarder(NullBackend):
        kept = 1

        def trim(self) -> None:
            self.kept = 0

    hoarder = Hoarder()
    NodeServer(hoarder, MemoryTransport()).housekeep()
    assert hoarder.kept == 0
    make_node().server.housekeep()  # whoever keeps nothing is not asked


def test_housekeeping_that_fails_is_no_reason_to_accept_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = threading.Event()

    class Failing(NullBackend):
        def trim(self) -> None:
            tried.set()
            raise RuntimeError("the device is lost")

    monkeypatch.setattr(server, "_HOUSEKEEPING_SECONDS", 0.01)
    local, transport = Failing(), MemoryTransport(stall_timeout=10.0)
    with NodeServer(local, transport, "node:0") as serving:
        assert tried.wait(30)
        node = Node(serving, local, transport)
        caller = node.client()
        assert caller.get(caller.put([1])) == [1]
        node.backends[0].close()


def test_housekeeping_frees_what_ended_sessions_leave(node: Node) -> None:
    """Their objects refer to each other, so nothing but the garbage collector finds them."""
    others = set(threading.enumerate())

    def serving() -> int:
        threads = [each for each in threading.enumerate() if each.name == "genie-session" and each not in others]
        return len(threads) - node.server.idle_threads

    def there() -> int:
        return sum(type(each) is NodeSession and each.meter in ours for each in gc.get_objects())

    gc.disable()
    try:
        for _ in range(3):
            caller = node.client()
            caller.get(caller.put([1]))
        ours = [each.meter for each in gc.get_objects() if type(each) is NodeSession]
        for backend in node.backends:
            backend.close()
        node.wait_for_sessions(0)
        deadline = time.monotonic() + 10
        while serving() > 0:  # their threads have done with them a moment later
            assert time.monotonic() < deadline
            threading.Event().wait(0.005)
        assert there() >= 3
        node.server.housekeep()
        assert there() == 0
    finally:
        gc.enable()


# --- the host's own way --------------------------------------------------------------------------


def test_a_client_on_the_host_takes_the_unix_socket(make_node: Callable[..., Node]) -> None:
    node = make_node(transport=TcpTransport(stall_timeout=5), address="127.0.0.1:0")
    backend, caller = _client(node.server.address)
    assert caller.session.peer == node.server.local_address  # type: ignore[attr-defined]
    path = Path(node.server.local_address.removeprefix("unix:"))
    assert path.parent.stat().st_mode & 0o777 == 0o700
    backend.close()


def test_a_socket_that_is_gone_is_no_hindrance(make_node: Callable[..., Node]) -> None:
    node = make_node(transport=TcpTransport(stall_timeout=5), address="127.0.0.1:0")
    os.unlink(node.server.local_address.removeprefix("unix:"))
    backend, caller = _client(node.server.address)
    assert caller.session.peer == node.server.address  # type: ignore[attr-defined]
    assert caller.get(caller.put([1])) == [1]
    backend.close()


# --- single operators ----------------------------------------------------------------------------


def test_single_operators(make_node: Callable[..., Node]) -> None:
    node = make_node(transport=TcpTransport(stall_timeout=5), address="127.0.0.1:0")
    one = numpy.arange(6, dtype="float32").reshape(2, 3)
    with RemoteClient(transport=node.transport) as client:
        for scale in (1, 2):  # the second finds its plan
            (product,) = client.execute_operation("aten::mm", [one * scale, one.T.copy()], node=node.server.address)
            numpy.testing.assert_array_equal(numpy.asarray(product), one * scale @ one.T)
        (total,) = client.execute_operation("aten::add.Tensor", [one, one, 3], node=node.server.address)
        numpy.testing.assert_array_equal(numpy.asarray(total), one * 4)
        with pytest.raises(RemoteOpError, match="cannot be multiplied"):
            client.execute_operation("aten::mm", [one, one], node=node.server.address)
        stats = client.stats(node.server.address)
        assert stats["plans"] == 3
        assert stats["values"] == 0


def test_single_operators_from_threads(make_node: Callable[..., Node]) -> None:
    node = make_node(transport=TcpTransport(stall_timeout=5), address="127.0.0.1:0")
    results: dict[int, list[float]] = {}
    with RemoteClient(transport=node.transport) as client:

        def work(number: int) -> None:
            one = numpy.full(4, number, dtype="float32")
            (made,) = client.execute_operation("aten::neg", [one], node=node.server.address)
            results[number] = numpy.asarray(made).tolist()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert results == {number: [-number] * 4 for number in range(8)}


def test_devices_of_several_nodes_are_numbered_in_order(make_node: Callable[..., Node]) -> None:
    transport = TcpTransport(stall_timeout=5)
    nodes = [make_node(transport=transport, address="127.0.0.1:0", local=False) for _ in range(2)]
    addresses = tuple(node.server.address for node in nodes)
    backend = RemoteBackend("tcp", transport, addresses)
    devices = backend.devices()
    assert [device.address for device in devices] == list(addresses)
    assert len({device.id for device in devices}) == 2
    for device in devices:
        caller = Caller(backend.connect(device))
        made = caller.run(single("aten::neg", [spec(2)], spec(2)), [caller.put([1, 2])])
        assert caller.get(made) == [-1, -2]
    assert [len(node.server.sessions()) for node in nodes] == [1, 1]
    backend.close()
