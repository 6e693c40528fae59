"""One client on a node: its messages, turned into calls of the local backend's session, in order."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter_ns

import structlog

from genie import codec
from genie.device import Device
from genie.errors import (
    ConnectionLost,
    DeadlineExceeded,
    GenieError,
    LimitExceeded,
    NodeError,
    OutOfMemory,
    ProtocolError,
    UnsupportedOperation,
    VersionMismatch,
)
from genie.graph import TensorSpec
from genie.host import HostValue, flat
from genie.interfaces import Buffer, Connection, Looping, Poisoning, Profiling, Session, Watched
from genie.remote.abilities import Allocating, Allocation, Sharing
from genie.remote.channels.ends import Channels
from genie.remote.memory import room
from genie.remote.node.meters import Meter
from genie.remote.node.realm import Realm
from genie.remote.node.session.cancelling import Cancellation
from genie.remote.node.session.contents import NodeContents
from genie.remote.node.session.lasting import Lasting
from genie.remote.node.session.loop import NodeLoop
from genie.remote.node.session.prefetch import Prefetch
from genie.remote.node.session.spans import join
from genie.remote.node.session.state import NodeState, valued
from genie.security import Identity
from genie.tenancy.pace import Pace
from genie.wire import Dialogue, Kind, Limits, channels, frames, loops, messages, profiles, snapshots

log = structlog.get_logger("genie.node")

_EXECUTE, _LOOP, _BYE = map(int, (Kind.EXECUTE, Kind.LOOP, Kind.BYE))
_MOST_FAILURES = 1 << 10
_MOST_PLANS = 1 << 16


class _Refused(Exception):
    """An upload has no place: the handle knows why."""


class NodeSession:
    """Serves one open conversation until it ends; :meth:`serve` does not raise.

    What is never answered may fail: a failed upload is remembered with its handle, anything else until the next look
    at any value, whose answer it becomes.
    """

    def __init__(
        self,
        name: str,
        connection: Connection,
        dialogue: Dialogue,
        session: Session,
        store: Realm,
        limits: Limits,
        capacity: int,
        channels: Channels,
        owner: Identity,
        pace: Pace,
    ) -> None:
        self.name = name
        self.owner = owner
        self.pace = pace
        self.device: Device = session.device
        self.began = time.monotonic()
        self.lasting = connection if isinstance(connection, Lasting) else None
        self.reason = ""  # why it ended, if not as the client wished
        self._connection = connection
        self._dialogue = dialogue
        self._session = session
        self.meter = Meter(name, session.stats)
        self._store = store
        self._limits = limits
        self._capacity = capacity
        self._channels = channels
        self.cancellation = Cancellation(session, connection, channels.sends)
        self._plans: list[int] = []
        self._failed_plans: dict[int, GenieError] = {}
        self._failed: dict[int, GenieError] = {}
        self._deferred: GenieError | None = None
        channels.told = self._defer
        self._loop = NodeLoop()
        self.prefetch = Prefetch(session)
        self._allocation: Allocation | None = None  # what is being received into, if the backend offered it
        self._state = NodeState(session, limits, self._failed, self._fail, lambda: self._deferred, self._defer)
        self._contents = NodeContents(name, session, store, limits, self._fail, self._state.known)
        self._work: dict[int, Callable[[memoryview], None]] = {
            Kind.LOAD_PLAN: self._load,
            Kind.UPLOAD: self._upload,
            Kind.FREE: self._free,
            Kind.SEED: self._seed,
            Kind.SET_GENERATOR_STATE: self._set_generator_state,
            Kind.UPLOAD_COMMIT: self._contents.commit,
            Kind.OUTLET: self._outlet,
            Kind.SEND: self._send,
            Kind.SEND_MEMORY: self._send_memory,
            Kind.RECEIVE: self._receive,
            Kind.TRACE: self._trace,
            Kind.HEARD: self._heard,
        }
        self._requests: dict[int, Callable[[memoryview], tuple[Kind, bytes, memoryview | None]]] = {
            Kind.UPLOAD_BEGIN: self._contents.begin,
            Kind.FETCH: self._fetch,
            Kind.DESCRIBE: self._describe,
            Kind.GENERATOR_STATE: self._generator_state,
            Kind.SYNC: self._synchronize,
            Kind.STATS: self._stats,
            Kind.INLET: self._inlet,
            Kind.PROFILE: self._profile,
            Kind.MARK: self._mark,
            Kind.SNAPSHOT: self._state.tell,
            Kind.READ_MEMORY: self._state.read,
            Kind.RESTORE: self._restore,
            Kind.STAGE: self._contents.stage,
        }
        self._leaves = False  # the message under way ends with BYE
        self._look_again: tuple[int, int, memoryview] | None = None  # the last question answered with bulk data
        if self.lasting is not None:
            self.lasting.make_again, self.lasting.idle = self._make_again, self._rest

    def serve(self) -> None:
        structlog.contextvars.bind_contextvars(session=self.name)
        try:
            while self._one_message():
                self._rest()
        except ConnectionLost as error:
            log.info("client gone", reason=error.message)
        except (ProtocolError, VersionMismatch, LimitExceeded, DeadlineExceeded) as error:
            log.warning("client dismissed", reason=error.message)
            self._dismiss(error)
        except Exception as error:
            log.exception("session failed")
            self._dismiss(NodeError(f"the node failed: {type(error).__name__}: {error}"))
        finally:
            self._dialogue.close()
            self._connection.close()
            self._channels.close()
            self._allocation = None
            self._contents.release()
            self.meter.end()
            self.pace.close()
            try:
                self._session.close()
            except Exception:
                log.exception("session not closed in order")

    def _rest(self) -> None:
        """A message is done, or the client went away in the middle of it: others may go on."""
        self.meter.leave()
        self.pace.done()

    def _one_message(self) -> bool:
        try:
            with self.cancellation.turn:
                message = self._connection.receive(self._memory, None)
        except _Refused:
            self.meter.done(Kind.UPLOAD)
            return True
        meter = self.meter
        self.pace.arrived(len(message.header), self.cancellation.deserted)
        meter.arrived(len(message.header), len(message.buffers[0]) if message.buffers else 0)
        seq, records = frames.split(message.header)
        self._dialogue.numbered(seq)
        self.cancellation.begins(seq)
        if message.buffers:
            self._bulk(records[0], message.buffers[0])
            meter.done(records[0][0])
            return True
        self._leaves = records[-1][0] == _BYE
        for kind, body in records:
            if kind == _EXECUTE:
                self._execute(body)
                meter.done(kind)
            elif kind in self._work:
                self._work[kind](body)
                meter.done(kind)
            elif kind in self._requests:
                self._answer(seq, kind, body)
            elif kind == _LOOP:
                self._repeat(seq, body)
                meter.done(kind)
            else:
                self._dialogue.hear(kind)
                if kind != _BYE:
                    raise ProtocolError(f"record kind {kind} came without its data")
                return False
        return True

    def _execute(self, body: memoryview) -> None:
        number, used = messages.get_varint(body)
        plan = self._plan(number)
        if plan < 0:
            self._defer(self._failed_plans[number])
            return
        try:
            self._session.execute(plan, body[used:])
        except GenieError as error:
            log.info("execution failed", plan=number, reason=error.message)
            # What it needed may be missing because its upload failed: that is the reason to tell.
            self._defer(next(iter(self._failed.values()), error))

    def _plan(self, number: int) -> int:
        """Its number in the local session, negative if it was refused."""
        try:
            found = self._plans[number]
            self.meter.uses(number)
            return found
        except IndexError:
            raise ProtocolError(f"plan {number} is executed and was never sent") from None

    def _repeat(self, seq: int, body: memoryview) -> None:
        """A LOOP: an answer per iteration, as it ends."""
        count, begin = loops.get(body)
        try:
            if begin is not None:
                self._begin_loop(begin)
            for answer in self._loop.run(count):
                made = perf_counter_ns()
                self.pace.answers(len(answer), self.cancellation.deserted)
                self._connection.send(frames.one(seq, Kind.LOOPED, answer))
                self.meter.iterated(len(answer), made)
        except ConnectionLost:
            raise
        except (GenieError, MemoryError) as error:
            self._loop.end()  # more of it may be asked for already
            self.meter.failures += 1
            self._connection.send(frames.one(seq, Kind.ERROR, messages.put_error(error)))

    def _begin_loop(self, begin: loops.Begin) -> None:
        self._loop.end()
        plan = self._plan(begin.plan)
        if plan < 0:
            raise self._failed_plans[begin.plan]
        if not isinstance(self._session, Looping):
            raise UnsupportedOperation(f"the backend of {self.device.id} does not repeat plans", where=self.name)
        try:
            self._loop.begin(self._session.loop(plan, begin.bindings, begin.loop, begin.times))
        finally:
            # What went wrong before is the reason to tell; with the bindings both sides' memory moved on.
            self._tell_deferred()

    # --- bulk data: checked before it is received ---------------------------------------------------

    def _memory(self, header: bytes, sizes: Sequence[int]) -> Sequence[memoryview]:
        """Where a message's buffer goes. Raises to refuse: what the session cannot take is skipped by the
        connection, and what no honest client sends ends the session."""
        self._allocation = None
        self.prefetch.begin()  # beside the rest of the message
        seq, kind, body = frames.single(header)
        (size,) = sizes
        self.pace.arrived(size, self._cut)
        self.meter.bulk()
        if kind == Kind.UPLOAD:
            handle, spec, rest = messages.get_value(body)
            if rest or messages.spec_bytes(spec, self._limits) != size:
                raise ProtocolError(f"{size} bytes of data for a value of shape {spec.shape}, {spec.dtype}")
            try:
                return [self._memory_of(spec, size)]
            except (GenieError, MemoryError) as error:
                # The client goes on: its data is received and dropped, and the handle tells why when it is looked at.
                self._dialogue.numbered(seq)
                self._fail(handle, error)
                raise _Refused from error
        if kind == Kind.UPLOAD_CHUNK:
            digest, offset = messages.get_chunk(body)
            return [self._store.room(self.name, digest, offset, size)]
        if kind == Kind.LOAD_PLAN:
            if size > self._limits.plan:
                raise LimitExceeded(f"a plan of {size} bytes; the limit is {self._limits.plan}")
            return [room(size)]
        raise ProtocolError(f"record kind {kind} takes no bulk data")

    def _cut(self) -> bool:
        if self.lasting is not None:
            return self.lasting.cut()
        return isinstance(self._connection, Watched) and self._connection.hung_up()

    def _memory_of(self, spec: TensorSpec, size: int) -> memoryview:
        if isinstance(self._session, Allocating) and spec.stride is None:
            self._allocation = self._session.allocate(spec)
            return self._allocation.data
        if size > self._capacity:
            raise OutOfMemory(
                f"a value of {size} bytes does not fit: the device has memory for {self._capacity}",
                device=self.device.id,
                kind="OutOfMemory",
            )
        return room(size)

    def _bulk(self, record: tuple[int, memoryview], data: Buffer) -> None:
        kind, body = record
        if kind == Kind.UPLOAD:
            handle, spec, _ = messages.get_value(body)
            self._take(handle, spec, data)
        elif kind == Kind.UPLOAD_CHUNK:
            digest, _ = messages.get_chunk(body)
            self._store.received(self.name, digest, len(data))
        else:
            self._load(body, data)

    # --- work: never answered -----------------------------------------------------------------------

    def _load(self, body: memoryview, data: Buffer | None = None) -> None:
        number, used = messages.get_varint(body)
        if number != len(self._plans):
            raise ProtocolError(f"plan {number} was sent where {len(self._plans)} was due")
        if number >= _MOST_PLANS:
            raise LimitExceeded(f"a session has at most {_MOST_PLANS} plans")
        self.meter.loaded(number)
        try:
            self.pace.plan(len(body) - used if data is None else len(data))
            plan = codec.decode_plan(body[used:] if data is None else data, where=self.name, limit=self._limits.plan)
            self._plans.append(self._session.load(plan))
            log.debug("plan loaded", plan=number, steps=len(plan.graph.steps))
        except GenieError as error:
            log.info("plan refused", plan=number, reason=error.message)
            self._plans.append(-1)
            self._failed_plans[number] = error
            self._defer(error)

    def _upload(self, body: memoryview) -> None:
        handle, spec, data = messages.get_value(body)
        if messages.spec_bytes(spec, self._limits) != len(data):
            raise ProtocolError(f"{len(data)} bytes of data for a value of shape {spec.shape}, {spec.dtype}")
        self._take(handle, spec, data)

    def _take(self, handle: int, spec: TensorSpec, data: Buffer) -> None:
        try:
            self._hold(handle, spec, data)
        except (GenieError, MemoryError) as error:
            self._fail(handle, error)

    def _hold(self, handle: int, spec: TensorSpec, data: Buffer) -> None:
        """What was received, where :meth:`_memory_of` said, is the value ``handle``."""
        allocation, self._allocation = self._allocation, None
        if allocation is not None:
            allocation.commit(handle)
        else:
            self._session.upload(handle, spec, data)

    def _free(self, body: memoryview) -> None:
        handles = messages.get_handles(body)
        self._contents.freed(handles)
        if self._failed:
            for handle in handles:
                self._failed.pop(handle, None)
        try:
            self._session.free(handles)
        except GenieError as error:  # what was never made, because a step before it failed, need not be freed
            log.debug("not freed", reason=error.message)

    def _seed(self, body: memoryview) -> None:
        generator, seed = messages.get_seed(body)
        try:
            self._session.seed(generator, seed)
        except GenieError as error:
            self._defer(error)

    def _set_generator_state(self, body: memoryview) -> None:
        generator = messages.get_generator(body[:8], "SET_GENERATOR_STATE")
        try:
            self._session.set_generator_state(generator, bytes(body[8:]))
        except GenieError as error:
            self._defer(error)

    def _trace(self, body: memoryview) -> None:
        self.meter.trace = join(body, self.name, self.device.id)

    # --- values from and to other nodes -------------------------------------------------------------

    def _outlet(self, body: memoryview) -> None:
        opened = channels.get_outlet(body)
        self._channels.connect(opened.number, opened.target)

    def _send(self, body: memoryview) -> None:
        number, handle = channels.get_send(body)
        try:
            with self.pace.elsewhere():
                self._channels.send(number, lambda: self._sent(handle), self._client_gone)
        except DeadlineExceeded as error:  # the receiver is told, too: the session goes on without that channel
            self._defer(error)

    def _send_memory(self, body: memoryview) -> None:
        number, id, version = snapshots.get_send(body)
        with contextlib.suppress(DeadlineExceeded):  # the receiver is told: it is no affair of the program's
            self._channels.send(number, lambda: self._state.sent(id, version), self._client_gone)

    def _sent(self, handle: int) -> HostValue:
        try:
            spec = self._session.describe(handle)  # strides and all: what is computed there must be laid out as here
            data = memoryview(self._session.fetch(handle).data)
            # It leaves later: of what is not shared, later work might write to it before.
            return HostValue(spec, data if isinstance(self._session, Sharing) else memoryview(bytes(data)))
        except GenieError as error:
            # What it needed may be missing because of an earlier failure: that is the reason to tell.
            raise self._failed.get(handle) or self._deferred or error from None

    def _receive(self, body: memoryview) -> None:
        number, position, handle = channels.get_receive(body)
        inlet = self._channels.inlet(number)
        inlet.check(position)
        self._allocation = None
        try:
            with self.pace.elsewhere():
                value = inlet.take(position, self._memory_of, self._client_gone)
            self._hold(handle, value.spec, value.data)
        except (GenieError, MemoryError) as error:
            self._allocation = None
            if isinstance(self._session, Poisoning) and isinstance(error, GenieError):
                self._poison(self._session, handle, error)
            else:
                self._fail(handle, error)

    def _poison(self, session: Poisoning, handle: int, error: GenieError) -> None:
        try:
            session.poison(handle, error)
        except GenieError as refused:  # the handle is another value's, or none
            self._defer(refused)

    def _client_gone(self) -> bool:
        """Whether it hung up, and will not come back, while this session waits for something else. What it asked before
        is done to the end: other nodes may wait for that."""
        return self._leaves or self.cancellation.gone()

    def _inlet(self, body: memoryview) -> tuple[Kind, bytes, memoryview | None]:
        opening = channels.get_opening(body)
        return Kind.INLET_OPEN, channels.put(self._channels.open(opening.number, opening.source)), None

    def _defer(self, error: GenieError) -> None:
        if self._deferred is None:
            self._deferred = error

    def _fail(self, handle: int, error: GenieError | MemoryError) -> None:
        if not isinstance(error, GenieError):
            error = OutOfMemory(str(error) or "no memory for a value", device=self.device.id, kind="MemoryError")
        if len(self._failed) < _MOST_FAILURES:
            self._failed[handle] = error
        else:
            self._defer(error)

    # --- requests -----------------------------------------------------------------------------------

    def _answer(self, seq: int, kind: int, body: memoryview) -> None:
        answer, payload, data = self._asked(kind, body)
        made, size = perf_counter_ns(), len(payload)
        if data is None:
            self.pace.answers(size, self.cancellation.deserted)
            self._connection.send(frames.one(seq, answer, payload))
        else:
            size += len(data)
            self.pace.answers(size, self.cancellation.deserted)
            self._look_again = (seq, kind, body)
            self._connection.send(frames.one(seq, answer, payload, len(data)), (data,))
        self.meter.answered(kind, size, made, answer == Kind.ERROR)

    def _asked(self, kind: int, body: memoryview) -> tuple[Kind, bytes, memoryview | None]:
        try:
            return self._requests[kind](body)
        except (GenieError, MemoryError) as error:
            log.debug("request failed", record=Kind(kind).name, plan=getattr(error, "plan", -1), reason=str(error))
            return Kind.ERROR, messages.put_error(error), None

    def _make_again(self) -> tuple[bytes, Sequence[Buffer]]:
        """The answer to the last question once more: nothing was done since that could change it."""
        assert self._look_again is not None
        seq, kind, body = self._look_again
        self.meter.enter()
        try:
            answer, payload, data = self._asked(kind, body)
        finally:
            self.meter.leave()
        if data is None:
            return frames.one(seq, answer, payload), ()
        return frames.one(seq, answer, payload, len(data)), (data,)

    def _heard(self, body: memoryview) -> None:
        count = messages.get_number(body, "HEARD")
        if self.lasting is not None:
            self.lasting.acknowledge(count)

    def _mark(self, body: memoryview) -> tuple[Kind, bytes, memoryview | None]:
        told = 0 if self.lasting is None else self.lasting.told + 1
        return Kind.MARKED, messages.HANDLE.pack(told), None

    def _tell_deferred(self) -> None:
        if self._deferred is not None:
            error, self._deferred = self._deferred, None
            raise error

    def _look(self, handle: int) -> None:
        self._tell_deferred()
        if self._failed and handle in self._failed:
            raise self._failed[handle]

    def _restore(self, body: memoryview) -> tuple[Kind, bytes, memoryview | None]:
        self._contents.renamed(self._state.take(body))
        return Kind.DONE, b"", None

    def _fetch(self, body: memoryview) -> tuple[Kind, bytes, memoryview | None]:
        handle, wanted = messages.get_fetch(body)
        self._look(handle)
        value = self._session.fetch(handle)
        data = memoryview(value.data)
        if wanted not in (messages.ANY_SIZE, data.nbytes):
            raise NodeError(f"the value has {data.nbytes} bytes, the memory for it {wanted}", where=f"handle {handle}")
        spec = value.spec if value.spec.stride is None else TensorSpec(tuple(value.spec.shape), value.spec.dtype)
        if data.ndim != 1 or data.format != "B":
            data = flat(data)
        return valued(spec, data)

    def _describe(self, body: memoryview) -> tuple[Kind, bytes, memoryview | None]:
        handle = messages.get_handle(body, "DESCRIBE")
        self._look(handle)
        return Kind.SPEC, messages.put_struct(self._session.describe(handle)), None

    def _generator_state(self, body: memoryview) -> tuple[Kind, bytes, memoryview | None]:
        return Kind.STATE, self._session.generator_state(messages.get_generator(body, "GENERATOR_STATE")), None

    def _synchronize(self, body: memoryview) -> tuple[Kind, bytes, memoryview | None]:
        self._session.synchronize()
        with self.pace.elsewhere():
            failure = self._channels.settle()
        if failure is not None:
            if self._deferred is failure:
                self._deferred = None
            raise failure
        return Kind.DONE, b"", None

    def _stats(self, body: memoryview) -> tuple[Kind, bytes, memoryview | None]:
        counters = {name: int(number) for name, number in self.stats().items()}
        return Kind.COUNTERS, messages.put_struct(counters), None

    def _profile(self, body: memoryview) -> tuple[Kind, bytes, memoryview | None]:
        share = profiles.get_share(body)
        rows = self._session.profile(share) if isinstance(self._session, Profiling) else ()
        return Kind.PROFILED, profiles.put_rows(rows), None

    # --- the end ------------------------------------------------------------------------------------

    def stats(self) -> Mapping[str, int]:
        return {**self._session.stats(), **self._store.stats()}

    @property
    def away(self) -> bool:
        """Whether it waits for its client to come back."""
        return self.lasting is not None and self.lasting.away

    def stop(self, reason: str = "") -> None:
        """From any thread: no further message is read, and what runs ends before its next operator."""
        self.reason = self.reason or reason
        if self.lasting is not None:
            self.lasting.reason = self.lasting.reason or reason
        self.cancellation.over(reason or "the session is over")
        self.pace.stop()
        self._connection.close()
        self._channels.interrupt()

    def cancel_work(self, reason: str, until: int = -1) -> None:
        """From any thread: what is asked in messages up to the number ``until`` (-1: those taken so far) is not done
        any more; the session goes on."""
        self.cancellation.until(until if until >= 0 else max(self._dialogue.seq, 0), reason)

    def abandon(self) -> None:
        """It was never served."""
        self.meter.end()
        self.pace.close()
        self._channels.close()
        self._session.close()

    def _dismiss(self, error: GenieError) -> None:
        self.reason = error.message
        with contextlib.suppress(GenieError, OSError):
            self._connection.send(frames.one(max(self._dialogue.seq, 0), Kind.BYE, messages.put_error(error)))
