"""Ctrl-C while a message is being sent: it goes out whole, then the program gets its KeyboardInterrupt."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType

import msgspec
import pytest

from genie.errors import ConnectionLost
from genie.graph import Graph, Input, Ref
from genie.remote import NodeServer, RemoteBackend, RemoteSession
from genie.testing import Caller, NullBackend
from genie.testing.plans import node, pack, spec
from genie_backend_tcp import TcpTransport
from genie_backend_tcp.transport import TcpConnection

DEADLINE = 20.0
NARROW = 1 << 13  # bytes the sockets take before a sender has to wait
COUNT = 1 << 17  # of a value: 512 KiB
FEW = 1 << 12  # of one that goes with others


class Narrow(TcpTransport):
    def wrap(self, sock: socket.socket, peer: str) -> TcpConnection:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, NARROW)
        return super().wrap(sock, peer)


class Gate:
    """Between a client and a node. Shut, it lets ``NARROW`` bytes more through, sends this process a SIGINT while the
    client is in the midst of a message, and reads on when it is opened."""

    def __init__(self, address: str) -> None:
        self.opened = threading.Event()
        self.opened.set()
        self.struck = threading.Event()
        self._signals = 0
        self._aiming = threading.Lock()
        self._armed = False
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.address = "127.0.0.1:{1}".format(*self._listener.getsockname())
        self._host, _, self._port = address.rpartition(":")
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def shut(self, signals: int) -> None:
        self._signals = signals
        self._armed = True
        self.opened.clear()

    def disarm(self) -> None:
        """No signal comes after this: whoever has it would get it instead."""
        with self._aiming:
            self._armed = False
        os.getppid()  # one that is on its way comes before a call into the kernel returns

    def _serve(self) -> None:
        """The first connection has the gate; others pass."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection((self._host, int(self._port)), DEADLINE)
                self._ends += [client, server]
                for ends in ((server, client), (client, server)):
                    self._threads.append(threading.Thread(target=self._pass, args=ends))
                    self._threads[-1].start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(NARROW):
                if source is self._ends[0] and not self.opened.is_set():
                    for _ in range(self._signals):
                        self._strike()
                    self._signals = 0
                    self.opened.wait(DEADLINE)
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _strike(self) -> None:
        """A signal that comes just before a call into the kernel does not end that call; the next one does."""
        self.struck.clear()
        deadline = time.monotonic() + DEADLINE
        while not self.struck.is_set():
            assert time.monotonic() < deadline, "never struck"
            with self._aiming:
                if not self._armed:
                    return
                os.kill(os.getpid(), signal.SIGINT)
            self.struck.wait(0.1)

    def close(self) -> None:
        self.opened.set()
        for each in (self._listener, *self._ends):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()


class World:
    def __init__(self, stall: float, resumes: bool) -> None:
        self._server = NodeServer(NullBackend(), TcpTransport(stall_timeout=DEADLINE), "127.0.0.1:0", local=False)
        self._server.start()
        self.gate = Gate(self._server.address)
        transport = Narrow(stall_timeout=stall)
        self._backend = RemoteBackend(
            "tcp", transport, (self.gate.address,), timeout=DEADLINE, shortcut=False, resumes=resumes
        )
        (device,) = self._server.devices
        session = self._backend.connect(msgspec.structs.replace(device, address=self.gate.address))
        assert isinstance(session, RemoteSession)
        self.session = session
        self.caller = Caller(session)

    def interrupted(self, work: Callable[[], object], strikes: int = 1, opens: bool = True) -> None:
        """Do ``work``, which a SIGINT finds in the midst of sending."""

        def strike(number: int, frame: FrameType | None) -> None:
            nonlocal left
            if not left:  # one too many
                return
            left -= 1
            if not left and opens:
                self.gate.opened.set()
            self.gate.struck.set()
            raise KeyboardInterrupt

        left = strikes
        before = signal.signal(signal.SIGINT, strike)
        try:
            self.gate.shut(strikes)
            with pytest.raises(KeyboardInterrupt):
                work()
        finally:
            self.gate.disarm()
            signal.signal(signal.SIGINT, before)
        assert left == 0

    def close(self) -> None:
        self.gate.opened.set()
        self._backend.close()
        self.gate.close()
        self._server.close()


