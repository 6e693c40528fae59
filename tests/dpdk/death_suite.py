"""A process at one end is killed in the middle of a transfer: the other end says so, and goes on with others."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from genie.errors import ConnectionLost

pytest.importorskip("genie_backend_dpdk", reason="genie-backend-dpdk is not installed: it needs DPDK")

from dpdk.peer import SIZE, header

from genie_backend_dpdk import DpdkTransport, _native

POINTS = 20 if os.environ.get("GENIE_TEST_FULL") else 4
NOTICED_SECONDS = 10.0


@contextmanager
def peer(role: str, address: str, work: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(__file__).with_name("peer.py")), role, address, work]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


def fresh(header: bytes, sizes: Sequence[int]) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


@pytest.mark.parametrize("point", range(POINTS))
@pytest.mark.parametrize("work", ["receive", "send"])
def test_a_node_that_is_killed(tmp_path: Path, work: str, point: int) -> None:
    transport = DpdkTransport(stall_timeout=NOTICED_SECONDS)
    with peer("listen", f"memif:{tmp_path / 'node.sock'}", work) as node:
        assert node.stdout is not None
        connection = transport.connect(node.stdout.readline().strip(), 30.0)
        data = bytes(SIZE)
        when = random.Random(point).uniform(0, 0.05)
        start = time.monotonic()
        killed = None
        with pytest.raises(ConnectionLost):
            for seq in range(100_000):
                if killed is None and time.monotonic() - start > when:
                    node.kill()
                    killed = time.monotonic()
                if work == "receive":
                    connection.send(header(seq), (data,))
                else:
                    connection.receive(fresh, NOTICED_SECONDS)
        assert killed is not None
        assert time.monotonic() - killed < NOTICED_SECONDS
        connection.close()


@pytest.mark.parametrize("work", ["receive", "send"])
def test_a_client_that_is_killed(tmp_path: Path, work: str) -> None:
    """And the next one is served, at the same address."""
    transport = DpdkTransport(stall_timeout=NOTICED_SECONDS)
    listener = transport.listen(f"memif:{tmp_path / 'node.sock'}")
    data = bytes(SIZE)
    for point in range(max(POINTS // 2, 2)):
        with peer("connect", listener.address, work) as client:
            connection = listener.accept(30.0)
            end = threading.Timer(random.Random(point).uniform(0, 0.05), client.kill)
            end.start()
            with pytest.raises(ConnectionLost):
                for seq in count():
                    if work == "receive":
                        connection.send(header(seq), (data,))
                    else:
                        connection.receive(fresh, NOTICED_SECONDS)
            end.join()
            connection.close()
    listener.close()


def test_nothing_is_left_of_them() -> None:
    """Of those that were killed in the tests before."""
    deadline = time.monotonic() + NOTICED_SECONDS
    while _native.frames_in_use():
        assert time.monotonic() < deadline, "packets are still held"
        time.sleep(0.01)
