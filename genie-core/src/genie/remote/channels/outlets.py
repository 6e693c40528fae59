"""What a session of this node sends to others': queued, bounded, while the session goes on computing."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable

import structlog

from genie.errors import DeadlineExceeded, GenieError, NodeError, RemoteOpError, Stage
from genie.host import HostValue, flat
from genie.interfaces import Connection, Transport
from genie.remote.greeting import meet
from genie.remote.identity import host_identity
from genie.wire import Kind, frames, messages
from genie.wire.channels import Target

log = structlog.get_logger("genie.node")

FEW = 4096  # bytes that travel within a record
_CONNECT_SECONDS = 10.0
_QUEUED_BYTES = 256 << 20  # of values that wait to be sent; then the session waits
_QUEUED_SECONDS = 600.0  # … for so long: the receiver may compute meanwhile
_LOOK_SECONDS = 0.5  # between two looks whether the client is still there
_LEAST_BYTES = 1024  # that a queued value counts: it is more than its data


class Outlet:
    """The sending end of a channel: a thread of its own, so that computing goes on while values travel."""

    def __init__(
        self, transport: Transport, target: Target, node: str, told: Callable[[GenieError], None] | None = None
    ) -> None:
        self._told = told  # why nothing can be sent, if that is not the receiver's doing
        self._transport = transport
        self._target = target
        self._node = node
        self._changed = threading.Condition()
        self._waiting: deque[HostValue | GenieError] = deque()
        self._bytes = 0  # of these, and of what is being sent
        self._ended = False
        self._stuck: DeadlineExceeded | None = None  # why it ended, if the session was not told yet
        self._connection: Connection | None = None
        self._failure: GenieError | None = None  # why it could not be connected
        self._tried = threading.Event()  # to connect, with whatever result
        self._thread = threading.Thread(target=self._run, name="genie-outlet", daemon=True)
        self._thread.start()

    def put(self, value: HostValue | GenieError, gone: Callable[[], bool]) -> None:
        """Queue it; its memory must not change until it is sent. Waits while the queue is full, unless the client is
        ``gone``. Raises :class:`DeadlineExceeded`, once, when the receiver took nothing for too long: the channel is
        over then, which the receiver is told, and later values are dropped."""
        size = _size(value)
        started = looked = time.monotonic()
        with self._changed:
            while not self._ended and self._bytes and self._bytes + size > _QUEUED_BYTES:
                now = time.monotonic()
                if now - started >= _QUEUED_SECONDS:
                    self._stuck = self._late(now - started)
                    break
                if now - looked >= _LOOK_SECONDS:
                    if gone():
                        return
                    looked = now
                self._changed.wait(max(min(_LOOK_SECONDS, started + _QUEUED_SECONDS - now), 0.0))
            stuck, self._stuck = self._stuck, None
            if stuck is None and not self._ended:  # else the receiver's session is gone, and its client knows
                self._waiting.append(value)
                self._bytes += size
                self._changed.notify_all()
        if stuck is not None:
            self.end()
            raise stuck

    def _late(self, seconds: float) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{self._node} could not send to {self._target.address}, which took nothing for {seconds:.3g} s; "
            f"{self._bytes} bytes wait",
            stage=Stage.TRANSFER,
            seconds=seconds,
            where=self._target.address,
            hint="the receiver computes for longer than that, or hangs: see its log; what it was sent is lost there",
        )

    def _run(self) -> None:
        try:
            try:
                connection = self._connect()
            except GenieError as error:
                self._cannot(error)
                raise
            finally:
                self._tried.set()
            with self._changed:
                self._connection = connection
            seq = 0
            while (value := self._next()) is not None:
                seq = (seq + 1) & frames.SEQ_MASK
                started = time.monotonic()
                try:
                    _send(connection, seq, value)
                except DeadlineExceeded:
                    with self._changed:
                        self._stuck = self._late(time.monotonic() - started)
                    raise
                with self._changed:
                    self._bytes -= _size(value)
                    self._changed.notify_all()
        except GenieError as error:
            log.warning("channel broke", target=self._target.address, reason=error.message)
        finally:
            self.end()

    def _cannot(self, error: GenieError) -> None:
        with self._changed:
            wanted = not self._ended
        # A node that refuses says that the receiver's session is gone: its client knows.
        if wanted and self._told is not None and not isinstance(error, NodeError):
            self._failure = RemoteOpError(
                f"{self._node} could not connect to {self._target.address}, to send: {error.message}",
                kind=type(error).__name__,
                where=self._target.address,
                hint=error.hint,
            )
            self._told(self._failure)

    def _connect(self) -> Connection:
        target = self._target
        if target.local_address and target.host and target.host == host_identity():
            with contextlib.suppress(GenieError):  # another mount namespace: the long way still works
                return self._meet(target.local_address)
        return self._meet(target.address)

    def _meet(self, address: str) -> Connection:
        return meet(self._transport, address, -1, _CONNECT_SECONDS, channel=self._target.token).connection

    def _next(self) -> HostValue | GenieError | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            return None if self._ended else self._waiting.popleft()

    def settle(self) -> GenieError | None:
        """Wait until it is connected, or known that it cannot be: why, said once."""
        self._tried.wait(2 * _CONNECT_SECONDS)
        with self._changed:
            failure, self._failure = self._failure, None
        return failure

    def end(self) -> None:
        """From any thread: nothing is sent any more, and nobody waits."""
        with self._changed:
            self._ended = True
            self._waiting.clear()
            connection, self._connection = self._connection, None
            self._changed.notify_all()
        if connection is not None:
            connection.close()

    def close(self) -> None:
        self.end()
        self._thread.join(timeout=2 * _CONNECT_SECONDS)


def _size(value: HostValue | GenieError) -> int:
    return max(flat(value.data).nbytes if isinstance(value, HostValue) else 0, _LEAST_BYTES)


def _send(connection: Connection, seq: int, value: HostValue | GenieError) -> None:
    if isinstance(value, GenieError):
        connection.send(frames.one(seq, Kind.ERROR, messages.put_error(value)))
        return
    data = flat(value.data)
    if len(data) <= FEW:
        connection.send(frames.one(seq, Kind.VALUE, messages.put_result(value.spec, data)))
    else:
        connection.send(frames.one(seq, Kind.VALUE, messages.put_result(value.spec), len(data)), (data,))
