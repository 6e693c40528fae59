"""The client's side of a session: :class:`genie.interfaces.Session` over a connection.

Whatever needs no answer is queued or sent and forgotten; only looks wait. There is no thread of its own: the
caller's thread reads, since handing a message between threads costs more than the message.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, ParamSpec, TypeVar

import blake3

from genie import codec
from genie.device import Device
from genie.errors import (
    BackendError,
    ConnectionLost,
    DeadlineExceeded,
    GenieError,
    LimitExceeded,
    LocalProtocolError,
    NodeError,
    ProtocolError,
    SessionClosed,
)
from genie.graph import TensorSpec
from genie.host import HostValue, flat
from genie.interfaces import Buffer, Connection
from genie.plan import ExecutionPlan
from genie.remote.memory import room
from genie.wire import Dialogue, Kind, Limits, frames, messages

_P = ParamSpec("_P")
_T = TypeVar("_T")

INLINE = 1 << 16  # smaller uploads wait in the outbox for company
OFFERED = 1 << 14  # shared uploads from this size on are offered by digest first
CHUNK = 4 << 20
_OUTBOX_BYTES = 1 << 18
_OUTBOX_RECORDS = 1 << 12
_FREED_AT_ONCE = 1 << 12
_PLANS_REMEMBERED = 512
_MANY_THREADS = 1 << 20  # bytes from which hashing in several threads pays

_SPECS_REMEMBERED = 256

# As plain numbers: these are compared for every message.
_BYE, _ERROR, _EXECUTE, _FREE, _VALUE = map(int, (Kind.BYE, Kind.ERROR, Kind.EXECUTE, Kind.FREE, Kind.VALUE))


class RemoteSession:
    """One ordered stream of work on one device of a node."""

    def __init__(
        self, connection: Connection, dialogue: Dialogue, device: Device, limits: Limits, node: str, timeout: float
    ) -> None:
        self.device = device
        self._connection = connection
        self._dialogue = dialogue
        self._limits = limits
        self._node = node
        self._timeout = timeout
        self._lock = threading.Lock()
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0
        # Handles to free. Garbage collection frees, at any moment, also while this thread holds the lock.
        self._freed: deque[int] = deque()
        self._plans: dict[str, int] = {}
        self._recent: OrderedDict[int, tuple[ExecutionPlan, int]] = OrderedDict()
        self._plan_heads: list[bytes] = []
        self._specs: dict[bytes, tuple[TensorSpec, int]] = {}
        self._awaited = 0  # the message whose answer is waited for
        self._target: memoryview | None = None  # where its data goes, if the caller said
        self._ended: GenieError | None = None
        self._traffic = dict.fromkeys(("bytes_sent", "bytes_received", "messages_sent", "round_trips"), 0)
        self._traffic |= dict.fromkeys(("plans_sent", "executions", "weights_offered", "weights_known"), 0)

    # --- work -------------------------------------------------------------------------------------

    def load(self, plan: ExecutionPlan) -> int:
        with self._lock:
            known = self._recent.get(id(plan))
            if known is not None:
                self._recent.move_to_end(id(plan))
                return known[1]
            data = codec.encode(plan)
            if len(data) > self._limits.plan:
                raise LimitExceeded(f"a plan of {len(data)} bytes; the node takes {self._limits.plan}")
            content = codec.digest(data)
            number = self._plans.get(content)
            if number is None:
                number = len(self._plan_heads)
                head = messages.put_varint(number)
                if len(data) < INLINE:
                    self._queue(Kind.LOAD_PLAN, head + data)
                else:
                    self._send_bulk(Kind.LOAD_PLAN, head, memoryview(data))
                self._plans[content] = number
                self._plan_heads.append(head)
                self._traffic["plans_sent"] += 1
            self._recent[id(plan)] = (plan, number)  # the plan is held, so its id stays its own
            if len(self._recent) > _PLANS_REMEMBERED:
                self._recent.popitem(last=False)
            return number

    def execute(self, plan: int, bindings: Buffer, *, more: bool = False) -> None:
        with self._lock:
            if not 0 <= plan < len(self._plan_heads):
                raise LocalProtocolError(f"plan {plan} was never loaded in this session")
            if self._freed:
                self._queue_freed()
            self._queue(_EXECUTE, self._plan_heads[plan] + bindings)
            self._traffic["executions"] += 1
            if not more:
                self._push()

    def upload(self, handle: int, spec: TensorSpec, data: Buffer, *, shared: bool = False) -> None:
        view = flat(data)
        spec = TensorSpec(tuple(spec.shape), spec.dtype)
        size = messages.spec_bytes(spec, self._limits)
        if len(view) != size:
            raise LocalProtocolError(f"{len(view)} bytes for a value of {size} (shape {spec.shape}, {spec.dtype})")
        with self._lock:
            if shared and size >= OFFERED:
                self._upload_by_content(handle, spec, view)
            else:
                self._upload(handle, spec, view)

    def _upload(self, handle: int, spec: TensorSpec, view: memoryview) -> None:
        if len(view) < INLINE:
            self._queue(Kind.UPLOAD, messages.put_value(handle, spec, view))
        else:
            self._send_bulk(Kind.UPLOAD, messages.put_value(handle, spec), view)

    def _upload_by_content(self, handle: int, spec: TensorSpec, view: memoryview) -> None:
        size = len(view)
        threads = blake3.blake3.AUTO if size >= _MANY_THREADS else 1
        digest = blake3.blake3(view, max_threads=threads).digest()
        self._traffic["weights_offered"] += 1
        answer, _ = self._ask(Kind.UPLOAD_BEGIN, messages.put_chunk(digest, size), Kind.HELD)
        held, direct = self._read(messages.get_held, answer)
        if direct:
            self._upload(handle, spec, view)
            return
        if held > size:
            self._fail(ProtocolError(f"the node says it holds {held} bytes of {size}", where=self._node))
        for offset in range(held, size, CHUNK):
            self._send_bulk(Kind.UPLOAD_CHUNK, messages.put_chunk(digest, offset), view[offset : offset + CHUNK])
        self._queue(Kind.UPLOAD_COMMIT, messages.put_commit(digest, handle, spec))
        if held == size:
            self._traffic["weights_known"] += 1
            return
        self._push()  # other clients may have it once it is committed
        if held:
            # The first part is somebody's earlier upload; only the whole proves whether it was the right one.
            try:
                self._ask(Kind.DESCRIBE, messages.HANDLE.pack(handle), Kind.SPEC)
            except ProtocolError:
                if self._ended is not None:
                    raise
                self._queue(Kind.FREE, messages.put_handles((handle,)))
                self._upload(handle, spec, view)

    def free(self, handles: Sequence[int]) -> None:
        self._freed.extend(handles)
        if len(self._freed) >= _FREED_AT_ONCE and self._lock.acquire(blocking=False):
            try:
                if self._ended is None:
                    self._queue_freed()
                    self._push()
            finally:
                self._lock.release()

    def seed(self, generator: int, seed: int) -> None:
        with self._lock:
            self._queue(Kind.SEED, messages.put_pair(generator, seed))

    def set_generator_state(self, generator: int, state: Buffer) -> None:
        with self._lock:
            self._queue(Kind.SET_GENERATOR_STATE, messages.HANDLE.pack(generator) + bytes(state))

    # --- looks ------------------------------------------------------------------------------------

    def fetch(self, handle: int, out: memoryview | None = None) -> HostValue:
        with self._lock:
            if out is None:
                payload = messages.put_pair(handle, messages.ANY_SIZE)
            else:
                self._target = flat(out)
                payload = messages.put_pair(handle, len(self._target))
            try:
                answer, data = self._ask(Kind.FETCH, payload, Kind.VALUE)
                return self._read(self._value, answer, data)
            finally:
                self._target = None

    def _value(self, answer: memoryview, data: memoryview | None) -> HostValue:
        """From a VALUE; its bytes are where they belong, or in the record when they are few."""
        head, few = messages.get_result(answer)
        known = self._specs.get(head)  # programs look at the same few shapes again and again
        if known is None:
            spec = messages.get_spec(head)
            known = (spec, messages.spec_bytes(spec, self._limits))
            if len(self._specs) >= _SPECS_REMEMBERED:
                self._specs.clear()
            self._specs[head] = known
        spec, size = known
        target = self._target
        if data is not None:
            if size != len(data) or len(few):
                raise ProtocolError("the node sent a value of another size than it says")
            return HostValue(spec, data)
        if size != len(few) or (target is not None and size != len(target)):
            raise ProtocolError("the node sent a value of another size than it says")
        if target is None:
            return HostValue(spec, memoryview(bytearray(few)))
        target[:] = few
        return HostValue(spec, target)

    def describe(self, handle: int) -> TensorSpec:
        with self._lock:
            answer, _ = self._ask(Kind.DESCRIBE, messages.HANDLE.pack(handle), Kind.SPEC)
            return self._read(messages.get_spec, answer)

    def generator_state(self, generator: int) -> bytes:
        with self._lock:
            answer, _ = self._ask(Kind.GENERATOR_STATE, messages.HANDLE.pack(generator), Kind.STATE)
            return bytes(answer)

    def synchronize(self) -> None:
        with self._lock:
            self._ask(Kind.SYNC, b"", Kind.DONE)

    @property
    def closed(self) -> bool:
        """Ended, for whatever reason."""
        return self._ended is not None

    @property
    def traffic(self) -> Mapping[str, int]:
        """This side's counters, without asking the node."""
        return dict(self._traffic)

    def stats(self) -> Mapping[str, int]:
        """The node's counters of this session and this side's own; of an ended session the latter alone."""
        counters: dict[str, int] = {}
        with self._lock, contextlib.suppress(BackendError):
            answer, _ = self._ask(Kind.STATS, b"", Kind.COUNTERS)
            counters = self._read(messages.get_counters, answer)
        return {**counters, **self._traffic}

    def close(self) -> None:
        with self._lock:
            if self._ended is not None:
                return
            with contextlib.suppress(GenieError):
                self._queue(Kind.BYE)
                self._push()
            self._end(SessionClosed("the session was closed", where=self._node))

    # --- the conversation; with the lock held -----------------------------------------------------

    def _queue(self, kind: int, payload: bytes = b"") -> None:
        if self._ended is not None:
            self._refuse()
        record = frames.record(kind, payload)
        self._outbox.append(record)
        self._outbox_bytes += len(record)
        if self._outbox_bytes > _OUTBOX_BYTES or len(self._outbox) > _OUTBOX_RECORDS:
            self._flush()

    def _queue_freed(self) -> None:
        take = self._freed.popleft  # others only add
        handles = [take() for _ in range(min(len(self._freed), _FREED_AT_ONCE))]
        if handles:
            self._queue(_FREE, messages.put_handles(handles))

    def _push(self) -> None:
        if self._outbox:
            self._flush()

    def _flush(self) -> int:
        """Send what is queued, which is something. The number of the message."""
        if self._ended is not None:
            self._refuse()
        outbox, self._outbox, self._outbox_bytes = self._outbox, [], 0
        seq = self._dialogue.next_seq()
        self._send(frames.message(seq, len(outbox), outbox[0] if len(outbox) == 1 else b"".join(outbox)))
        return seq

    def _send_bulk(self, kind: Kind, payload: bytes, data: memoryview) -> None:
        if self._freed:
            self._queue_freed()
        self._push()
        if self._ended is not None:
            self._refuse()
        self._send(frames.one(self._dialogue.next_seq(), kind, payload, len(data)), data)

    def _send(self, header: bytes, data: memoryview | None = None) -> None:
        try:
            self._connection.send(header, () if data is None else (data,))
        except GenieError as error:
            self._fail(self._last_words() or error)
        except BaseException:
            # Interrupted: nobody knows how much went out, and both sides' memories of bindings may differ.
            self._end(ConnectionLost("sending was interrupted", where=self._node, hint="open a new session"))
            raise
        self._traffic["bytes_sent"] += len(header) + (0 if data is None else len(data))
        self._traffic["messages_sent"] += 1

    def _ask(self, kind: Kind, payload: bytes, answer: Kind) -> tuple[memoryview, memoryview | None]:
        """The answer's payload, and its data if it has any."""
        if self._freed:
            self._queue_freed()
        self._outbox.append(frames.record(kind, payload))
        self._awaited = seq = self._flush()
        self._traffic["round_trips"] += 1
        try:
            while True:
                try:
                    message = self._connection.receive(self._memory, self._timeout)
                except _Stale:
                    continue
                got, heard, body = frames.single(message.header)
                self._traffic["bytes_received"] += len(message.header)
                self._dialogue.hear(heard)
                if heard == _BYE:
                    raise _farewell(body, self._node)
                if got == seq:
                    break
                # An answer nobody waits for any more: its question was interrupted, or took too long.
                self._check_stale(got)
        except DeadlineExceeded as error:
            raise DeadlineExceeded(
                f"{self._node} did not answer {kind.name} within {self._timeout:g} s",
                where=self._node,
                hint="the node may still be computing: ask again, or raise `timeout` (GENIE_TIMEOUT)",
            ) from error
        except GenieError as error:
            self._fail(error)
        if heard == _ERROR:
            raise messages.get_error(body, self._node)
        if heard != answer:
            self._fail(ProtocolError(f"record kind {heard} is no answer to {kind.name}", where=self._node))
        if not message.buffers:
            return body, None
        data = memoryview(message.buffers[0])
        self._traffic["bytes_received"] += len(data)
        return body, data

    def _read(self, reader: Callable[_P, _T], *answer: _P.args, **options: _P.kwargs) -> _T:
        try:
            return reader(*answer, **options)
        except (ProtocolError, LimitExceeded) as error:
            self._fail(ProtocolError(error.message, where=self._node))

    def _memory(self, header: bytes, sizes: Sequence[int]) -> Sequence[memoryview]:
        seq, kind, _ = frames.single(header)
        if seq != self._awaited:
            self._check_stale(seq)
            raise _Stale  # its data is skipped, not kept
        (size,) = sizes
        if kind != _VALUE or (self._target is not None and size != len(self._target)):
            raise ProtocolError(f"{size} bytes of data that were not asked for", where=self._node)
        return (room(size) if self._target is None else self._target,)

    def _check_stale(self, seq: int) -> None:
        if (self._awaited - seq) & frames.SEQ_MASK > 1 << 31:
            raise ProtocolError(f"an answer to message {seq}, which was not sent yet", where=self._node)

    def _last_words(self) -> GenieError | None:
        """Why the node hung up, if it said so."""
        while True:
            try:
                message = self._connection.receive(_no_memory, 0.2)
                _, kind, body = frames.single(message.header)
            except _Stale:
                continue
            except GenieError:
                return None
            if kind == _BYE:
                return _farewell(body, self._node)

    def _fail(self, error: GenieError) -> NoReturn:
        self._end(error)
        raise error

    def _end(self, error: GenieError) -> None:
        self._ended = error
        self._dialogue.close()
        self._outbox.clear()
        self._freed.clear()
        self._connection.close()

    def _refuse(self) -> NoReturn:
        reason = self._ended
        assert reason is not None
        if isinstance(reason, SessionClosed):
            raise SessionClosed(reason.message, where=reason.where, hint=reason.hint)
        raise ConnectionLost(
            f"the session is over: {reason.message}", where=self._node, hint="its values are lost; open a new session"
        ) from reason


class _Stale(Exception):
    """Data of an answer nobody waits for any more."""


def _no_memory(header: bytes, sizes: Sequence[int]) -> Sequence[memoryview]:
    raise _Stale


def _farewell(body: memoryview, node: str) -> GenieError:
    if not body:
        return SessionClosed("the node ended the session", where=node)
    error = messages.get_error(body, node)
    return error if isinstance(error, BackendError) else NodeError(str(error), where=node)
