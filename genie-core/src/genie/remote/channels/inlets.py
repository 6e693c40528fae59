"""What other nodes send to a session of this one: it waits in an inlet until the session's work comes to it."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence

import attrs

from genie.device import Device
from genie.errors import (
    ConnectionLost,
    DeadlineExceeded,
    GenieError,
    NodeError,
    OutOfMemory,
    ProtocolError,
    RemoteOpError,
    Stage,
)
from genie.graph import TensorSpec
from genie.host import HostValue, flat
from genie.interfaces import Connection
from genie.remote.identity import host_identity
from genie.remote.memory import room
from genie.wire import Kind, Limits, frames, messages
from genie.wire.channels import Target

_CONNECT_SECONDS = 30.0  # for a sender to come
_ARRIVE_SECONDS = 600.0  # a sender may compute for long; one that is gone is noticed at once
_UNCLAIMED_BYTES = 256 << 20  # that a session's inlets take before they are asked for; the rest waits at the senders
_UNCLAIMED_VALUES = 1 << 12
_LOOK_SECONDS = 0.5  # between two looks whether the client is still there

Memory = Callable[[TensorSpec, int], memoryview]  # of a value of so many bytes; raises where there is none


@attrs.define(eq=False)
class _Request:
    """What is on its way and waited for: the session's thread has the memory for it."""

    spec: TensorSpec
    size: int
    memory: memoryview | None = None
    refusal: GenieError | MemoryError | None = None


class _Refused(Exception):
    """There is no memory for the value; its data is skipped."""

    def __init__(self, error: GenieError) -> None:
        super().__init__(error.message)
        self.error = error


