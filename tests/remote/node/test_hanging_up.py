"""A client that hangs up while its session answers: the session's thread and the node's watch both notice."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from genie.errors import ConnectionLost
from genie.remote.node.session.lasting import Lasting
from genie.wire import Allocate, Dialogue, Kind, Message, frames

_SECONDS = 10.0


class _Gone:
    """A connection whose client hung up, when it had said three things. It is read by one thread at a time."""

    def __init__(self) -> None:
        self.read = threading.Event()
        self.one_at_a_time = True
        self._left = deque(frames.one(seq, Kind.SYNC) for seq in (1, 2, 3))
        self._second = threading.Event()
        self._reading = 0

    def hung_up(self) -> bool:
        return True

    def send(self, header: object, buffers: object = ()) -> None:
        raise ConnectionLost("the connection broke")

    def receive(self, allocate: Allocate, timeout: float | None = None) -> Message:
        self._reading += 1
        self.read.set()
        try:
            if self._reading > 1:
                self.one_at_a_time = False
                self._second.set()
            self._second.wait(0.1)
            if not self._left:
                raise ConnectionLost("the peer closed the connection")
            return frames.Message(self._left.popleft(), [])
        finally:
            self._reading -= 1

    def close(self) -> None:
        pass


def _unwanted(header: bytes, sizes: object) -> list[memoryview]:
    raise AssertionError("no data is due")


def test_one_of_them_reads_what_it_had_said() -> None:
    connection = _Gone()
    lasting = Lasting(connection, Dialogue(client=False), "1", lease=60.0)
    with ThreadPoolExecutor(1) as pool:
        watch = pool.submit(lasting.hung_up)
        assert connection.read.wait(_SECONDS)
        lasting.send(frames.one(0, Kind.DONE))
        assert watch.result(_SECONDS) is False  # it may come back
    assert connection.one_at_a_time
    assert lasting.away
    assert [frames.sequence(lasting.receive(_unwanted).header) for _ in range(3)] == [1, 2, 3]
