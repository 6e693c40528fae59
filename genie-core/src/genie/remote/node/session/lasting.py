"""The node's end of a session's link, which outlives its connections for the session's lease.

While the client is away the session's thread finishes what it was at, and then waits here. What it says is kept until
the client has told that it arrived. A connection on which the client comes back is handed over by another thread.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import attrs
import structlog

from genie.errors import (
    BackendError,
    ConnectionLost,
    DeadlineExceeded,
    NodeError,
    ProtocolError,
    SessionClosed,
    TlsFailed,
)
from genie.interfaces import Connection, Message, Watched
from genie.remote.kept import KEPT_DATA, Kept, Said
from genie.remote.memory import room
from genie.ways import carrier
from genie.wire import PROTOCOL, Allocate, Buffer, Dialogue, Kind, frames, messages
from genie.wire.messages import Back, Standing, Welcome

log = structlog.get_logger("genie.node")

_MOST_BYTES = 4 << 20
_WAIT_SECONDS = 2.0  # between signs of life to a client that waits for its busy session
_MOST_AHEAD = 16 << 20  # bytes of bulk data
_LOOKS_APART = 2.0  # at most, while a session waits for something else; in a longer time it was at work


@attrs.define(eq=False)
class _Comer:
    """A client that came back, and is not attended to yet."""

    connection: Connection
    back: Back
    welcome: Callable[[Welcome], None]  # says it, proved as the client's greeting was
    attended: bool = False


class Lasting:
    """A :class:`genie.interfaces.Connection` for the session's thread.

    ``make_again`` gives the answer to the client's last message once more: it is asked for what is too large to keep.
    ``idle`` is told that the session has nothing to do until its client is back, ``tell`` that it is ``away`` or
    ``back``, with facts for the audit log.
    """

    def __init__(self, connection: Connection, dialogue: Dialogue, session: str, lease: float) -> None:
        self.key = secrets.token_hex(16)
        self.lease = lease
        self.reason = ""  # why the session is over, if the link was why
        self.rejoined = 0
        self.make_again: Callable[[], tuple[bytes, Sequence[Buffer]]] | None = None
        self.idle: Callable[[], None] = _unheard
        self.tell: Callable[[str, Mapping[str, str | float]], None] = _unheard
        self._session = session
        self._dialogue = dialogue
        self._connection = connection
        self._kept = Kept(1)
        self._changed = threading.Condition()
        self._comer: _Comer | None = None
        self._broken = False
        self._noticing = threading.Lock()  # that the client hung up: two threads may, and one reads what it had said
        self._ahead: deque[Message] = deque()  # what the client had said when it hung up
        self._left = False  # that ended with BYE
        self._gone_since = self._looked = -math.inf  # while the session waits for something else
        self._late = False  # the client was gone for the whole lease
        self._over = False
        self._busy = True  # until it waits for a message
        self._allocate: Allocate = _nothing
        self._bulk: Allocate = self._room

    # --- for the session's thread -------------------------------------------------------------------

    def send(self, header: Buffer, buffers: Sequence[Buffer] = ()) -> None:
        """A broken link is no error: the client will be told again. Raises :class:`ConnectionLost` when the session is
        over."""
        if self._over:
            raise ConnectionLost(self.reason or "the session is over")
        kept = self._kept
        if not buffers:
            kept.add(bytes(header))
        elif len(buffers[0]) <= KEPT_DATA:
            kept.add(bytes(header), memoryview(bytes(buffers[0])))
        else:
            kept.add(bytes(header))
            kept.lose()
        while kept.bytes > _MOST_BYTES:
            kept.acknowledge(kept.first)  # who comes back for it will be told that it is gone
        if not self._broken:
            try:
                self._connection.send(header, buffers)
            except BackendError as error:
                # A client may have said BYE while it was answered: that is to be heard.
                with self._noticing:
                    if isinstance(error, ConnectionLost) and not (self._left or self._broken):
                        self._left = self._read_ahead(self._connection)
                if not self._broken:
                    self._break(error)

    def receive(self, allocate: Allocate, timeout: float | None = None) -> Message:
        """The client's next message, however often it comes back for it. Raises :class:`ConnectionLost` when the lease
        is over."""
        self._allocate = allocate
        if self._ahead:
            return _landed(self._ahead.popleft(), allocate)
        while True:
            if self._broken or self._comer is not None:
                self._await_client()
            self._busy = False
            try:
                return self._connection.receive(self._bulk, timeout)
            except (ConnectionLost, DeadlineExceeded, TlsFailed) as error:  # a deadline: silent within a message
                self._break(error)
            finally:
                self._busy = True

    def _room(self, header: bytes, sizes: Sequence[int]) -> Sequence[memoryview]:
        self._busy = True  # bulk data is coming
        return self._allocate(header, sizes)

    def hung_up(self) -> bool:
        """See :class:`genie.interfaces.Watched`; from any thread, while nobody receives. A session that waits for
        something else waits on for a client that may come back: it has hung up when it said BYE, or was away for the
        whole lease."""
        with self._changed:
            connection, here = self._connection, self._comer is not None
        if self._over or self._left:
            return True
        if not here and isinstance(connection, Watched):
            with self._noticing:
                if not (self._left or self._broken) and connection.hung_up():
                    self._left = self._read_ahead(connection)
            if self._left:
                return True
        gone = self._broken and not here
        now = time.monotonic()
        if not gone or now - self._looked > _LOOKS_APART:
            self._gone_since = now
        self._looked = now
        self._late = gone and now - self._gone_since >= self.lease
        return self._late

    def cut(self) -> bool:
        """Whether the client hung up in the middle of a message; for the thread that receives it."""
        with self._changed:
            connection, gone = self._connection, self._broken or self._comer is not None or self._over
        return gone or (isinstance(connection, Watched) and connection.hung_up())

    def _read_ahead(self, connection: Connection) -> bool:
        """The client hung up: what it had said before is received now, and taken when its turn comes. Whether it ended
        with BYE."""
        size = 0

        def room_for(header: bytes, sizes: Sequence[int]) -> Sequence[memoryview]:
            nonlocal size
            size += sum(sizes)
            if size > _MOST_AHEAD:  # the client will say it again
                raise ConnectionLost(f"the client hung up with more than {_MOST_AHEAD} bytes unread")
            return [room(each) for each in sizes]

        try:
            while True:
                message = connection.receive(room_for, _LOOKS_APART)
                self._ahead.append(message)
                if frames.split(message.header)[1][-1][0] == Kind.BYE:
                    return True
        except BackendError as error:
            self._break(error)
            return False

    @property
    def transport(self) -> str:
        """What carries it now, or did last."""
        return carrier(self._connection)

    @property
    def away(self) -> bool:
        """As far as is known: a session at work does not look."""
        return self._broken and self._comer is None and not self._over

    def acknowledge(self, heard: int) -> None:
        """The client has so many of the node's messages."""
        if not 0 <= heard < self._kept.next:
            raise ProtocolError(f"the client has heard {heard} messages of {self._kept.next - 1}")
        self._kept.acknowledge(heard)

    @property
    def told(self) -> int:
        """How many messages the client was sent, or will be when it comes back."""
        return self._kept.next - 1

    def _break(self, error: BackendError) -> None:
        with self._changed:  # two threads may notice
            noticed, self._broken = self._broken, True
        self._connection.close()
        if self._comer is None and not self._over and not noticed:
            log.info("client away", session=self._session, reason=error.message, lease=self.lease)
            self.tell("away", {"reason": error.message, "lease": self.lease})

    def _await_client(self) -> None:
        while True:
            self.idle()
            with self._changed:
                self._busy = False
                lease = 0.0 if self._late else self.lease
                self._changed.wait_for(lambda: self._comer is not None or self._over, lease)
                self._busy = True
                comer = self._comer
                if comer is None or self._over:
                    if not self._over:
                        self.reason = f"its lease of {self.lease:g} s was over"
                    self._over = True
                    self._changed.notify_all()
                    raise ConnectionLost(self.reason or "the session is over")
                self._comer = None
                comer.attended = True
                self._changed.notify_all()
                before, self._connection = self._connection, comer.connection
                self._broken = self._late = False
            before.close()
            try:
                self._greet(comer)
            except BackendError as error:
                self._break(error)
                continue
            self.rejoined += 1
            log.info("client back", session=self._session)
            self.tell("back", {"peer": str(getattr(comer.connection, "peer", ""))})
            return

    def _greet(self, comer: _Comer) -> None:
        """Tell a client what arrived, and once more what it did not hear."""
        heard, connection, kept = comer.back.heard, comer.connection, self._kept
        if not kept.first - 1 <= heard <= self.told:
            error = SessionClosed("more was said than the node keeps for a client that is away", where=self._session)
            connection.send(frames.one(0, Kind.ERROR, messages.put_error(error)))
            self.reason, self._over = error.message, True
            raise ConnectionLost(error.message)
        kept.acknowledge(heard)
        again = kept.since(heard)
        standing = Standing(taken=max(self._dialogue.seq, 0), told=self.told, again=len(again), busy=False)
        comer.welcome(welcome_back(self._session, standing))
        for said in again:
            header, buffers = self._once_more(said, comer.back.sent)
            connection.send(header, buffers)

    def _once_more(self, said: Said, sent: int) -> tuple[bytes, Sequence[Buffer]]:
        if not said.lost:
            return said.header, () if said.data is None else (said.data,)
        seq = frames.sequence(said.header)
        if seq == sent == self._dialogue.seq and self.make_again is not None:
            return self.make_again()
        # The client has asked for other things since: it does not wait for this one any more.
        return frames.one(seq, Kind.ERROR, messages.put_error(NodeError("the value has changed since"))), ()

    # --- for others ---------------------------------------------------------------------------------

    def standing(self) -> Standing:
        return Standing(taken=max(self._dialogue.seq, 0), told=self.told, busy=self._busy)

    def hand_over(self, connection: Connection, back: Back, welcome: Callable[[Welcome], None]) -> None:
        """The client is back, on ``connection``, where ``welcome`` welcomes it. Returns when the session's thread has
        it; the client is told to wait meanwhile. Raises :class:`SessionClosed` when it is too late,
        :class:`ConnectionLost` when the client left."""
        comer = _Comer(connection, back, welcome)
        with self._changed:
            if self._over:
                raise SessionClosed(self.reason or "the session is over")
            before, self._comer = self._comer, comer
            current = self._connection
            self._changed.notify_all()
        if before is not None:
            before.connection.close()  # its greeter sees that
        current.close()  # whoever waits for a message there is woken
        while True:
            with self._changed:
                self._changed.wait_for(lambda: comer.attended or self._over or self._comer is not comer, _WAIT_SECONDS)
                if comer.attended:
                    return
                if self._over:
                    raise SessionClosed(self.reason or "the session is over")
                if self._comer is not comer:
                    raise ConnectionLost("the client came back another time")
                try:
                    connection.send(frames.one(0, Kind.WAIT))
                except BackendError:
                    self._comer = None
                    raise

    def close(self) -> None:
        """The session is over; from any thread."""
        with self._changed:
            self._over = True
            comer, self._comer = self._comer, None
            connection = self._connection
            self._changed.notify_all()
        if comer is not None:
            comer.connection.close()
        connection.close()


def welcome_back(session: str, standing: Standing) -> Welcome:
    """What a client that comes back to this session is told, or asks."""
    return Welcome(major=PROTOCOL[0], minor=PROTOCOL[1], session=session, standing=standing)


def _landed(message: Message, allocate: Allocate) -> Message:
    """A message that was received early, with its data where the session wants it."""
    if not message.buffers:
        return message
    sizes = [len(buffer) for buffer in message.buffers]
    targets = [memoryview(target).cast("B") for target in allocate(message.header, sizes)]
    for target, buffer in zip(targets, message.buffers, strict=True):
        target[:] = buffer
    return frames.Message(message.header, targets)


def _unheard(*_: object) -> None:
    """Nobody wants to know."""


def _nothing(header: bytes, sizes: Sequence[int]) -> Sequence[memoryview]:
    raise ProtocolError("bulk data before anything was asked for")