class Arrivals:
    """What has arrived for one session on ``device`` and was not taken yet, by all inlets together."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.changed = threading.Condition()
        self.bytes = 0
        self.values = 0
        self.waited_for = False  # the session waits for something that has not arrived

    def takes(self, size: int) -> bool:
        """Whether so much more may come. While the session waits, it may be all that the device holds: what it waits
        for may depend on a sender that waits to be rid of something else."""
        if not self.values:
            return True
        if self.waited_for:
            return self.bytes + size <= self.device.memory_bytes
        return self.bytes + size <= _UNCLAIMED_BYTES and self.values < _UNCLAIMED_VALUES

    def reserve(self, size: int) -> None:
        has = self.device.memory_bytes
        if self.bytes + size > has:
            raise OutOfMemory(
                f"a value of {size} bytes does not fit: the device has memory for {has}, and {self.bytes} bytes wait "
                "to be used there",
                device=self.device.id,
                kind="OutOfMemory",
            )
        self.bytes += size
        self.values += 1

    def release(self, size: int) -> None:
        self.bytes -= size
        self.values -= 1


class Inlet:
    """The receiving end of a channel. One thread pumps, another takes."""

    def __init__(self, source: str, limits: Limits, arrivals: Arrivals) -> None:
        self.source = source
        self._limits = limits
        self._arrivals = arrivals
        self._changed = arrivals.changed
        self._arrived: dict[int, tuple[HostValue | GenieError, int]] = {}  # by position; and bytes reserved for it
        self._due = 0  # the position that arrives next
        self._reserved = -1  # bytes for what is arriving; none: -1
        self._wanted = -1  # the position that is waited for
        self._request: _Request | None = None
        self._connected = False
        self._ended: GenieError | None = None
        self._connection: Connection | None = None

    # --- the pump's side ------------------------------------------------------------------------------

    def pump(self, connection: Connection) -> None:
        """Take what the sender sends until one side ends it; does not raise."""
        with self._changed:
            self._connected, self._connection = True, connection
            self._changed.notify_all()
        try:
            while self._ended is None:
                self._one(connection)
        except GenieError as error:
            self.end(ConnectionLost(f"{self.source} stopped sending: {error.message}", where=self.source))
        except MemoryError as error:
            self.end(OutOfMemory(f"no memory for a value of {self.source}: {error}", kind="MemoryError"))
        finally:
            with self._changed:
                self._release_reserved()
            connection.close()

    def _one(self, connection: Connection) -> None:
        """A call of its own: nothing here refers to a value once the session has it."""
        try:
            message = connection.receive(self._memory, None)
            seq, kind, body = frames.single(message.header)
            self._check_turn(seq)
            if not message.buffers:
                self._admit(len(body))
            arrived = self._value(kind, body, message.buffers[0] if message.buffers else None)
        except _Refused as refused:
            arrived = refused.error
        self._add(arrived)

    def _check_turn(self, seq: int) -> None:
        if seq != (self._due + 1) & frames.SEQ_MASK:
            raise ProtocolError(f"message {seq} arrived where {self._due + 1} was due")

    def _memory(self, header: bytes, sizes: Sequence[int]) -> Sequence[memoryview]:
        seq, kind, body = frames.single(header)
        self._check_turn(seq)
        (size,) = sizes
        head, few = messages.get_result(body)
        spec = messages.get_spec(head)
        if kind != Kind.VALUE or len(few) or messages.spec_bytes(spec, self._limits) != size:
            raise ProtocolError(f"{size} bytes of data that were not announced")
        memory = self._asked_for(spec, size)
        if memory is None:
            self._admit(size)
            memory = room(size)
        return [memory]

    def _asked_for(self, spec: TensorSpec, size: int) -> memoryview | None:
        """The memory where the session wants it, if it waits for just this. Raises :class:`_Refused` where it has
        none."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._wanted >= 0 or self._arrivals.takes(size))
            if self._ended is not None or self._wanted != self._due:
                return None
            request = self._request = _Request(spec, size)
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._ended or request.memory is not None or request.refusal or self._request is not request
            )
            if request.refusal is not None:
                error = request.refusal
                if not isinstance(error, GenieError):
                    message = f"no memory for a value of {size} bytes: {error}"
                    error = OutOfMemory(message, device=self._arrivals.device.id, kind="MemoryError")
                raise _Refused(error)
            return request.memory  # none if nobody waits any more

    def _admit(self, size: int) -> None:
        """Wait until so much may come before it is asked for, and count it; what comes before something that is waited
        for must get through. Raises :class:`_Refused` for what the device could not hold."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._wanted >= 0 or self._arrivals.takes(size))
            if self._ended is not None:
                raise self._ended
            try:
                self._arrivals.reserve(size)
            except OutOfMemory as error:
                raise _Refused(error) from error
            self._reserved = size

    def _value(self, kind: int, body: memoryview, data: object) -> HostValue | GenieError:
        if kind == Kind.ERROR:
            error = messages.get_error(body, self.source)
            if isinstance(error, RemoteOpError) and not error.device:
                error.device = self.source  # the sender does not know what its client calls it
            return error
        if kind != Kind.VALUE:
            raise ProtocolError(f"record kind {kind} came through a channel")
        head, few = messages.get_result(body)
        spec = messages.get_spec(head)
        bytes_ = few if data is None else flat(data)  # type: ignore[arg-type]
        if messages.spec_bytes(spec, self._limits) != len(bytes_):
            raise ProtocolError("a value of another size than it says")
        return HostValue(spec, bytes_)

    def _add(self, arrived: HostValue | GenieError) -> None:
        with self._changed:
            self._arrived[self._due] = (arrived, self._reserved)
            self._due += 1
            self._reserved = -1
            self._changed.notify_all()

    def _release_reserved(self) -> None:
        if self._reserved >= 0:
            self._arrivals.release(self._reserved)
            self._reserved = -1
            self._changed.notify_all()

    # --- the session's side ---------------------------------------------------------------------------

    def check(self, position: int) -> None:
        """Raises :class:`ProtocolError` for a position that was taken already."""
        with self._changed:
            if position < self._due and position not in self._arrived:
                raise ProtocolError(f"value {position} of {self.source} was received already")

    def take(self, position: int, memory: Memory, gone: Callable[[], bool]) -> HostValue:
        """The value sent at ``position``; the sender's error if that is what came. If it is still to come, ``memory``
        is asked for its place, here. Raises :class:`ConnectionLost` for a sender that is gone, or if the client is
        ``gone``, :class:`DeadlineExceeded` for a sender that never came or sends nothing."""
        with self._changed:
            if position not in self._arrived:
                self._wanted, self._arrivals.waited_for = position, True
                self._changed.notify_all()
                try:
                    self._wait(position, memory, gone)
                finally:
                    self._wanted, self._arrivals.waited_for, self._request = -1, False, None
                    self._changed.notify_all()
            arrived, reserved = self._arrived.pop(position)
            if reserved >= 0:
                self._arrivals.release(reserved)
                self._changed.notify_all()
        if isinstance(arrived, GenieError):
            raise arrived
        return arrived

    def _wait(self, position: int, memory: Memory, gone: Callable[[], bool]) -> None:
        started = looked = time.monotonic()
        while position not in self._arrived:
            request = self._request
            if request is not None and request.memory is None and request.refusal is None:
                try:
                    request.memory = memory(request.spec, request.size)
                except (GenieError, MemoryError) as error:
                    request.refusal = error
                self._changed.notify_all()
            if self._ended is not None:
                raise self._ended
            now = time.monotonic()
            if not self._connected and now - started >= _CONNECT_SECONDS:
                raise DeadlineExceeded(
                    f"{self.source} did not connect within {_CONNECT_SECONDS:g} s",
                    stage=Stage.TRANSFER,
                    seconds=_CONNECT_SECONDS,
                    where=self.source,
                    hint="nodes send each other values directly: each must reach the others' data ports",
                )
            if now - started >= _ARRIVE_SECONDS:
                raise DeadlineExceeded(
                    f"{self.source} sent nothing for {_ARRIVE_SECONDS:g} s",
                    stage=Stage.TRANSFER,
                    seconds=_ARRIVE_SECONDS,
                    where=self.source,
                )
            if now - looked >= _LOOK_SECONDS:
                if gone():
                    raise ConnectionLost("the client is gone; nobody waits for the value", where=self.source)
                looked = now
            limit = _ARRIVE_SECONDS if self._connected else _CONNECT_SECONDS
            self._changed.wait(max(min(_LOOK_SECONDS, started + limit - now), 0.0))

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

    def open(self, source: str, arrivals: Arrivals) -> tuple[Target, Inlet]:
        inlet, token = Inlet(source, self._limits, arrivals), secrets.token_hex(16)
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
