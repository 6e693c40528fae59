"""One client on a node: its messages, turned into calls of the local backend's session, in order."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter_ns

import structlog

from genie.device import Device
from genie.errors import (
    ConnectionLost,
    DeadlineExceeded,
    GenieError,
    LimitExceeded,
    NodeError,
    ProtocolError,
    VersionMismatch,
)
from genie.interfaces import Buffer, Connection, Profiling, Session, Watched
from genie.remote.channels.ends import Channels
from genie.remote.memory import room
from genie.remote.node.meters import Meter
from genie.remote.node.realm import Realm
from genie.remote.node.session.answers import Answer
from genie.remote.node.session.cancelling import Cancellation
from genie.remote.node.session.contents import NodeContents
from genie.remote.node.session.failures import Failures
from genie.remote.node.session.lasting import Lasting
from genie.remote.node.session.passing import Passing
from genie.remote.node.session.prefetch import Prefetch
from genie.remote.node.session.programs import NodePrograms
from genie.remote.node.session.spans import join
from genie.remote.node.session.state import NodeState
from genie.remote.node.session.values import NodeValues
from genie.security import Identity
from genie.tenancy.pace import Pace
from genie.wire import Dialogue, Kind, Limits, frames, loops, messages, profiles

log = structlog.get_logger("genie.node")

_LOOP, _BYE = map(int, (Kind.LOOP, Kind.BYE))


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
        self._channels = channels
        self.cancellation = Cancellation(session, connection, channels.sends)
        self.prefetch = Prefetch(session)
        self._failures = failures = Failures(session.device)
        self._state = state = NodeState(session, limits, failures)
        self._contents = contents = NodeContents(name, session, store, limits, failures, state.known)
        self._values = values = NodeValues(session, limits, capacity, failures, contents)
        self._programs = NodePrograms(name, session, limits, self.meter, pace, failures)
        self._passing = passing = Passing(session, channels, values, state, failures, pace, self._client_gone)
        self._work: dict[int, Callable[[memoryview], None]] = {
            Kind.LOAD_PLAN: self._programs.load,
            Kind.EXECUTE: self._programs.execute,
            Kind.UPLOAD: values.upload,
            Kind.UPLOAD_COMMIT: contents.commit,
            Kind.FREE: values.free,
            Kind.SEED: self._seed,
            Kind.SET_GENERATOR_STATE: self._set_generator_state,
            Kind.OUTLET: passing.outlet,
            Kind.SEND: passing.send,
            Kind.SEND_MEMORY: passing.send_memory,
            Kind.RECEIVE: passing.receive,
            Kind.TRACE: self._trace,
            Kind.HEARD: self._heard,
        }
        self._requests: dict[int, Callable[[memoryview], Answer]] = {
            Kind.UPLOAD_BEGIN: contents.begin,
            Kind.FETCH: values.fetch,
            Kind.DESCRIBE: values.describe,
            Kind.GENERATOR_STATE: self._generator_state,
            Kind.SYNC: self._synchronize,
            Kind.STATS: self._stats,
            Kind.INLET: passing.inlet,
            Kind.PROFILE: self._profile,
            Kind.MARK: self._mark,
            Kind.SNAPSHOT: state.tell,
            Kind.READ_MEMORY: state.read,
            Kind.RESTORE: self._restore,
            Kind.STAGE: contents.stage,
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
            self._values.await_none()
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
            if kind in self._work:
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

    def _repeat(self, seq: int, body: memoryview) -> None:
        """A LOOP: an answer per iteration, as it ends."""
        count, begin = loops.get(body)
        try:
            for answer in self._programs.repeat(count, begin):
                made = perf_counter_ns()
                self.pace.answers(len(answer), self.cancellation.deserted)
                self._connection.send(frames.one(seq, Kind.LOOPED, answer))
                self.meter.iterated(len(answer), made)
        except ConnectionLost:
            raise
        except (GenieError, MemoryError) as error:
            self._programs.end_loop()
            self.meter.failures += 1
            self._connection.send(frames.one(seq, Kind.ERROR, messages.put_error(error)))

    # --- bulk data: checked before it is received ---------------------------------------------------

    def _memory(self, header: bytes, sizes: Sequence[int]) -> Sequence[memoryview]:
        """Where a message's buffer goes. Raises to refuse: what the session cannot take is skipped by the
        connection, and what no honest client sends ends the session."""
        self._values.await_none()
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
                return [self._values.memory_of(spec, size)]
            except (GenieError, MemoryError) as error:
                # The client goes on: its data is received and dropped, and the handle tells why when it is looked at.
                self._dialogue.numbered(seq)
                self._failures.add(handle, error)
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

    def _bulk(self, record: tuple[int, memoryview], data: Buffer) -> None:
        kind, body = record
        if kind == Kind.UPLOAD:
            handle, spec, _ = messages.get_value(body)
            self._values.take(handle, spec, data)
        elif kind == Kind.UPLOAD_CHUNK:
            digest, _ = messages.get_chunk(body)
            self._store.received(self.name, digest, len(data))
        else:
            self._programs.load(body, data)

    # --- work: never answered -----------------------------------------------------------------------

    def _seed(self, body: memoryview) -> None:
        generator, seed = messages.get_seed(body)
        try:
            self._session.seed(generator, seed)
        except GenieError as error:
            self._failures.defer(error)

    def _set_generator_state(self, body: memoryview) -> None:
        generator = messages.get_generator(body[:8], "SET_GENERATOR_STATE")
        try:
            self._session.set_generator_state(generator, bytes(body[8:]))
        except GenieError as error:
            self._failures.defer(error)

    def _trace(self, body: memoryview) -> None:
        self.meter.trace = join(body, self.name, self.device.id)

    def _heard(self, body: memoryview) -> None:
        count = messages.get_number(body, "HEARD")
        if self.lasting is not None:
            self.lasting.acknowledge(count)

    def _client_gone(self) -> bool:
        """Whether it hung up, and will not come back, while this session waits for something else. What it asked before
        is done to the end: other nodes may wait for that."""
        return self._leaves or self.cancellation.gone()

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

    def _asked(self, kind: int, body: memoryview) -> Answer:
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

    def _mark(self, body: memoryview) -> Answer:
        told = 0 if self.lasting is None else self.lasting.told + 1
        return Kind.MARKED, messages.HANDLE.pack(told), None

    def _restore(self, body: memoryview) -> Answer:
        self._contents.renamed(self._state.take(body))
        return Kind.DONE, b"", None

    def _generator_state(self, body: memoryview) -> Answer:
        return Kind.STATE, self._session.generator_state(messages.get_generator(body, "GENERATOR_STATE")), None

    def _synchronize(self, body: memoryview) -> Answer:
        self._session.synchronize()
        self._passing.settle()
        return Kind.DONE, b"", None

    def _stats(self, body: memoryview) -> Answer:
        counters = {name: int(number) for name, number in self.stats().items()}
        return Kind.COUNTERS, messages.put_struct(counters), None

    def _profile(self, body: memoryview) -> Answer:
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
