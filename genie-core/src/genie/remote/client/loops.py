"""Loops over a connection: iterations are asked for in portions, ahead of need; the node answers each at once.

A portion is large enough to outlast the round trip, so the node never waits for the next, and small, so that little
is left to run when the client stops asking.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager

from genie.errors import DeadlineExceeded, NodeError
from genie.interfaces import Buffer
from genie.loops import Loop
from genie.remote.client.conversation import Conversation, Stream
from genie.wire import Kind, loops

_FIRST = 16
_FEWEST = 8
_MOST = 64


class RemoteLoop:
    """The client's side: an iterator over what each iteration emits.

    The lock is the session's. Interrupted while it waits, the loop is over, for an iteration may be lost; after a
    :class:`DeadlineExceeded` it may be asked again.
    """

    def __init__(
        self,
        lock: AbstractContextManager[object],
        talk: Conversation,
        plan: bytes,
        bindings: Buffer,
        loop: Loop,
        times: int,
    ) -> None:
        self._lock = lock
        self._talk = talk
        self._values = len(loop.emit)
        self._left = times  # iterations not asked for yet
        self._asked: deque[list[int]] = deque()  # of each portion its message and its iterations not answered yet
        self._ran = 0
        self._begun = 0.0  # when the first iteration was answered
        self._over = False
        count = min(_FIRST, times)
        self._ask(loops.put_begin(count, plan, loop, times, bindings), count)

    def __iter__(self) -> Iterator[tuple[Buffer, ...]]:
        return self

    def __next__(self) -> tuple[memoryview, ...]:
        with self._lock:
            try:
                while not self._over:
                    self._ask_ahead()
                    if not self._asked:
                        self.close()
                        break
                    emitted = self._answer()
                    if emitted is not None:
                        return emitted
            except DeadlineExceeded as error:
                if isinstance(error, NodeError):  # the node's own: the loop is over there
                    self.close()
                raise
            except BaseException:
                self.close()
                raise
        raise StopIteration

    def close(self) -> None:
        """Ask for no more. What is asked for already runs to its end, and its answers are dropped."""
        self._over = True
        for seq, _ in self._asked:
            self._talk.streams.pop(seq, None)
        self._asked.clear()

    def __del__(self) -> None:
        if not getattr(self, "_over", True):  # an interrupt may have come before there was anything
            self.close()

    def _ask(self, payload: bytes, count: int) -> None:
        seq = self._talk.post(Kind.LOOP, payload)
        self._talk.streams[seq] = Stream()
        self._asked.append([seq, count])
        self._left -= count

    def _ask_ahead(self) -> None:
        window = self._window()
        if self._left and sum(count for _, count in self._asked) <= window // 2:
            count = min(window, self._left)
            self._ask(loops.put_more(count), count)

    def _window(self) -> int:
        """Four times the iterations of a round trip, by what they have taken so far, since half of it is asked for when
        the other half is left, and a busy host answers late. Were there too few, the time they took is mostly waiting,
        so the number grows."""
        if self._ran < 2:
            return _FEWEST
        interval = (time.monotonic() - self._begun) / (self._ran - 1)
        trip = self._talk.round_trip if math.isfinite(self._talk.round_trip) else 0.01
        return max(_FEWEST, min(_MOST, math.ceil(4 * trip / max(interval, 1e-6))))

    def _answer(self) -> tuple[memoryview, ...] | None:
        portion = self._asked[0]
        body, _ = self._talk.next_answer(portion[0], Kind.LOOP, Kind.LOOPED)
        flags, emitted = self._talk.read(loops.get_answer, body, self._values)
        if flags & loops.RAN:
            portion[1] -= 1
            self._ran += 1
            if self._ran == 1:
                self._begun = time.monotonic()
        if flags & loops.LAST:
            self._asked.popleft()
            self._talk.streams.pop(portion[0], None)
            self._left += portion[1]  # what the node left out
        if flags & loops.OVER:
            self.close()
        return emitted if flags & loops.RAN else None
