"""Programs that are interrupted, killed, forked or just end; and what their node keeps of them."""

from __future__ import annotations

import signal
import socket
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from . import tiny_lm
from .conftest import MakeNode, Node, StartProgram

_MB = 1 << 20
QUICK = 15.0  # s: none of the deadlines, which are longer, was waited for

# As any Python program that Ctrl-C ends; with 1 where an exit handler (PyTorch's, of its compiler) has run code since.
INTERRUPTED = (-signal.SIGINT, 1)

GENERATING = """
    import torch, genie_pytorch, tiny_lm
    lm = tiny_lm.model().to("remote_accelerator:0")
    while True:
        for token in tiny_lm.stream(lm, count=400):
            print("token", token, flush=True)
"""

FINITE = """
    import torch, genie_pytorch, tiny_lm
    lm = tiny_lm.model().to("remote_accelerator:0")
    print("tokens", tiny_lm.generate(lm), flush=True)
"""


def next_run_is_fine(program: StartProgram, node: Node) -> None:
    running = program(FINITE, node)
    assert running.said("tokens") == f"tokens {tiny_lm.generate(tiny_lm.model())}\n"
    assert running.ended() == (0, "", "")
    node.wait_for_sessions(0)


# --- interrupted ---------------------------------------------------------------------------------


def test_ctrl_c_in_generation(node: Node, program: StartProgram) -> None:
    running = program(GENERATING, node)
    for _ in range(5):
        running.said("token")
    running.signal(signal.SIGINT)
    start = time.monotonic()
    status, _, err = running.ended()
    assert time.monotonic() - start < QUICK
    assert status in INTERRUPTED
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert "Exception ignored" not in err
    assert "genie.errors" not in err
    node.wait_for_sessions(0)
    next_run_is_fine(program, node)


def test_ctrl_c_is_caught_and_the_program_goes_on(node: Node, program: StartProgram) -> None:
    """As in a notebook: the cell is interrupted, the next one works."""
    source = """
        import torch, genie_pytorch, tiny_lm
        lm = tiny_lm.model().to("remote_accelerator:0")
        try:
            while True:
                for token in tiny_lm.stream(lm, count=400):
                    print("token", token, flush=True)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        print("tokens", tiny_lm.generate(lm), flush=True)
    """
    running = program(source, node)
    for _ in range(5):
        running.said("token")
    running.signal(signal.SIGINT)
    running.said("interrupted")
    assert running.said("tokens") == f"tokens {tiny_lm.generate(tiny_lm.model())}\n"
    assert running.ended() == (0, "", "")


def test_ctrl_c_while_the_node_does_not_answer(make_node: MakeNode, program: StartProgram) -> None:
    node = make_node()
    running = program(GENERATING, node)
    running.said("token")
    node.process.pause()
    try:
        running.signal(signal.SIGINT)
        start = time.monotonic()
        status, _, err = running.ended()
        assert time.monotonic() - start < QUICK
        assert status in INTERRUPTED
        assert err.rstrip().endswith("KeyboardInterrupt")
    finally:
        node.process.signal(signal.SIGCONT)
    node.wait_for_sessions(0)
    next_run_is_fine(program, node)


# --- killed --------------------------------------------------------------------------------------


def test_killed_in_generation(node: Node, program: StartProgram) -> None:
    running = program(GENERATING, node)
    running.said("token")
    assert node.sessions() == 1
    running.signal(signal.SIGKILL)
    running.ended()
    node.wait_for_sessions(0)
    next_run_is_fine(program, node)


UPLOADING = """
    import sys, torch, genie, genie_pytorch
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.rand(8 << 20))  # 32 MB
    print("ready", flush=True)
    there = weight.to("remote_accelerator:0")
    print("equal", torch.equal(there.cpu(), weight), genie.get_stats()["bytes_sent"], flush=True)
"""


@pytest.fixture
def valve() -> Iterator[Callable[[Node, int], tuple[str, threading.Event]]]:
    """A way to a node that lets so many bytes up and then no more."""
    opened: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def make(node: Node, most: int) -> tuple[str, threading.Event]:
        listener = socket.create_server(("127.0.0.1", 0))
        opened.append(listener)
        full = threading.Event()
        host, _, port = node.address.rpartition(":")

        def pipe(source: socket.socket, target: socket.socket, limited: bool) -> None:
            passed = 0
            with suppress(OSError):
                while data := source.recv(1 << 16):
                    target.sendall(data)
                    passed += len(data)
                    if limited and passed >= most:
                        full.set()
                        while source.recv(1 << 16):  # dropped until the client is gone
                            pass
                        break
            for end in (source, target):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    server = socket.create_connection((host, int(port)), timeout=20)
                    opened.extend([client, server])
                    for args in ((client, server, True), (server, client, False)):
                        threads.append(threading.Thread(target=pipe, args=args, daemon=True))
                        threads[-1].start()

        threads.append(threading.Thread(target=accept, daemon=True))
        threads[-1].start()
        return f"127.0.0.1:{listener.getsockname()[1]}", full

    yield make
    for end in opened:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
    for thread in threads:
        thread.join(10)


