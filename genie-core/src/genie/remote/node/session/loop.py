"""A session's loop on a node: iterations as far as they are asked for, each answered at once."""

from __future__ import annotations

from collections.abc import Iterator

from genie.errors import GenieError, LimitExceeded, NodeError
from genie.interfaces import Buffer
from genie.wire import loops

_UNREAD_BYTES = 1 << 16  # of one portion's answers: fits any socket's buffers, should nobody read them
_LARGEST_ANSWER = 1 << 16


class NodeLoop:
    """The loop begun last, advanced as far as is asked."""

    def __init__(self) -> None:
        self._iterations: Iterator[tuple[Buffer, ...]] | None = None

    def begin(self, iterations: Iterator[tuple[Buffer, ...]]) -> None:
        self._iterations = iterations

    def end(self) -> None:
        self._iterations = None

    def run(self, count: int) -> Iterator[bytes]:
        """An answer per iteration, each made when it is wanted. An error ends the loop."""
        unread = 0
        if count < 1:
            raise NodeError("a client asked for no iteration of a loop")
        while True:
            try:
                emitted = next(self._iterations) if self._iterations is not None else None
            except StopIteration:
                emitted = None
            except (GenieError, MemoryError):
                self.end()
                raise
            if emitted is None:
                self.end()
                yield loops.put_answer(loops.LAST | loops.OVER)
                return
            count -= 1
            size = sum(len(value) for value in emitted)
            if size > _LARGEST_ANSWER - 16 * len(emitted) - 16:  # with the lengths it would be too large
                self.end()
                raise LimitExceeded(f"an iteration emits {size} bytes; the limit is {_LARGEST_ANSWER}")
            unread += size
            last = count == 0 or unread >= _UNREAD_BYTES
            yield loops.put_answer(loops.RAN | (loops.LAST if last else 0), emitted)
            if last:
                return
