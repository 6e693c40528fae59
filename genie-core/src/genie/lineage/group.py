"""The sessions of one engine: one log of what is asked of them, and their recovery, all together, when one is lost."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn, TypeVar

from genie import telemetry
from genie.device import Device
from genie.errors import (
    BackendError,
    CheckpointError,
    ConfigError,
    ConnectionLost,
    GenieError,
    LimitExceeded,
    RemoteOpError,
    SessionClosed,
)
from genie.interfaces import Backend, Buffer, Recalling
from genie.lineage.budget import Budget
from genie.lineage.checkpointing import Checkpointing
from genie.lineage.contents import Content, Contents
from genie.lineage.flight import Flight
from genie.lineage.log import CHECKED, Diverged, End, Entry, Free, Log, Look, checksum
from genie.lineage.member import Member, Recoverable
from genie.lineage.places import Places
from genie.lineage.terms import Terms

log = telemetry.get_logger("genie.lineage")
_T = TypeVar("_T")

_FEW = 1 << 16  # uploads up to so many bytes are kept in memory
# Kinds of the errors that a member finds in place of a value which another should have sent it.
_CHANNEL_BROKE = frozenset({"ConnectionLost", "DeadlineExceeded", "BackendUnavailable"})
_QUIET_SECONDS = 1.0  # of trying, before the log says that it goes on; then each time as long as until then
_HINT = "what was on it is lost: call genie.shutdown() and begin anew"


class Group:
    """``lock`` is held by whoever calls one of the sessions, but to free."""

    def __init__(
        self, sessions: Sequence[Recoverable], backend: Backend, terms: Terms, devices: Sequence[Device]
    ) -> None:
        self.lock = threading.Lock()
        self.members = tuple(
            Member(number, session, device)
            for number, (session, device) in enumerate(zip(sessions, devices, strict=True))
        )
        self.log = Log()
        self.freed: deque[tuple[int, Sequence[int]]] = deque()  # by member; anybody may add at any moment
        self.dropped: deque[tuple[int, int]] = deque()  # loops nobody iterates any more: member, loop
        self.closed = False
        self.urgent = False  # there is more to do before a call than what is freed or dropped
        self._terms = terms
        self._places = Places(backend)
        self._contents = _contents(terms)
        self.flight = Flight()
        self.checkpointing = Checkpointing(terms, self._places, self._contents.directory)
        self._lost: GenieError | None = None  # and not recovered from yet
        self._over: ConnectionLost | None = None
        self._unproven = False  # nothing was answered since the last recovery
        self._given_up = ""  # why nothing is logged any more
        self._budget = Budget(terms.attempts, terms.seconds)
        self._loops = 0
        self._numbers = {"recoveries": 0, "recovery_calls": 0, "recovery_seconds": 0.0}

    # --- calls ----------------------------------------------------------------------------------------

    def do(self, entry: Entry, live: Callable[[], None] | None = None) -> None:
        """Log it and carry it out, by ``live`` the first time if that is given; the lock is held."""
        if self.freed or self.dropped or self.urgent or self.log.bytes > self._terms.log_bytes:
            self._tidy()
        if not self._given_up:
            self.log.append(entry)
        try:
            if live is None:
                entry.apply(self.members[entry.member])
            else:
                live()
        except GenieError as error:
            if self._is_loss(error):
                self._recover(error)  # which carries it out
                return
            self._unlog(entry)
            raise
        except BaseException:
            self.give_up("a call was interrupted, and whether it was carried out is not known")
            raise
        if self._given_up:
            self._follow((entry,))

    def ask(self, question: Callable[[], _T]) -> _T:
        """An answer, whatever becomes of the nodes; the lock is held."""
        while True:
            if self.freed or self.dropped or self.urgent:
                self._tidy()
            try:
                return question()
            except GenieError as error:
                if not self._is_loss(error):
                    raise
                self._recover(error)

    def looked(self, member: int, handle: int, told: Buffer) -> None:
        """The program was told this value."""
        self._progress()
        self.flight.looked(member, handle)
        if not self._given_up and memoryview(told).nbytes <= CHECKED:
            self.log.append(Look(member, handle, checksum((told,))))
        if time.monotonic() >= self.checkpointing.due:
            self.checkpoint()

    def told(self, entry: Entry) -> None:
        """Log what was carried out already."""
        self._progress()
        if not self._given_up:
            self.log.append(entry)

    def _progress(self) -> None:
        if self._unproven:
            self._unproven = False
            self._budget.renew()

    def next_loop(self) -> int:
        self._loops += 1
        return self._loops

    def keep(self, data: memoryview, shared: bool) -> bytes | Content:
        """The bytes of an upload, until they are behind a checkpoint."""
        if self._given_up:
            return b""
        if len(data) <= _FEW:
            return bytes(data)
        try:
            try:
                return self._contents.put(data, shared=shared)
            except LimitExceeded:
                if not self.checkpoint():  # which makes room
                    raise
                return self._contents.put(data, shared=shared)
        except LimitExceeded as error:
            self.give_up(error.message)
        except OSError as error:
            self.give_up(f"what is uploaded can't be kept on disk: {error}")
        return b""

    def free(self, member: int, handles: Sequence[int]) -> None:
        """Garbage collection may call this at any moment, also while this thread holds the lock. It is carried out
        before the next call."""
        if not self.over:
            self.freed.append((member, handles))

    def _tidy(self) -> None:
        if self._over is not None:
            raise self._over_again()
        if self._lost is not None:  # a recovery was interrupted
            self._recover(self._lost)
        self._drain()
        if self.log.bytes > self._terms.log_bytes:
            self._shorten()

    def _drain(self) -> None:
        """Free what was freed, and end loops that were dropped."""
        while self.freed or self.dropped:
            if self.freed:
                member, handles = self.freed[0]
                entry: Entry = Free.of(member, handles)
                self.flight.freed(member, handles)
            else:
                member, loop = self.dropped[0]
                entry = End(member, loop, ran_out=False)
            if not self._given_up:
                self.log.append(entry)
            # An entry that is logged is freed twice at most, which does no harm.
            (self.freed if isinstance(entry, Free) else self.dropped).popleft()
            try:
                entry.apply(self.members[member]) if isinstance(entry, Free) else entry.repeat(self.members[member])
            except GenieError as error:
                if not self._is_loss(error):
                    raise
                self._recover(error)

    def _shorten(self) -> None:
        """The log is longer than it may be. What is under way is waited for, up to twice as much."""
        most = self._terms.log_bytes
        waits = self.checkpointing.enabled and self._busy() and self.log.bytes <= 2 * most
        if not waits and not self.checkpoint():
            self.give_up(f"the log grew beyond {most} bytes (recovery_log_bytes)")

    def _busy(self) -> bool:
        """Something is under way that no checkpoint could have."""
        return self.flight.anything or any(member.looping for member in self.members)

    def _unlog(self, entry: Entry) -> None:
        if self.log.entries and self.log.entries[-1] is entry:
            self.log.pop()

    def _is_loss(self, error: GenieError) -> bool:
        """Whether a session is gone, or a channel between two."""
        if self.closed or self._over is not None:
            return False
        if isinstance(error, RemoteOpError):
            return len(self.members) > 1 and error.kind in _CHANNEL_BROKE
        return isinstance(error, ConnectionLost | SessionClosed)

    def give_up(self, why: str) -> None:
        """Nothing is logged any more: from here on the loss of a node is final."""
        if not self._given_up:
            self._given_up = why
            self._behind()
            self.checkpointing.due = 0.0 if self.checkpointing.enabled else self.checkpointing.due
            log.warning("not recoverable any more", reason=why, device=self.members[0].device.id)

    def _behind(self) -> None:
        """The log is not needed any more."""
        self._follow(self.log.entries)
        self.log.clear()

    def _follow(self, entries: Iterable[Entry]) -> None:
        if self.checkpointing.enabled:
            for member in self.members:
                member.follow(entries)

    def recall(self, member: Member) -> None:
        """Have its session take back what it was asked; the lock is held. What was done of that decides what values are
        now, and which random numbers are next, and only the node knows it: the log does not lead here any more, and the
        next checkpoint begins it anew."""
        if self._over is not None:
            raise self._over_again()
        # While a recovery is interrupted, or a session has ended, nothing is under way.
        session = member.session
        if self._lost is not None or getattr(session, "closed", False) or not isinstance(session, Recalling):
            return
        try:
            session.cancel_work()
        except GenieError as error:
            if not self._is_loss(error):
                raise
            return  # nor is it on a node that is gone: the next call notices
        self.give_up("work was cancelled, and how much of it was done only its node knows")

    def checkpoint(self) -> bool:
        """Keep the state of now, if nothing is under way; whether the log begins anew."""
        keeping = self.checkpointing
        self._drain()
        if not keeping.enabled or self._busy():
            return False
        try:
            keeping.save(
                self.members,
                [self.flight.sent(member.number, len(member.sources)) for member in self.members],
            )
        except OSError as error:
            log.warning("no checkpoint", reason=str(error))
            return False
        except GenieError as error:
            if self._is_loss(error) and any(getattr(member.session, "closed", False) for member in self.members):
                self._recover(error)
            else:
                log.warning("no checkpoint", reason=error.message)
            return False
        self._behind()
        self._given_up = ""
        return True

    # --- recovery -------------------------------------------------------------------------------------

    def _recover(self, error: GenieError) -> None:
        """All sessions anew, in the state they had. Raises :class:`ConnectionLost` when that can't be."""
        began = time.monotonic()
        self._lost, self.urgent = error, True
        if self._given_up:
            self._end(error, self._given_up)
        if self._unproven and not self._budget.again():
            self._end(error, "its calls were repeated elsewhere, and that was lost, too")
        log.warning("recovering", device=self.members[0].device.id, reason=error.message, calls=len(self.log.entries))
        quiet = _QUIET_SECONDS
        while True:
            for member in self.members:
                member.leave()
            try:
                self._rebuild()
                break
            except Diverged as other:
                self._end(
                    error,
                    f"repeated, the same calls gave other values ({other}): a device or an operator among them does "
                    "not compute the same twice",
                )
            except CheckpointError as failure:
                self._end(error, f"its last checkpoint is of no use: {failure.message}")
            except BackendError as failure:
                reason = self._places.tried() or failure.message
                waited = time.monotonic() - began
                if waited >= quiet:
                    log.warning("not recovered yet", reason=reason, seconds=round(waited, 1))
                    quiet = 2 * waited
                if not self._budget.again():
                    self._end(error, f"no node could take its place: {reason}")
            except GenieError as failure:
                self._end(error, f"its calls could not be repeated: {failure.message}")
        seconds = time.monotonic() - began
        self._lost, self.urgent, self._unproven = None, False, True
        calls = len(self.log.entries)
        places = [member.place.id for member in self.members]
        log.warning("recovered", seconds=round(seconds, 3), calls=calls, places=places)
        for name, number in (("recoveries", 1), ("recovery_calls", calls), ("recovery_seconds", seconds)):
            self._numbers[name] += number

    def _rebuild(self) -> None:
        found = self._places.connect_all([member.device for member in self.members], self._budget)
        # From here on they are the members': whoever interrupts this leaves them to be closed by the next attempt.
        for member, (session, _) in zip(self.members, found, strict=True):
            member.session = session
        for member, (session, place) in zip(self.members, found, strict=True):
            member.move(session, place)
        for member in self.members:
            self.checkpointing.load(member)
        for member in self.members:
            member.join(self.members, self.checkpointing.received(member))
        for entry in self.log.entries:
            entry.repeat(self.members[entry.member])

    def _end(self, error: GenieError, reason: str) -> NoReturn:
        self._over = ConnectionLost(f"{error.message}; {reason}", where=error.where, hint=_HINT)
        self.urgent = True
        for member in self.members:
            member.leave()
        self._release()
        raise self._over_again() from error

    def _over_again(self) -> ConnectionLost:
        assert self._over is not None
        return ConnectionLost(self._over.message, where=self._over.where, hint=self._over.hint)

    # --- about it -------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        return self.closed or self._over is not None

    def stats(self) -> dict[str, int]:
        saved = self.checkpointing.saved
        return {
            **{name: int(number) for name, number in self._numbers.items() if name != "recovery_seconds"},
            "recovery_ms": int(self._numbers["recovery_seconds"] * 1e3),
            "recovery_log_bytes": self.log.bytes,
            "recovery_log_entries": len(self.log.entries),
            "checkpoints": self.checkpointing.count,
            "checkpoint_ms": int(self.checkpointing.seconds * 1e3),
            "checkpoint_bytes": saved.bytes if saved is not None else 0,
            "recovery_disk_bytes": self._contents.bytes,
        }

    def close(self) -> None:
        with self.lock:
            if not self.closed:
                self.closed = True
                for member in self.members:
                    member.leave()
                self._release()

    def _release(self) -> None:
        self.log.clear()
        self.freed.clear()
        self.checkpointing.close()
        self._contents.close()


def _contents(terms: Terms) -> Contents:
    try:
        return Contents(terms.directory, terms.disk_bytes)
    except OSError as error:
        raise ConfigError(
            f"setting 'recovery_dir': nothing can be kept there: {error.strerror or error}",
            where=str(terms.directory),
            hint="name a directory that this user may write to",
        ) from error