def test_killed_while_uploading(
    make_node: MakeNode,
    program: StartProgram,
    valve: Callable[[Node, int], tuple[str, threading.Event]],
) -> None:
    node = make_node()
    before = node.resident
    address, full = valve(node, 18 * _MB)
    running = program(UPLOADING, GENIE_NODES=address, GENIE_UNIX_SOCKETS="false")
    running.said("ready")
    assert full.wait(30)
    assert node.sessions() == 1
    running.signal(signal.SIGKILL)
    running.ended()
    node.wait_for_sessions(0)
    # What came is kept, for a while, for whoever sends the same; nothing else is.
    assert node.resident - before < 40 * _MB

    running = program(UPLOADING, node)
    _, equal, sent = running.said("equal").split()
    assert equal == "True"
    assert int(sent) < 20 * _MB  # of 32: it went on where the other had come to
    running.ended()
    node.wait_for_sessions(0)


def test_the_node_is_killed_while_one_uploads(
    make_node: MakeNode,
    program: StartProgram,
    valve: Callable[[Node, int], tuple[str, threading.Event]],
) -> None:
    node = make_node()
    address, full = valve(node, 18 * _MB)
    running = program(UPLOADING, GENIE_NODES=address, GENIE_UNIX_SOCKETS="false")
    assert full.wait(30)
    node.stop()
    start = time.monotonic()
    status, out, err = running.ended()
    assert time.monotonic() - start < QUICK
    assert status == 1
    assert "equal" not in out
    last = err[err.rindex("genie.errors.") :]
    assert last.startswith("genie.errors.ConnectionLost:"), err
    assert address in last


def test_a_second_client_uploads_nothing(node: Node, program: StartProgram) -> None:
    source = """
        import torch, genie, genie_pytorch, tiny_lm
        torch.manual_seed(1)
        lm = tiny_lm.TinyLM(width=256, layers=4).eval()
        size = sum(p.nbytes for p in lm.parameters())
        expected = tiny_lm.generate(lm, count=4)
        lm.to("remote_accelerator")
        same = tiny_lm.generate(lm, count=4) == expected
        print("sent", size, genie.get_stats()["bytes_sent"], same, flush=True)
    """
    shares = []
    for _ in range(2):
        running = program(source, node)
        _, size, sent, same = running.said("sent").split()
        assert same == "True"
        assert running.ended() == (0, "", "")
        shares.append(int(sent) / int(size))
    assert shares[0] > 0.9
    assert shares[1] < 0.01, shares


# --- forked, and at the end ----------------------------------------------------------------------


def test_a_data_loader_with_workers(node: Node, program: StartProgram) -> None:
    source = """
        import torch, genie_pytorch
        from torch.utils.data import DataLoader, TensorDataset
        x = torch.arange(12.0).view(12, 1)
        there = torch.ones(1, device="remote_accelerator")
        assert there.item() == 1.0
        total = torch.zeros(1, device="remote_accelerator")
        for epoch in range(2):
            for (batch,) in DataLoader(TensorDataset(x), batch_size=3, num_workers=2):
                total += (batch.to("remote_accelerator") * there).sum()
        print("total", total.item(), flush=True)
    """
    running = program(source, node)
    assert running.said("total") == "total 132.0\n"
    assert running.ended() == (0, "", "")
    node.wait_for_sessions(0)


def test_a_forked_child(node: Node, program: StartProgram) -> None:
    """It may not use its parent's tensors, and is told; its parent goes on, whatever the child does."""
    source = """
        import os, torch, genie, genie_pytorch
        x = torch.ones(2, device="remote_accelerator")
        assert x.tolist() == [1.0, 1.0]
        child = os.fork()
        if child == 0:
            try:
                print("child", (x + 1).tolist(), flush=True)
            except genie.GenieError as error:
                print("child refused:", "fork" in str(error), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print("parent", (x + 1).tolist(), flush=True)
    """
    running = program(source, node)
    assert running.said("child") == "child refused: True\n"
    assert running.said("parent") == "parent [2.0, 2.0]\n"
    assert running.ended() == (0, "", "")


ENDINGS = {
    "pending": "",
    "in a cycle": """
    class Holder: pass
    holder = Holder(); holder.me = holder; holder.y = y
    """,
    "after shutdown": """
    genie.shutdown()
    """,
}


@pytest.mark.parametrize("last", ENDINGS.values(), ids=ENDINGS)
def test_the_end_is_quick_and_silent(node: Node, program: StartProgram, last: str) -> None:
    source = """
    import torch, genie, genie_pytorch
    x = torch.ones(64, 64, device="remote_accelerator")
    assert x.sum().item() == 4096
    y = x
    for _ in range(500):
        y = y @ x / 64
    print("end", flush=True)
    """
    running = program(textwrap.dedent(source) + textwrap.dedent(last), node)
    running.said("end")
    start = time.monotonic()
    assert running.ended() == (0, "", "")
    assert time.monotonic() - start < QUICK
    node.wait_for_sessions(0)


def test_the_end_with_the_node_gone(make_node: MakeNode, program: StartProgram) -> None:
    node = make_node()
    source = """
        import sys, torch, genie_pytorch
        x = torch.ones(2, device="remote_accelerator")
        assert x.tolist() == [1.0, 1.0]
        y = x + 1
        print("waiting", flush=True)
        import threading; threading.Event().wait(float(sys.argv[1]))
    """
    running = program(source, node, args=("1.0",))
    running.said("waiting")
    node.stop()
    assert running.ended() == (0, "", "")
