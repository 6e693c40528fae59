"""The client's end of a link that is made anew when it breaks, as long as the node keeps the session.

What was sent is kept until the node has it, and what the node sent is counted; whoever comes back says what arrived
here, is told what arrived there, and both send the rest again. So each message is taken once, in order, whatever
became of the connections. There is no thread: a broken link is noticed when it is used.
"""

from __future__ import annotations

import math
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence

import attrs
import structlog

from genie.backoff import pauses
from genie.errors import (
    BackendUnavailable,
    ConnectionLost,
    DeadlineExceeded,
    GenieError,
    ProtocolError,
    SessionClosed,
    TlsFailed,
)
from genie.interfaces import Connection, Message, Resumable
from genie.remote.greeting import Met
from genie.remote.kept import KEPT_DATA, Kept, Said
from genie.ways import carrier
from genie.wire import Allocate, Buffer, Kind, frames
from genie.wire.messages import Back, Standing

log = structlog.get_logger("genie.client")

_WINDOW_BYTES = 32 << 20
_TIDY_BYTES = 1 << 16  # between two looks at what need not be kept any more
_UNTOLD = 32  # answers that arrived, before the node is told
_MOST_AGAIN = 1 << 15
_SHORTEST_ATTEMPT = 1.0
_QUIET_SECONDS = 2.0  # of trying to come back, before the log says so
_GRACE_SECONDS = 0.5  # for what the node has told

_SEQ = struct.Struct("<I")
_SEQ_AT = 4


@attrs.frozen(kw_only=True)
class Reunion:
    """How to come back to a session: the ways to its node, by preference, and the proof. ``meet`` greets the node at an
    address, within so many seconds."""

    meet: Callable[[str, float, Back], Met]
    addresses: Sequence[str]
    session: str
    key: str = attrs.field(repr=False)
    lease: float
    heartbeat: float
    connect_timeout: float
    refused: float = 2.0  # where nobody listens the node has ended, or what stands between is being restarted
    silence: float = math.inf  # of a node that is there and answers nothing, not even here: then it is given up


