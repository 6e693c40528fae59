"""Nodes that are down, die, answer garbage or nothing, or speak another version."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import msgspec
import pytest
import torch

import genie
from genie.errors import (
    BackendError,
    BackendUnavailable,
    ConnectionLost,
    DeadlineExceeded,
    LimitExceeded,
    ProtocolError,
    SessionClosed,
    VersionMismatch,
)
from genie.remote import RemoteBackend
from genie.remote.control import ControlClient
from genie.wire import PROTOCOL, Kind, frames, messages
from genie_backend_tcp import TcpTransport

from . import tiny_lm
from .conftest import MakeNode, Node, StartProgram, command

DEVICE = "remote_accelerator"

Serve = Callable[[Callable[[socket.socket], None]], str]


@pytest.fixture
def peer(fresh_runtime: None) -> Iterator[Serve]:
    """The address of a server that treats each client as told."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(talk: Callable[[socket.socket], None]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def accept() -> None:
            held = []
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    held.append(connection)  # open until the test is over: silence is not a closed door
                    connection.settimeout(10)
                    with suppress(OSError):
                        talk(connection)
            for connection in held:
                connection.close()

        threads.append(threading.Thread(target=accept))
        threads[-1].start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield serve
    genie.shutdown()
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def within(seconds: float, start: float) -> None:
    assert time.monotonic() - start < seconds


def connect(address: str, **settings: object) -> None:
    import genie_pytorch  # noqa: F401

    genie.init(nodes=[address], **{"timeout": 1.0, "connect_timeout": 1.0, "unix_sockets": False, **settings})


def local_works() -> None:
    """The process is none the worse for it."""
    genie.shutdown()
    genie.init(backend="local")
    assert (torch.ones(2, device=DEVICE) + 1).tolist() == [2.0, 2.0]
    genie.shutdown()


# --- at the start --------------------------------------------------------------------------------