@pytest.fixture(params=[True, False], ids=["lease", "no lease"])
def lease(request: pytest.FixtureRequest) -> bool:
    """Whether the client comes back when its connection breaks."""
    return bool(request.param)


@pytest.fixture
def start() -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(stall: float = DEADLINE, *, resumes: bool = True) -> World:
        made.append(World(stall, resumes))
        return made[-1]

    yield make
    for each in made:
        each.close()


def ones(count: int = COUNT) -> list[float]:
    return [1.0] * count


def chain(count: int) -> Graph:
    """So many negations."""
    steps = tuple(node(i, "aten::neg", [Ref(i)], [i + 1]) for i in range(count))
    return Graph((spec(4),) * (count + 1), (Input(0),), steps, (count,))


@pytest.mark.parametrize("strikes", [1, 2])
def test_a_value_that_is_sent_arrives_whole(start: Callable[..., World], lease: bool, strikes: int) -> None:
    world = start(resumes=lease)
    caller = world.caller
    before = caller.put([3.0] * 4)
    world.session.synchronize()
    handle = caller.handles()
    world.interrupted(lambda: world.session.upload(handle, spec(COUNT), pack(ones())), strikes)
    assert caller.get(handle) == ones()
    assert caller.get(before) == [3.0] * 4
    assert caller.get(caller.put([2.0] * COUNT)) == [2.0] * COUNT


def test_contents_arrive_whole(start: Callable[..., World], lease: bool) -> None:
    """Interrupted, an upload by content may be done again."""
    world = start(resumes=lease)
    caller = world.caller
    world.session.synchronize()
    world.interrupted(lambda: caller.put(ones(), shared=True))
    assert caller.get(caller.put(ones(), shared=True)) == ones()


def test_a_plan_has_the_number_the_node_gives_it(start: Callable[..., World], lease: bool) -> None:
    world = start(resumes=lease)
    caller = world.caller
    value = caller.put([1.0] * 4)
    world.session.synchronize()
    world.interrupted(lambda: caller.load(chain(3000)))
    assert caller.get(caller.run(chain(3001), [value])) == [-1.0] * 4
    assert caller.get(caller.run(chain(3000), [value])) == [1.0] * 4
    assert world.session.traffic["plans_sent"] == 2


def test_what_went_along_is_not_sent_again(start: Callable[..., World], lease: bool) -> None:
    """The answer to the question is dropped when it comes."""
    world = start(resumes=lease)
    caller = world.caller
    world.session.synchronize()
    handles = [caller.put(ones(FEW)) for _ in range(12)]
    world.interrupted(lambda: caller.get(handles[0]))
    for handle in handles:
        assert caller.get(handle) == ones(FEW)
    assert world.session.stats()["values"] == len(handles)


def test_what_cannot_be_finished_ends_the_session(start: Callable[..., World]) -> None:
    """Where it is not kept for a client that comes back."""
    world = start(stall=0.3, resumes=False)
    world.session.synchronize()
    world.interrupted(lambda: world.caller.put(ones()), opens=False)
    with pytest.raises(ConnectionLost, match="the session is over: .*took (nothing|.* bytes of a message)"):
        world.session.synchronize()


def test_what_cannot_be_finished_goes_over_another_connection(start: Callable[..., World]) -> None:
    """Where the session is kept for a client that comes back."""
    world = start(stall=0.3)
    caller = world.caller
    before = caller.put([3.0] * 4)
    world.session.synchronize()
    handle = caller.handles()
    world.interrupted(lambda: world.session.upload(handle, spec(COUNT), pack(ones())), opens=False)
    assert caller.get(handle) == ones()
    assert caller.get(before) == [3.0] * 4
    assert not world.gate.opened.is_set()
