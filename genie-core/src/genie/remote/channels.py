"""Values from node to node: what arrives waits in an inlet, what leaves goes through an outlet, in order."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from genie.errors import (
    ConnectionLost,
    DeadlineExceeded,
    GenieError,
    LimitExceeded,
    NodeError,
    OutOfMemory,
    ProtocolError,
)
from genie.host import HostValue, flat
from genie.interfaces import Connection, Transport
from genie.remote.greeting import meet
from genie.remote.identity import host_identity
from genie.remote.memory import room
from genie.wire import Kind, Limits, frames, messages
from genie.wire.channels import Target

log = structlog.get_logger("genie.node")

FEW = 4096  # bytes that travel within a record
_MOST = 256  # inlets, and outlets, of a session
_CONNECT_SECONDS = 10.0
_ARRIVE_SECONDS = 600.0  # a sender may compute for long; one that is gone is noticed at once
_WAITING_BYTES = 256 << 20  # that an inlet takes before it is asked for; the rest waits at the sender
_WAITING_VALUES = 1 << 12


class Inlet:
    """The receiving end. One thread pumps, another takes."""

    def __init__(self, source: str, limits: Limits) -> None:
        self.source = source
        self._limits = limits
        self._changed = threading.Condition()
        self._arrived: dict[int, HostValue | GenieError] = {}  # by position
        self._bytes = 0
        self._wanted = False  # somebody waits for what has not arrived
        self._connected = False
        self._ended: GenieError | None = None
        self._connection: Connection | None = None

    def pump(self, connection: Connection) -> None:
        """Take what the sender sends until one side ends it; does not raise."""
        with self._changed:
            self._connected, self._connection = True, connection
            self._changed.notify_all()
        position = 0
        try:
            while self._ended is None:
                message = connection.receive(self._memory, None)
                seq, kind, body = frames.single(message.header)
                if not message.buffers:
                    self._make_way(len(body))
                if seq != (position + 1) & frames.SEQ_MASK:
                    raise ProtocolError(f"message {seq} arrived where {position + 1} was due")
                self._add(position, self._value(kind, body, message.buffers[0] if message.buffers else None))
                position += 1
        except GenieError as error:
            self.end(ConnectionLost(f"{self.source} stopped sending: {error.message}", where=self.source))
        except MemoryError as error:
            self.end(OutOfMemory(f"no memory for a value of {self.source}: {error}", kind="MemoryError"))
        finally:
            connection.close()

    def _memory(self, header: bytes, sizes: Sequence[int]) -> Sequence[memoryview]:
        _, kind, body = frames.single(header)
        (size,) = sizes
        spec, few = messages.get_result(body)
        if kind != Kind.VALUE or len(few) or messages.spec_bytes(messages.get_spec(spec), self._limits) != size:
            raise ProtocolError(f"{size} bytes of data that were not announced")
        self._make_way(size)
        return [room(size)]

    def _make_way(self, size: int) -> None:
        """Wait until there is room for so much more. However much waits already, what somebody waits for must get
        through."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._ended
                    or self._wanted
                    or not self._arrived
                    or (self._bytes + size <= _WAITING_BYTES and len(self._arrived) < _WAITING_VALUES)
                )
            )

    def _value(self, kind: int, body: memoryview, data: object) -> HostValue | GenieError:
        if kind == Kind.ERROR:
            return messages.get_error(body, self.source)
        if kind != Kind.VALUE:
            raise ProtocolError(f"record kind {kind} came through a channel")
        head, few = messages.get_result(body)
        spec = messages.get_spec(head)
        bytes_ = few if data is None else flat(data)  # type: ignore[arg-type]
        if messages.spec_bytes(spec, self._limits) != len(bytes_):
            raise ProtocolError("a value of another size than it says")
        return HostValue(spec, bytes_)

    def _add(self, position: int, arrived: HostValue | GenieError) -> None:
        with self._changed:
            self._arrived[position] = arrived
            if isinstance(arrived, HostValue):
                self._bytes += len(arrived.data)
            self._changed.notify_all()

    def take(self, position: int) -> HostValue:
        """The value sent at ``position``; the sender's error if that is what came. Raises :class:`ConnectionLost` for
        a sender that is gone, :class:`DeadlineExceeded` for one that never came or sends nothing."""
        started = time.monotonic()
        with self._changed:
            self._wanted = position not in self._arrived
            self._changed.notify_all()
            try:
                self._wait(position, started)
            finally:
                self._wanted = False
            arrived = self._arrived.pop(position)
            if isinstance(arrived, HostValue):
                self._bytes -= len(arrived.data)
            self._changed.notify_all()
        if isinstance(arrived, GenieError):
            raise arrived
        return arrived

    def _wait(self, position: int, started: float) -> None:
        if not self._changed.wait_for(lambda: self._connected or self._ended, 3 * _CONNECT_SECONDS):
            raise DeadlineExceeded(
                f"{self.source} did not connect within {3 * _CONNECT_SECONDS:g} s",
                where=self.source,
                hint="nodes send each other values directly: each must reach the others' data ports",
            )
        left = _ARRIVE_SECONDS - (time.monotonic() - started)
        if not self._changed.wait_for(lambda: position in self._arrived or self._ended, left):
            raise DeadlineExceeded(f"{self.source} sent nothing for {_ARRIVE_SECONDS:g} s", where=self.source)
        if position not in self._arrived:
            assert self._ended is not None
            raise self._ended

    def end(self, reason: GenieError) -> None:
        with self._changed:
            self._ended = self._ended or reason
            connection, self._connection = self._connection, None
            self._changed.notify_all()
        if connection is not None:
            connection.close()


