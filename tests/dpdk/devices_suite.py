"""Devices that can and can't be made: what fails is a clear error, and the process goes on."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from dpdk.pairs import SECONDS, joined

from genie.errors import BackendUnavailable, ConfigError, DeadlineExceeded, GenieError
from genie_backend_dpdk import DpdkTransport, _native, environment, listening, memif
from genie_backend_dpdk.polling import Polling

MOST_CONNECTIONS = 128  # of one link: 1 GB for windows of 8 MB


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not reached():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.001)


def test_what_dpdk_refuses() -> None:
    """The first test here, before DPDK has started; afterwards it starts."""
    with pytest.raises(BackendUnavailable, match="DPDK does not start here: EAL: "):
        environment.start(["--no-such-argument"])
    DpdkTransport().listen("127.0.0.1:0").close()


def test_a_port_of_ones_own() -> None:
    transport = DpdkTransport()
    listener = transport.listen("127.0.0.1:0")
    host, _, port = listener.address.rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0
    listener.close()


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ConfigError):
        DpdkTransport().listen(f"memif:{path}")
    assert path.read_text() == "data"


def test_links_come_and_go(tmp_path: Path) -> None:
    """Nothing is left of them: no descriptor, no thread, no packet's memory."""
    before: tuple[int, int] | None = None
    for number in range(6):
        transport = DpdkTransport(stall_timeout=SECONDS)
        listener = transport.listen(f"memif:{tmp_path / str(number)}")
        ends = joined(transport, listener)
        for each in (*ends, listener):
            each.close()
        del transport, listener, ends, each
        if number == 2:
            before = descriptors(), len(os.listdir("/proc/self/task"))
    assert before is not None
    until(lambda: (descriptors(), len(os.listdir("/proc/self/task"))) <= before)
    until(lambda: _native.frames_in_use() == 0)


def test_a_device_that_dpdk_refuses() -> None:
    """A ring that is too large for it; then one that is not."""
    DpdkTransport().listen("127.0.0.1:0").close()  # so that what there is once in a process is there
    before = descriptors()
    for _ in range(3):
        with pytest.raises(RuntimeError, match="DPDK makes no such device: "):
            _native.Port(
                device=environment.device_name("net_memif"),
                arguments="role=client,id=0,socket=/none/such,socket-abstract=no,rsize=99",
                control=-1,
                mss=1024,
                window=1 << 20,
                memory=1 << 20,
                spin_us=0,
                busy=False,
                deadline=1,
                queue_allowance=0.1,
            )
    until(lambda: descriptors() <= before)  # ports of tests before end meanwhile
    DpdkTransport().listen("127.0.0.1:0").close()


def test_no_memory_for_another_connection(tmp_path: Path) -> None:
    transport = DpdkTransport(stall_timeout=SECONDS)
    listener = transport.listen(f"memif:{tmp_path / 'node.sock'}")
    links = [transport.connect(listener.address, SECONDS) for _ in range(MOST_CONNECTIONS)]
    with pytest.raises(BackendUnavailable, match="no memory for another connection"):
        transport.connect(listener.address, SECONDS)
    accepted = [listener.accept(SECONDS) for _ in links]
    links.pop().close()
    accepted.pop().close()

    def room() -> bool:
        try:
            links.append(transport.connect(listener.address, SECONDS))
        except BackendUnavailable:
            return False
        return True

    until(room)
    for each in (*links, *accepted):
        each.close()
    listener.close()


def test_a_client_that_goes_while_it_is_joined(tmp_path: Path) -> None:
    """Or says nonsense: the node drops what it made for it, and serves the next."""
    transport = DpdkTransport(stall_timeout=SECONDS)
    path = str(tmp_path / "node.sock")
    listener = transport.listen(f"memif:{path}")
    for said in (b"", b"GET / HTTP/1.1\n\n", memif._HELLO[:5], memif._HELLO):
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(path)
            control.sendall(said)
            if said == memif._HELLO:
                assert control.recv(4096)
    for each in (*joined(transport, listener), listener):
        each.close()


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\n", b'{"device":1,"segment":1}\n', b'{"device":1,"segment":1400}\n']
)
def test_a_node_that_says_nonsense(tmp_path: Path, answer: bytes) -> None:
    before = descriptors()
    path = str(tmp_path / "node.sock")
    with socket.socket(socket.AF_UNIX) as door, ThreadPoolExecutor(1) as pool:
        door.bind(path)
        door.listen(1)
        environment.start()
        knocking = pool.submit(memif.knock, path, Polling(50, False), time.monotonic() + SECONDS, SECONDS)
        with door.accept()[0] as control:
            assert control.recv(4096)
            control.sendall(answer)
        with pytest.raises(GenieError):
            knocking.result(SECONDS)
    until(lambda: descriptors() <= before)  # ports of tests before end meanwhile