class Rejoining:
    """A :class:`genie.interfaces.Connection`, of an open session. What it raises is final.

    It is :class:`genie.interfaces.Resumable` whatever it runs over: a message is kept first and then sent, so one that
    an interrupt struck can always be sent again, over a new connection if need be.

    ``due`` says that there is something to tell the node, or to ask it, before more is sent: see
    ``Conversation``.
    """

    def __init__(self, connection: Connection, reunion: Reunion) -> None:
        self.reunion = reunion
        self.kept = Kept(1)  # HELLO was the message 0
        self.heard = 0
        self.told = 0  # of what was heard
        self.rejoined = 0
        self.due = False
        self.patient = True  # else one attempt to come back is enough
        self.doubt = False  # an interrupt may have swallowed a message that was not counted
        self._connection = connection
        self._out = 1  # the messages before this number went out whole by this connection
        self._first = _begun(connection) - 1  # messages that it had begun before those: the greeting
        self._beat = reunion.heartbeat
        self._silent = 0.0  # seconds of waiting without a sign of life
        self._early: deque[Message] = deque()  # received already, and counted
        self._answered: bytes | None = None  # the latest one's header: all messages up to its question arrived
        self._look_at = _TIDY_BYTES
        self._taken = 0  # what the node had last when this side came back
        self._got_through = (-1, -1)  # what had been heard and taken when the link broke
        self._came_back = 0.0  # when it did last
        self._over: ConnectionLost | None = None
        self._trouble = 0.0  # since when nothing gets through
        self._pauses = pauses()
        self._missed = -1  # what had been heard when the node had told more
        self._stuck = -1  # what the node had taken last when it was idle, though more was sent

    @property
    def peer(self) -> str:
        return str(getattr(self._connection, "peer", self.reunion.addresses[0]))

    @property
    def transport(self) -> str:
        return carrier(self._connection)

    # --- out --------------------------------------------------------------------------------------

    @property
    def begun(self) -> int:
        return self.kept.next

    def send(self, header: Buffer, buffers: Sequence[Buffer] = ()) -> None:
        kept = self.kept
        if self._out != kept.next:
            self.finish()
        kept.add(bytes(header), memoryview(buffers[0]) if buffers else None)
        try:
            self._connection.send(header, buffers)
        except (ConnectionLost, DeadlineExceeded, TlsFailed) as error:
            self._send_again(error)
        self._out = kept.next
        if kept.bytes > self._look_at and self.tidy() > _WINDOW_BYTES // 2:
            self.due = True

    def finish(self) -> None:
        kept, connection = self.kept, self._connection
        if self._out == kept.next:
            return
        if isinstance(connection, Resumable):
            try:
                connection.finish()
                for said in kept.since(connection.begun - self._first - 1):
                    _say(connection, said)
            except (ConnectionLost, DeadlineExceeded, TlsFailed) as error:
                self._send_again(error)
            except SessionClosed as over:
                raise ConnectionLost(over.message) from over
        else:  # how much of it went out is not known
            self._rejoin(ConnectionLost("sending was interrupted"))
        self._out = kept.next

    def _send_again(self, error: GenieError) -> None:
        if self._last_words():
            raise error
        self._rejoin(error)

    @property
    def heavy(self) -> bool:
        """The node should be asked what it has."""
        return self.tidy() > _WINDOW_BYTES // 2

    @property
    def full(self) -> bool:
        """No more should be sent before it has said so."""
        return self.tidy() > _WINDOW_BYTES

    def keeps(self, seq: int) -> bool:
        """Whether the node may not have the message of this number yet."""
        return (self.kept.next - 1 - seq) & frames.SEQ_MASK < len(self.kept)

    def tidy(self) -> int:
        """Keep only what the node may not have. How many bytes that is."""
        kept = self.kept
        if self._answered is not None:
            (seq,) = _SEQ.unpack_from(self._answered, _SEQ_AT)
            if self.keeps(seq):
                kept.acknowledge(kept.next - 1 - ((kept.next - 1 - seq) & frames.SEQ_MASK))
            self._answered = None
        self._look_at = kept.bytes + _TIDY_BYTES
        return kept.bytes

    # --- in ---------------------------------------------------------------------------------------

    def receive(self, allocate: Allocate, timeout: float | None = None) -> Message:
        """As a connection's; silence is looked into now and then, and is not taken for the node's death."""
        waited = 0.0
        while True:
            if self._early:
                return self._early.popleft()
            beat = self._beat if self._missed != self.heard else min(self._beat, _GRACE_SECONDS)
            beat = min(beat, self._bearable)
            wait = beat if timeout is None or timeout - waited > beat else max(timeout - waited, 0.001)
            try:
                message = self._connection.receive(allocate, wait)
                self.heard += 1
                self._silent = 0.0
                break
            except DeadlineExceeded as error:
                waited += wait
                self._silent += wait
                if not (error.midway or (wait >= beat and self._lost())):
                    if timeout is not None and waited >= timeout:
                        raise
                    continue
                self._rejoin(error)
            except (ConnectionLost, TlsFailed) as error:
                self._rejoin(error)
            except Exception:  # refused by ``allocate``: it came, and is of no use
                self.heard += 1
                raise
            except BaseException:
                self.doubt = self.due = True
                raise
            waited = 0.0
        self._answered = message.header
        if self.heard - self.told >= _UNTOLD:
            self.due = True
        return message

    def close(self) -> None:
        self._connection.close()

    def cancel(self, last: int) -> None:
        """Tell the node, on a connection of its own, that what was asked up to the message of this number need not be
        done. Raises what :func:`genie.remote.greeting.meet` does."""
        self._meet(self.reunion.connect_timeout, probe=True, cancel=last).connection.close()

    # --- a link that is silent, or broken ---------------------------------------------------------

    def _lost(self) -> bool:
        """Ask the node, on a connection of its own, whether something was said that did not arrive. A node at work is
        only slow; one that does not answer here, either, or does not let us in any more, may be: of a dead host the
        link itself will tell."""
        began = time.monotonic()
        try:
            met = self._meet(min(max(self._beat, _SHORTEST_ATTEMPT), self._bearable), probe=True)
            met.connection.close()
        except SessionClosed:  # as will be told to who comes back
            return True
        except (BackendUnavailable, ConnectionLost, DeadlineExceeded, TlsFailed) as error:
            self._silent += time.monotonic() - began
            if self._silent >= self.reunion.silence:
                self._over = ConnectionLost(
                    f"the node said nothing for {self._silent:.3g} s ({error.message})",
                    where=self.reunion.addresses[0],
                )
                raise self._over from error
            log.warning(
                "the node is silent, and does not answer when it is asked: waiting for it",
                node=self.reunion.addresses[0],
                reason=error.message,
            )
            return False
        except GenieError:  # it answers, if not as one would like
            self._silent = 0.0
            return False
        self._silent = 0.0
        standing = _standing(met)
        if standing.told > self.heard:
            # It may be on its way still: it is lost when nothing has come shortly after, either.
            missed, self._missed = self._missed, self.heard
            return missed == self.heard
        # What was sent may be on its way still: it is lost when it is the next time, too.
        idle = not standing.busy and standing.taken != (self.kept.next - 1) & frames.SEQ_MASK
        stuck, self._stuck = self._stuck, standing.taken if idle else -1
        return idle and stuck == standing.taken

    @property
    def _bearable(self) -> float:
        """Seconds for which more silence is borne, and one more attempt is worth it."""
        return max(self.reunion.silence - self._silent, _SHORTEST_ATTEMPT)

    def _meet(self, timeout: float, *, probe: bool = False, attempt: int = 0, cancel: int | None = None) -> Met:
        reunion = self.reunion
        back = Back(
            session=reunion.session,
            key=reunion.key,
            heard=self.heard,
            sent=(self.kept.next - 1 if cancel is None else cancel) & frames.SEQ_MASK,
            probe=probe,
            cancel=cancel is not None,
        )
        address = reunion.addresses[attempt % len(reunion.addresses)]
        return reunion.meet(address, min(timeout, reunion.connect_timeout), back)

    def _rejoin(self, broken: GenieError) -> None:
        """Come back to the session. Raises :class:`ConnectionLost` when it is over, or cannot be reached as long as the
        node keeps it."""
        if self._over is not None:
            raise self._over
        try:
            self._come_back(broken)
        except ConnectionLost as error:
            self._over = error
            raise

    def _come_back(self, broken: GenieError) -> None:
        self._connection.close()
        where = self.reunion.addresses[0]
        if self.doubt:
            raise ConnectionLost(f"{broken.message}, after an answer was interrupted", where=where)
        log.info("coming back", session=self.reunion.session, reason=broken.message)
        reason = broken
        now = time.monotonic()
        got_through = (self.heard, self._taken)
        if got_through != self._got_through or now - self._came_back > self.reunion.lease:
            self._got_through, self._trouble, self._pauses = got_through, now, pauses()
        else:  # a link that breaks again and again before anything has got through is no link
            time.sleep(next(self._pauses))
        end = refused_end = self._trouble + min(self.reunion.lease, self.reunion.silence)
        attempt, began, told_at = -1, now, now + _QUIET_SECONDS
        while now < end:
            attempt += 1
            try:
                self._once(attempt, max(end - now, _SHORTEST_ATTEMPT))
                tell = log.info if told_at < math.inf else log.warning
                tell("came back", session=self.reunion.session, attempts=attempt + 1)
                return
            except (BackendUnavailable, ConnectionLost, DeadlineExceeded, TlsFailed) as failure:
                reason = failure
            except SessionClosed as over:
                raise ConnectionLost(f"{broken.message}, and {over.message}", where=where) from over
            except GenieError as unwanted:
                told = f"{broken.message}, and the node did not take this client back: {unwanted.message}"
                raise ConnectionLost(told, where=where) from unwanted
            now, pause = time.monotonic(), next(self._pauses)
            if now >= told_at:
                told_at = math.inf
                log.warning(
                    "the link to the node broke: trying to come back",
                    node=where,
                    reason=reason.message,
                    since=round(now - began, 1),
                    seconds_left=round(max(end - now, 0.0), 1),
                )
            refused = isinstance(reason, BackendUnavailable) and reason.refused
            refused_end = min(refused_end, now + self.reunion.refused) if refused else end
            if now + pause >= min(end, refused_end) or not self.patient:
                break
            time.sleep(pause)
        if refused_end < end:
            raise ConnectionLost(f"{broken.message}, and nobody listens there any more", where=where) from reason
        within = (
            f"the session's lease of {self.reunion.lease:g} s"
            if self.reunion.lease <= self.reunion.silence
            else f"{self.reunion.silence:g} s"
        )
        raise ConnectionLost(
            f"{broken.message}, and the node was not reached again within {within} ({reason.message})",
            where=where,
        ) from reason

    def _once(self, attempt: int, timeout: float) -> None:
        kept = self.kept
        last = kept.next - 1
        met = self._meet(timeout, attempt=attempt)
        connection = met.connection
        try:
            standing = _standing(met)
            behind = (last - standing.taken) & frames.SEQ_MASK
            if behind > last - kept.first + 1:
                raise ProtocolError(f"the node says it has message {standing.taken} last, of {last}")
            missing = kept.since(last - behind)
            heard, early = self.heard, list(self._early)
            if missing:  # else the node's messages are received when they are looked for
                if standing.again > _MOST_AGAIN:
                    raise ProtocolError(f"the node wants to say {standing.again} messages again")
                for _ in range(standing.again):
                    heard += 1
                    early.append(connection.receive(_few, self.reunion.connect_timeout))
            for said in missing:
                _say(connection, said)
        except BaseException:
            connection.close()
            raise
        now, received, first = time.monotonic(), deque(early), _begun(connection) - kept.next
        self._connection, self._early, self.heard = connection, received, heard
        self._out, self._first = kept.next, first
        self._taken, self._stuck, self._missed, self._came_back = standing.taken, -1, -1, now
        self.rejoined += 1

    def _last_words(self) -> bool:
        """Whether the node said why it hung up: that comes next."""
        while True:
            try:
                message = self._connection.receive(_none, 0.2)
                if frames.single(message.header)[1] == Kind.BYE:
                    self._early.append(message)
                    return True
            except _Unwanted:
                continue
            except GenieError:
                return False
            except BaseException:
                self._connection.close()  # what was passed over must be said again
                raise


class _Unwanted(Exception):
    """Data of an answer; it will be said again."""


def _none(header: bytes, sizes: Sequence[int]) -> Sequence[memoryview]:
    raise _Unwanted


def _begun(connection: Connection) -> int:
    return connection.begun if isinstance(connection, Resumable) else 0


def _say(connection: Connection, said: Said) -> None:
    if said.lost:
        raise SessionClosed("what an interrupted upload had sent is not there any more to send again")
    connection.send(said.header, () if said.data is None else (said.data,))


def _few(header: bytes, sizes: Sequence[int]) -> Sequence[memoryview]:
    (size,) = sizes
    if size > KEPT_DATA:
        raise ProtocolError(f"{size} bytes of data are said again; a node keeps {KEPT_DATA}")
    return (memoryview(bytearray(size)),)


def _standing(met: Met) -> Standing:
    standing = met.welcome.standing
    if standing is None:
        raise ProtocolError("the node does not say how things are with the session")
    return standing