class Inlets:
    """A node's open inlets that nobody has connected to yet, by token. A token opens one, once."""

    def __init__(self, limits: Limits) -> None:
        self.local_address = ""
        self._limits = limits
        self._lock = threading.Lock()
        self._waiting: dict[str, Inlet] = {}

    def open(self, source: str) -> tuple[Target, Inlet]:
        inlet, token = Inlet(source, self._limits), secrets.token_hex(16)
        with self._lock:
            self._waiting[token] = inlet
        return Target(token=token, host=host_identity(), local_address=self.local_address), inlet

    def claim(self, token: str) -> Inlet:
        with self._lock:
            inlet = self._waiting.pop(token, None)
        if inlet is None:
            raise NodeError("there is no such channel", hint="it was connected already, or its session ended")
        return inlet

    def drop(self, inlet: Inlet) -> None:
        with self._lock:
            for token in [token for token, waiting in self._waiting.items() if waiting is inlet]:
                del self._waiting[token]
        inlet.end(ConnectionLost("the session ended", where=inlet.source))


class Outlet:
    """The sending end: a thread of its own, so that computing goes on while values travel."""

    def __init__(self, transport: Transport, target: Target) -> None:
        self._transport = transport
        self._target = target
        self._changed = threading.Condition()
        self._waiting: deque[HostValue | GenieError] = deque()
        self._ended = False
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="genie-outlet", daemon=True)
        self._thread.start()

    def put(self, value: HostValue | GenieError) -> None:
        """Queue it. Its memory must not change until it is sent."""
        with self._changed:
            if not self._ended:  # else the receiver's session is gone, and its client knows
                self._waiting.append(value)
                self._changed.notify_all()

    def _run(self) -> None:
        try:
            connection = self._connect()
            with self._changed:
                self._connection = connection
            seq = 0
            while (value := self._next()) is not None:
                seq = (seq + 1) & frames.SEQ_MASK
                _send(connection, seq, value)
        except GenieError as error:
            log.warning("channel broke", target=self._target.address, reason=error.message)
        finally:
            self._end()

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

    def _end(self) -> None:
        with self._changed:
            self._ended = True
            self._waiting.clear()
            connection, self._connection = self._connection, None
            self._changed.notify_all()
        if connection is not None:
            connection.close()

    def close(self) -> None:
        self._end()
        self._thread.join(timeout=2 * _CONNECT_SECONDS)


def _send(connection: Connection, seq: int, value: HostValue | GenieError) -> None:
    if isinstance(value, GenieError):
        connection.send(frames.one(seq, Kind.ERROR, messages.put_error(value)))
        return
    data = flat(value.data)
    if len(data) <= FEW:
        connection.send(frames.one(seq, Kind.VALUE, messages.put_result(value.spec, data)))
    else:
        connection.send(frames.one(seq, Kind.VALUE, messages.put_result(value.spec), len(data)), (data,))


class Channels:
    """One session's ends of channels, by the numbers its client gave them."""

    def __init__(self, inlets: Inlets, transport: Transport) -> None:
        self._registry = inlets
        self._transport = transport
        self._inlets: dict[int, Inlet] = {}
        self._outlets: dict[int, Outlet] = {}

    def open(self, number: int, source: str) -> Target:
        self._check_new(number, self._inlets, "inlet")
        target, self._inlets[number] = self._registry.open(source)
        return target

    def connect(self, number: int, target: Target) -> None:
        self._check_new(number, self._outlets, "outlet")
        self._outlets[number] = Outlet(self._transport, target)

    def send(self, number: int, look: Callable[[], HostValue]) -> None:
        """What ``look`` gives, or raises, goes to the receiver."""
        if number not in self._outlets:
            raise ProtocolError(f"outlet {number} was never connected")
        try:
            value: HostValue | GenieError = look()
        except GenieError as error:
            value = error
        self._outlets[number].put(value)

    def receive(self, number: int, position: int) -> HostValue:
        if number not in self._inlets:
            raise ProtocolError(f"inlet {number} was never opened")
        return self._inlets[number].take(position)

    def close(self) -> None:
        for inlet in self._inlets.values():
            self._registry.drop(inlet)
        for outlet in self._outlets.values():
            outlet.close()

    def interrupt(self) -> None:
        """From any thread: whoever waits for a value waits no longer."""
        for inlet in list(self._inlets.values()):
            inlet.end(ConnectionLost("the session is over", where=inlet.source))

    @staticmethod
    def _check_new(number: int, table: dict[int, Inlet] | dict[int, Outlet], what: str) -> None:
        if number in table:
            raise ProtocolError(f"{what} {number} is there already")
        if len(table) >= _MOST:
            raise LimitExceeded(f"a session has at most {_MOST} {what}s")