def test_a_node_that_does_not_come_to_an_end(tmp_path: Path) -> None:
    """With its answer: a byte now and then is none."""
    path = str(tmp_path / "node.sock")
    over = threading.Event()

    def answer(control: socket.socket) -> None:
        with control:
            while not over.wait(0.05):
                control.sendall(b"{")

    with socket.socket(socket.AF_UNIX) as door, ThreadPoolExecutor(2) as pool:
        door.bind(path)
        door.listen(1)
        connecting = pool.submit(DpdkTransport().connect, f"memif:{path}", 1.0)
        answering = pool.submit(answer, door.accept()[0])
        try:
            with pytest.raises(BackendUnavailable, match="no answer within 1 s"):
                connecting.result(SECONDS)
        finally:
            over.set()
        answering.exception(SECONDS)


def test_a_node_that_is_slow_keeps_nobody_from_another(tmp_path: Path) -> None:
    transport = DpdkTransport(stall_timeout=SECONDS)
    listener = transport.listen(f"memif:{tmp_path / 'node.sock'}")
    path = str(tmp_path / "slow.sock")
    with socket.socket(socket.AF_UNIX) as door, ThreadPoolExecutor(2) as pool:
        door.bind(path)
        door.listen(1)
        waits = pool.submit(transport.connect, f"memif:{path}", SECONDS)
        with door.accept()[0] as control:
            assert control.recv(4096)
            with pytest.raises(BackendUnavailable, match="no answer within"):
                transport.connect(f"memif:{path}", 0.05)
            ends = joined(transport, listener)
            assert not waits.done()
        with pytest.raises(BackendUnavailable):
            waits.result(SECONDS)
    for each in (*ends, listener):
        each.close()


def test_a_node_that_was_out_of_descriptors(tmp_path: Path) -> None:
    """It serves those who come when it has some again."""

    class Door(socket.socket):
        short = True

        def accept(self) -> tuple[socket.socket, Any]:
            if self.short:
                self.short = False
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return super().accept()

    transport = DpdkTransport(stall_timeout=SECONDS)
    path = str(tmp_path / "node.sock")
    door = Door(socket.AF_UNIX)
    door.bind(path)
    door.listen(1)
    polling = Polling(50, False)
    listener = listening.DoorListener(door, path, f"memif:{path}", transport._wrap, polling, SECONDS)
    for each in (*joined(transport, listener), listener):
        each.close()


def test_whom_a_port_tells_lives_as_long_as_it(tmp_path: Path) -> None:
    """Not only as long as somebody else has it, or the port."""
    transport = DpdkTransport(stall_timeout=SECONDS)
    listener = transport.listen(f"memif:{tmp_path / 'node.sock'}")
    client, node = joined(transport, listener)
    port, event = transport._links.pop(listener.address), _native.Event()
    port.listen(event)
    told = Path(f"/proc/self/fd/{event.fileno()}")
    del port, event
    assert told.readlink() == Path("anon_inode:[eventfd]")
    for each in (client, node, listener):
        each.close()
    del client, each
    until(lambda: not os.path.lexists(told))


def test_a_node_lets_go_of_links_whose_clients_are_gone(tmp_path: Path) -> None:
    """Also while nobody comes: each has a thread, and one of the few devices that DPDK makes."""
    listener = DpdkTransport(stall_timeout=SECONDS).listen(f"memif:{tmp_path / 'node.sock'}")
    before = len(os.listdir("/proc/self/task"))
    transports = [DpdkTransport(stall_timeout=SECONDS) for _ in range(3)]
    for each in [end for transport in transports for end in joined(transport, listener)]:
        each.close()
    del transports, each

    def gone() -> bool:
        with pytest.raises(DeadlineExceeded):
            listener.accept(0.01)
        return len(os.listdir("/proc/self/task")) <= before

    until(gone)
    listener.close()


def test_a_busy_port_rests_when_its_peer_is_gone(tmp_path: Path) -> None:
    transport = DpdkTransport(stall_timeout=SECONDS, busy=True)
    listener = DpdkTransport(stall_timeout=SECONDS).listen(f"memif:{tmp_path / 'node.sock'}")
    for each in (*joined(transport, listener), listener):
        each.close()
    del each
    (link,) = transport._links.values()
    until(lambda: link.gone)

    def idle() -> bool:
        used, start = time.process_time(), time.monotonic()
        time.sleep(0.2)
        return time.process_time() - used < 0.1 * (time.monotonic() - start)

    until(idle)
