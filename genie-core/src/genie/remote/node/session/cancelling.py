"""How the work of one session of a node is stopped, and when: its client is gone for good, or somebody asks."""

from __future__ import annotations

import threading
from collections.abc import Callable

from genie.interfaces import Cancelling, Connection, Session, Watched

_HALF = 1 << 31  # of the numbers of messages, which begin anew


class Cancellation:
    """Stops ``session``'s work, from any thread. ``connection`` is its client's; ``owes`` says that other nodes wait
    for what it was asked: then it is done to the end, though the client is gone."""

    def __init__(self, session: Session, connection: Connection, owes: Callable[[], bool]) -> None:
        self.turn = threading.Lock()  # of the one who receives; held meanwhile
        self._session = session if isinstance(session, Cancelling) else None
        self._connection = connection
        self._owes = owes
        self._lock = threading.Lock()
        self._until: int | None = None  # the last message whose work is stopped
        self._over = False
        self._messages = self._seen = 0  # begun; and how many there were at the last look

    def begins(self, seq: int) -> None:
        """The session's thread begins with the message of this number."""
        self._messages += 1
        if self._until is not None:
            with self._lock:
                if self._until is not None and 0 < (seq - self._until) % (2 * _HALF) < _HALF and not self._over:
                    self._until = None
                    self._resume()

    def until(self, seq: int, reason: str) -> None:
        """What was asked up to the message of this number is not done, as far as it is not done yet."""
        with self._lock:
            if not self._over:
                self._until = seq
                self._cancel(reason)

    def over(self, reason: str) -> None:
        """Nothing is done any more."""
        with self._lock:
            if not self._over:
                self._over = True
                self._cancel(reason)

    def gone(self) -> bool:
        """Whether the client hung up, and will not come back. From the session's thread, which waits for something
        else."""
        with self.turn:
            return self._hung_up()

    def deserted(self) -> bool:
        """The same, and nobody else waits for what it asked."""
        return not self._owes() and self.gone()

    def look(self, at_work: bool) -> bool:
        """To be called now and then, by another thread: a session that has been at one message since the last time is
        stopped if its client is gone. Whether it was."""
        before, self._seen = self._seen, self._messages
        if not at_work or self._over or before != self._messages or self._owes():
            return False
        if not self.turn.acquire(blocking=False):  # it receives, and notices by itself
            return False
        try:
            gone = self._hung_up()
        finally:
            self.turn.release()
        if gone:
            self.over("its client is gone")
        return gone

    def _hung_up(self) -> bool:
        return isinstance(self._connection, Watched) and self._connection.hung_up()

    def _cancel(self, reason: str) -> None:
        if self._session is not None:
            self._session.cancel(reason)

    def _resume(self) -> None:
        if self._session is not None:
            self._session.resume()
