"""Values asked for before anybody waits for them: each sets out as soon as it is there, not when the next is done."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from genie.remote.client.conversation import Conversation, Stream
from genie.wire import Kind, messages

MOST_BYTES = 1 << 16  # unread at once: fits any socket's buffers, so that neither side waits for the other to read


class Expected:
    """Questions for values, by handle. Not thread-safe, but for :meth:`drop`."""

    def __init__(self, talk: Conversation) -> None:
        self._talk = talk
        self._asked: dict[int, tuple[int, int]] = {}  # handle → message, bytes
        self._bytes = 0
        self._dropped: deque[int] = deque()

    def ask(self, handle: int, size: int) -> bool:
        """Whether there was room for so many bytes more."""
        while self._dropped:
            self._forget(self._dropped.popleft())
        if handle in self._asked or size > MOST_BYTES - self._bytes:
            return False
        seq = self._talk.post(Kind.FETCH, messages.put_pair(handle, size))
        self._talk.streams[seq] = Stream(size)
        self._asked[handle] = (seq, size)
        self._bytes += size
        return True

    def drop(self, handles: Sequence[int]) -> None:
        """Nobody will look at these. From any thread, at any moment."""
        if self._asked:
            self._dropped.extend(handle for handle in handles if handle in self._asked)

    def answer(self, handle: int, size: int) -> tuple[memoryview, memoryview | None] | None:
        """The answer, waited for if need be; ``None`` if the value was not asked for, or with another size."""
        asked = self._asked.get(handle)
        if asked is None:
            return None
        try:
            fits = size in (asked[1], messages.ANY_SIZE)
            return self._talk.next_answer(asked[0], Kind.FETCH, Kind.VALUE) if fits else None
        finally:
            self._forget(handle)

    def _forget(self, handle: int) -> None:
        seq, size = self._asked.pop(handle, (-1, 0))
        self._bytes -= size
        self._talk.streams.pop(seq, None)