def test_nobody_listens(fresh_runtime: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    start = time.monotonic()
    with pytest.raises(BackendUnavailable) as caught:
        connect(address)
    within(8, start)
    assert address in caught.value.message
    assert "genie serve" in caught.value.hint
    local_works()


def test_a_program_without_its_node(program: StartProgram) -> None:
    """No call of genie at all: the first tensor on the device says what is wrong, and where in the program."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    source = """
        import torch, genie_pytorch
        x = torch.ones(2, device="remote_accelerator:0")
        print((x + 1).tolist())
    """
    status, out, err = program(source, GENIE_NODES=address).ended()
    assert status == 1
    assert out == ""
    assert f"BackendUnavailable: no node answers at {address}" in err
    assert "genie serve" in err
    assert err.count("Traceback") == 1


GARBAGE = {
    "http": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n" * 8,
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_instead_of_a_greeting(peer: Serve, garbage: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(garbage)

    address = peer(talk)
    start = time.monotonic()
    with pytest.raises(BackendError) as caught:
        connect(address)
    within(8, start)
    assert isinstance(caught.value, (ProtocolError, BackendUnavailable)), repr(caught.value)
    assert address in str(caught.value)
    local_works()


def test_a_silent_peer(peer: Serve) -> None:
    address = peer(lambda connection: None)
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="did not greet within 1 s") as caught:
        connect(address)
    within(8, start)
    assert address in str(caught.value)
    assert caught.value.hint
    local_works()


def test_a_peer_that_hangs_up(peer: Serve) -> None:
    address = peer(lambda connection: connection.close())
    with pytest.raises(BackendUnavailable, match="hung up") as caught:
        connect(address)
    assert address in str(caught.value)


# --- a real node with its answers changed on the way ---------------------------------------------


@pytest.fixture
def between(peer: Serve) -> Callable[[Node, Callable[[int, bytes], bytes | None]], str]:
    """A man in the middle: ``change(index, data)`` of each piece the node sends; ``None`` sends nothing any more."""

    def relay(node: Node, change: Callable[[int, bytes], bytes | None]) -> str:
        def talk(client: socket.socket) -> None:
            host, _, port = node.address.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=10) as server:

                def up() -> None:
                    with suppress(OSError):
                        while data := client.recv(1 << 16):
                            server.sendall(data)
                    with suppress(OSError):
                        server.shutdown(socket.SHUT_WR)

                thread = threading.Thread(target=up, daemon=True)
                thread.start()
                index = 0
                silent = False
                while data := server.recv(1 << 16):
                    changed = None if silent else change(index, data)
                    silent = changed is None
                    index += 1
                    if changed:
                        client.sendall(changed)
            client.close()
            thread.join(10)

        return peer(talk)

    return relay


Between = Callable[[Node, Callable[[int, bytes], bytes | None]], str]


def _another_protocol(index: int, data: bytes) -> bytes:
    _, _, body = frames.single(data)
    welcome = messages.get_welcome(body)
    other = msgspec.structs.replace(welcome, major=PROTOCOL[0] + 1, genie="99.0")
    return frames.one(frames.sequence(data), Kind.WELCOME, messages.put_struct(other))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_another_protocol, f"{PROTOCOL[0] + 1}.{PROTOCOL[1]}"),
        (lambda index, data: data[:2] + b"\x63" + data[3:], "99"),
    ],
    ids=["protocol", "framing"],
)
def test_a_node_of_another_version(
    node: Node, between: Between, change: Callable[[int, bytes], bytes], named: str
) -> None:
    with pytest.raises(VersionMismatch) as caught:
        connect(address := between(node, change))
    assert named in caught.value.message
    assert address in str(caught.value)
    assert "same version" in caught.value.hint
    local_works()


def _flipped(data: bytes) -> bytes:
    return bytes(byte ^ 0xFF for byte in data)


SPOILED = {
    "garbage": (lambda data: b"\xff" * len(data), (ProtocolError,)),
    "flipped body": (lambda data: data[:16] + _flipped(data[16:]), (ProtocolError, LimitExceeded)),
    "half, then silence": (lambda data: data[: len(data) // 2], (DeadlineExceeded,)),
    "silence": (lambda data: b"", (DeadlineExceeded,)),
}


@pytest.mark.parametrize(("spoil", "errors"), SPOILED.values(), ids=SPOILED)
def test_a_node_that_goes_mad_in_the_middle(
    node: Node, between: Between, spoil: Callable[[bytes], bytes], errors: tuple[type[BackendError], ...]
) -> None:
    mad = threading.Event()

    def change(index: int, data: bytes) -> bytes | None:
        return (spoil(data) or None) if mad.is_set() else data

    # Time enough for the sane beginning on a busy machine.
    connect(address := between(node, change), timeout=2.0, connect_timeout=10.0)
    model = tiny_lm.model().to(DEVICE)
    tokens = tiny_lm.stream(model)
    first = [next(tokens) for _ in range(3)]
    assert first == tiny_lm.generate(tiny_lm.model(), count=3)
    mad.set()
    start = time.monotonic()
    with pytest.raises(BackendError) as caught:
        list(tokens)
    within(8, start)
    assert isinstance(caught.value, errors), repr(caught.value)
    assert address in str(caught.value)
    if DeadlineExceeded in errors:
        assert "FETCH" in str(caught.value)  # the stage
        assert "2 s" in str(caught.value)
    local_works()
    node.wait_for_sessions(0)


# --- a real node that is killed, stopped, drained ------------------------------------------------

GENERATING = """
    import sys, torch, genie_pytorch, tiny_lm
    lm = tiny_lm.model().to("remote_accelerator:0")
    while True:
        for token in tiny_lm.stream(lm, count=400):
            print("token", token, flush=True)
"""


def test_a_node_killed_in_generation(make_node: MakeNode, program: StartProgram) -> None:
    node = make_node()
    running = program(GENERATING, node)
    for _ in range(4):
        running.said("token")
    node.stop()
    start = time.monotonic()
    status, _, err = running.ended()
    within(10, start)
    assert status == 1
    last = err[err.rindex("genie.errors.") :]
    assert last.startswith("genie.errors.ConnectionLost:"), err
    assert node.address in last
    assert "genie serve" in last
    assert "Exception ignored" not in err


def test_a_node_interrupted_by_its_operator(make_node: MakeNode, program: StartProgram) -> None:
    node = make_node()
    running = program(GENERATING, node)
    running.said("token")
    node.process.signal(signal.SIGINT)
    start = time.monotonic()
    assert node.process.wait(10) in (0, 130)
    status, _, err = running.ended()
    within(10, start)
    assert status == 1
    assert node.address in err
    assert "Traceback" not in node.log.read_text()


def test_the_same_program_goes_on_with_a_new_node(make_node: MakeNode, user: Callable[..., None]) -> None:
    lost, other = make_node(), make_node()
    user(lost)
    x = torch.ones(2, device=DEVICE)
    assert x.tolist() == [1.0, 1.0]
    lost.stop()
    for _ in range(3):  # however often it is tried
        with pytest.raises(ConnectionLost) as caught:
            (x + 1).cpu()
    assert "genie.shutdown()" in str(caught.value)
    user(other)
    assert tiny_lm.generate(tiny_lm.model().to(DEVICE), count=4) == tiny_lm.generate(tiny_lm.model(), count=4)


def test_a_node_that_stops_answering_and_comes_back(make_node: MakeNode, user: Callable[..., None]) -> None:
    node = make_node()
    user(node, timeout=2.0)
    x = torch.ones(2, device=DEVICE)
    assert x.tolist() == [1.0, 1.0]
    node.process.pause()
    try:
        start = time.monotonic()
        y = x + 1
        with pytest.raises(DeadlineExceeded, match="did not answer FETCH within 2 s") as caught:
            y.cpu()
        within(8, start)
        assert node.address in str(caught.value)
        assert "timeout" in caught.value.hint
    finally:
        node.process.signal(signal.SIGCONT)
    assert y.tolist() == [2.0, 2.0]  # asked again
    assert (y * x).tolist() == [2.0, 2.0]


def test_a_node_drains(make_node: MakeNode, user: Callable[..., None]) -> None:
    node = make_node()
    user(node)
    x = torch.ones(2, device=DEVICE)
    assert x.tolist() == [1.0, 1.0]
    with ControlClient(node.control) as control:
        assert control.drain(20.0) == 1
        assert not control.healthy()
    done = command("node", "status", node.address)
    assert (x + 1).tolist() == [2.0, 2.0]  # who is there may finish
    with pytest.raises(BackendUnavailable, match="shutting down") as caught:
        backend = RemoteBackend("tcp", TcpTransport(), (node.address,))
        backend.connect(backend.devices()[0])
    assert node.address in str(caught.value)
    genie.shutdown()
    assert node.process.wait(20) == 0
    assert done.returncode == 0


def test_a_drain_has_an_end(make_node: MakeNode, user: Callable[..., None]) -> None:
    node = make_node()
    user(node)
    x = torch.ones(2, device=DEVICE)
    assert x.tolist() == [1.0, 1.0]
    with ControlClient(node.control) as control:
        control.drain(0.2)
    assert node.process.wait(20) == 0
    with pytest.raises((ConnectionLost, SessionClosed)) as caught:
        (x + 1).cpu()
    assert node.address in str(caught.value)


# --- a node that can't be started ----------------------------------------------------------------


def test_a_port_that_is_taken(node: Node) -> None:
    port = node.address.rpartition(":")[2]
    done = command("serve", "--port", port, "--device", "cpu")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("ConfigError: ")
    assert node.address in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_socket_that_cannot_be_made() -> None:
    done = command("serve", "--port", "0", "--device", "cpu", "--unix", "/proc/no/such/directory/socket")
    assert done.returncode == 1
    assert "/proc/no/such/directory/socket" in done.stderr
    assert done.stderr.startswith("ConfigError: ")
    assert "Traceback" not in done.stderr


def test_no_place_for_a_socket_is_no_obstacle(make_node: MakeNode, user: Callable[..., None]) -> None:
    node = make_node(XDG_RUNTIME_DIR="/proc")  # no file can be made there, whoever asks
    user(node)
    assert (torch.ones(2, device=DEVICE) + 1).tolist() == [2.0, 2.0]
