"""One client's conversation with a node: what is queued, sent, asked, answered, and how it ends.

An exception may strike anywhere (Ctrl-C in a notebook), and the program may go on. So state changes by plain
assignments at the end of each method, between which the interpreter calls nothing: an interrupt finds all done or
nothing. A message that an interrupt finds half sent is finished first; where a connection can't do that, or not in its
time, the conversation ends and says why.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NoReturn, ParamSpec, TypeVar

from genie.errors import (
    AccessDenied,
    BackendError,
    ConnectionLost,
    DeadlineExceeded,
    GenieError,
    LimitExceeded,
    NodeError,
    ProtocolError,
    SessionClosed,
    Stage,
    UnsupportedOperation,
)
from genie.interfaces import Connection, Resumable
from genie.remote.client.rejoining import Rejoining
from genie.remote.memory import room
from genie.ways import carrier
from genie.wire import Dialogue, Kind, Limits, frames, messages

_P = ParamSpec("_P")
_T = TypeVar("_T")

FREED_AT_ONCE = 1 << 12
_OUTBOX_BYTES = 1 << 18
_OUTBOX_RECORDS = 1 << 12

# As plain numbers: these are compared for every message.
_BYE, _ERROR, _FREE, _VALUE, _MARKED = map(int, (Kind.BYE, Kind.ERROR, Kind.FREE, Kind.VALUE, Kind.MARKED))

_MOST_COPIED = 8 << 20  # bytes of a caller's that are copied rather than waited for until the node has them

_LOST = "what was on it is lost; once it runs (`genie serve`, see its log), call genie.shutdown() and begin anew"
_UNWANTED = (
    "what was on it is lost; with a token and certificate that the node takes, call genie.shutdown() and begin anew"
)
_OVER = "what was on it is lost; call genie.shutdown() and begin anew"

_HINTS: dict[object, str] = {AccessDenied: _UNWANTED, SessionClosed: _OVER}  # by what a client that came back was told


class Stream:
    """What came so far of the answers to one question. One of them may bring so many bytes of ``data``."""

    __slots__ = ("came", "data")

    def __init__(self, data: int = 0) -> None:
        self.data = data
        self.came: deque[tuple[int, bytes, memoryview | None]] = deque()  # kind, body, data


class Conversation:
    """Whatever needs no answer waits in the outbox for company or a push; :meth:`ask` sends it along. Not
    thread-safe, except that anybody may add to ``freed`` at any moment, as garbage collection does."""

    def __init__(self, connection: Connection, dialogue: Dialogue, limits: Limits, node: str, timeout: float) -> None:
        self.limits = limits
        self.node = node
        self.timeout = timeout
        self.freed: deque[int] = deque()  # handles
        self.target: memoryview | None = None  # where the data of the answer goes, if the caller said
        self.streams: dict[int, Stream] = {}  # of questions that may be answered before anybody waits, by message
        self.ended: GenieError | None = None
        self.traffic = dict.fromkeys(("bytes_sent", "bytes_received", "messages_sent", "round_trips"), 0)
        self.round_trip = float("inf")  # the shortest so far, in seconds
        self.bulks = 0  # messages with bulk data that were sent
        self._connection = connection
        self._resumable = connection if isinstance(connection, Resumable) else None
        self._lasting = connection if isinstance(connection, Rejoining) else None
        self._mark = -1  # the message that asks how far the node is, if it was not answered yet
        self._dialogue = dialogue
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0
        self._awaited = 0  # the message whose answer is waited for

    @property
    def peer(self) -> str:
        """The address in use, which may be a shortcut to the node's."""
        return str(getattr(self._connection, "peer", self.node))

    @property
    def transport(self) -> str:
        """What carries it now, where the connection knows."""
        return carrier(self._connection)

    # --- out --------------------------------------------------------------------------------------

    def queue(self, kind: int, payload: bytes = b"") -> None:
        if self.ended is not None:
            self._refuse()
        record = frames.record(kind, payload)
        size = self._outbox_bytes + len(record)
        if size > _OUTBOX_BYTES or len(self._outbox) >= _OUTBOX_RECORDS:
            self.push()
            size = len(record)
        self._outbox += [record]
        self._outbox_bytes = size

    def queue_freed(self) -> None:
        freed = self.freed
        handles = list(freed)[:FREED_AT_ONCE]  # in one call of the interpreter: other threads may add at any moment
        if handles:
            self.queue(_FREE, messages.put_handles(handles))
            for _ in handles:  # interrupted here, some are freed twice, which the node does not mind
                freed.popleft()

    def push(self) -> None:
        if self._outbox:
            self._flush()

    def send_bulk(self, kind: Kind, payload: bytes, data: memoryview) -> None:
        if self.freed:
            self.queue_freed()
        self.push()
        if self.ended is not None:
            self._refuse()
        if self._lasting is not None and self._lasting.heavy:
            self._lighten(self._lasting)
        seq = (self._dialogue.seq + 1) & frames.SEQ_MASK
        self._send(seq, frames.one(seq, kind, payload, len(data)), data)

    def post(self, kind: Kind, payload: bytes) -> int:
        """Send a question, for :meth:`answer`, and what is queued."""
        if self.ended is not None:
            self._refuse()
        if self.freed:
            self.queue_freed()
        return self._flush(frames.record(kind, payload))

    def _flush(self, *question: bytes) -> int:
        """Send what is queued, and the question, as one message."""
        if self.ended is not None:
            self._refuse()
        lasting = self._lasting
        if lasting is None or not lasting.due:
            return self._send_records([*self._outbox, *question])
        if lasting.heavy or lasting.doubt:
            self._lighten(lasting)
        heard = lasting.heard
        seq = self._send_records([frames.record(Kind.HEARD, messages.HANDLE.pack(heard)), *self._outbox, *question])
        lasting.told, lasting.due = heard, lasting.doubt
        return seq

    def _send_records(self, records: list[bytes]) -> int:
        seq = (self._dialogue.seq + 1) & frames.SEQ_MASK
        self._send(seq, frames.message(seq, len(records), records[0] if len(records) == 1 else b"".join(records)))
        return seq

    def _lighten(self, lasting: Rejoining) -> None:
        """Have the node say what it has, before too much is kept for the case that the link breaks; wait for it when
        too much is."""
        if self._mark < 0 or lasting.doubt or not lasting.keeps(self._mark):  # its answer may have been swallowed
            self._send_mark()
        if lasting.full:
            self._await_mark()

    def _send_mark(self) -> None:
        self._mark = self._send_records([*self._outbox, frames.record(Kind.MARK)])

    def _await_mark(self) -> None:
        heard, body, _ = self._await(self._mark, Kind.MARK)
        self._expect(heard, body, Kind.MARK, Kind.MARKED)
        self._marked(body)

    def _marked(self, body: memoryview) -> None:
        told = self.read(messages.get_number, body, "MARKED")
        self._mark = -1
        if self._lasting is not None and self._lasting.doubt:
            self._lasting.heard = told
            self._lasting.doubt = False

    def give_back(self, *, interrupted: bool = False) -> None:
        """Memory that was sent is its owner's again, to write to. What the node may not have yet is copied, or, if it
        is much, waited for; where an interrupt forbids to wait, it is not kept."""
        lasting = self._lasting
        if lasting is None or not lasting.kept.borrowed or self.ended is not None:
            return
        lasting.tidy()
        much = lasting.kept.borrowed > _MOST_COPIED
        if much and interrupted:
            lasting.kept.give_back()
        elif much:
            with contextlib.suppress(DeadlineExceeded):  # a node at work for long: copied after all
                self._send_mark()
                self._await_mark()
                lasting.tidy()
        lasting.kept.own()

    def _send(self, seq: int, header: bytes, data: memoryview | None = None) -> None:
        """Send the message, and forget the outbox: it was part of it, or is empty. Interrupted, it raises when the
        message is out, or when nothing of it is."""
        size = len(header)
        buffers: tuple[memoryview, ...] = ()
        if data is not None:
            size, buffers = size + len(data), (data,)
        traffic, resumable = self.traffic, self._resumable
        begun = resumable.begun if resumable is not None else 0
        interrupt: BaseException | None = None
        try:
            self._connection.send(header, buffers)
        except GenieError as error:
            self.fail(self._last_words() or error)
        except BaseException as error:
            if resumable is None:
                self.end(ConnectionLost("sending was interrupted", where=self.node, hint=_OVER))
                raise
            if resumable.begun == begun:
                raise
            interrupt = error
        self._dialogue.seq = seq
        self._outbox = []
        self._outbox_bytes = 0
        self.bulks += 1 if data is not None else 0
        traffic["bytes_sent"] += size
        traffic["messages_sent"] += 1
        if interrupt is not None and resumable is not None:
            try:
                resumable.finish()
            except GenieError as error:
                error.where = self.node
                self.end(error)
            raise interrupt

    # --- in ---------------------------------------------------------------------------------------

    def ask(self, kind: Kind, payload: bytes, answer: Kind) -> tuple[memoryview, memoryview | None]:
        """The answer's payload, and its data if it has any."""
        seq = self.post(kind, payload)
        before = time.monotonic()
        answered = self.answer(seq, kind, answer)
        self.round_trip = min(self.round_trip, time.monotonic() - before)
        return answered

    def answer(self, seq: int, kind: Kind, answer: Kind) -> tuple[memoryview, memoryview | None]:
        """To the question ``kind`` that went as message ``seq``. Answers to earlier ones are dropped."""
        self.traffic["round_trips"] += 1
        if seq in self.streams:
            return self.next_answer(seq, kind, answer)
        heard, body, data = self._await(seq, kind)
        self._expect(heard, body, kind, answer)
        return body, data

    def next_answer(self, seq: int, kind: Kind, answer: Kind) -> tuple[memoryview, memoryview | None]:
        """The next to the question that went as message ``seq``, which is a key of ``streams``. Those that came while
        another answer was waited for are not lost."""
        if self.ended is not None:
            self._refuse()
        stream = self.streams[seq]
        if stream.came:
            heard, kept, data = stream.came.popleft()
            body = memoryview(kept)
        else:
            heard, body, data = self._await(seq, kind)
        self._expect(heard, body, kind, answer)
        return body, data

    def _expect(self, heard: int, body: memoryview, kind: Kind, answer: Kind) -> None:
        if heard == _ERROR:
            raise messages.get_error(body, self.node)
        if heard != answer:
            self.fail(ProtocolError(f"record kind {heard} is no answer to {kind.name}"))

    def _await(self, seq: int, kind: Kind) -> tuple[int, memoryview, memoryview | None]:
        self._awaited = seq
        try:
            while True:
                try:
                    message = self._connection.receive(self._memory, self.timeout)
                except _Stale:
                    continue
                got, heard, body = frames.single(message.header)
                self.traffic["bytes_received"] += len(message.header)
                self._dialogue.hear(heard)
                if heard == _BYE:
                    raise self._farewell(body)
                data = memoryview(message.buffers[0]) if message.buffers else None
                if data is not None:
                    self.traffic["bytes_received"] += len(data)
                if got == seq:
                    return heard, body, data
                if got in self.streams:
                    self.streams[got].came.append((heard, bytes(body), data))
                else:
                    # An answer nobody waits for any more: its question was interrupted, or took too long.
                    self._check_stale(got)
                    if heard == _MARKED:
                        self._marked(body)
        except DeadlineExceeded as error:
            raise DeadlineExceeded(
                f"{self.node} did not answer {kind.name} within {self.timeout:g} s",
                stage=Stage.ANSWER,
                seconds=self.timeout,
                setting="timeout",
                where=self.node,
                hint="the node may still be computing: ask again, or raise `timeout` (GENIE_TIMEOUT)",
            ) from error
        except GenieError as error:
            self.fail(error)

    def read(self, reader: Callable[_P, _T], *answer: _P.args, **options: _P.kwargs) -> _T:
        """What ``reader`` makes of an answer; a malformed one ends the conversation."""
        try:
            return reader(*answer, **options)
        except (ProtocolError, LimitExceeded) as error:
            self.fail(ProtocolError(error.message))

    def _memory(self, header: bytes, sizes: Sequence[int]) -> Sequence[memoryview]:
        seq, kind, _ = frames.single(header)
        (size,) = sizes
        if seq != self._awaited:
            if seq not in self.streams:
                self._check_stale(seq)
                raise _Stale  # its data is skipped, not kept
            if kind != _VALUE or size != self.streams[seq].data:
                raise ProtocolError(f"{size} bytes of data that were not asked for")
            return (room(size),)
        if kind != _VALUE or (self.target is not None and size != len(self.target)):
            raise ProtocolError(f"{size} bytes of data that were not asked for")
        return (room(size) if self.target is None else self.target,)

    def _check_stale(self, seq: int) -> None:
        if (self._awaited - seq) & frames.SEQ_MASK > 1 << 31:
            raise ProtocolError(f"an answer to message {seq}, which is not the next to be answered")

    def cancel(self) -> None:
        """What was asked so far, sent or queued, need not be done any more."""
        if self.ended is not None:
            self._refuse()
        if self._lasting is None:
            raise UnsupportedOperation(
                "the node keeps no session for a client that comes back, so it can't be asked to cancel its work",
                where=self.node,
                hint="set `lease_seconds` above 0 on both sides",
            )
        self._lasting.cancel(self._dialogue.seq + bool(self._outbox))

    # --- the end ----------------------------------------------------------------------------------

    def close(self) -> None:
        if self.ended is not None:
            return
        if self._lasting is not None:
            self._lasting.patient = False
        with contextlib.suppress(GenieError):
            self.queue(Kind.BYE)
            self.push()
        self.end(SessionClosed("the session was closed", where=self.node))

    def fail(self, error: GenieError) -> NoReturn:
        """End it for this reason, which says which node is meant: a shortcut's name tells nobody."""
        error.where = self.node
        if isinstance(error, ConnectionLost):
            error.hint = _HINTS.get(type(error.__cause__), _LOST)
        self.end(error)
        raise error

    def end(self, error: GenieError) -> None:
        self.ended = error
        self._dialogue.close()
        self._outbox = []
        self.freed.clear()
        self.streams.clear()
        self._connection.close()

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
                return self._farewell(body)

    def _farewell(self, body: memoryview) -> GenieError:
        if not body:
            return SessionClosed("the node ended the session", hint=_OVER)
        error = messages.get_error(body, self.node)
        return error if isinstance(error, BackendError) else NodeError(error.message, hint=error.hint)

    def _refuse(self) -> NoReturn:
        reason = self.ended
        assert reason is not None
        if isinstance(reason, SessionClosed):
            raise SessionClosed(reason.message, where=reason.where, hint=reason.hint)
        raise ConnectionLost(f"the session is over: {reason.message}", where=self.node, hint=_OVER) from reason


class _Stale(Exception):
    """Data of an answer nobody waits for any more."""


def _no_memory(header: bytes, sizes: Sequence[int]) -> Sequence[memoryview]:
    raise _Stale
