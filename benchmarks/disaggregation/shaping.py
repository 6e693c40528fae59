"""What a link does to what is sent through it: it takes time for every byte, and some to get across.

Pure: no clock, no I/O. A *line* is one sender's way out, as a network card has one: packets leave one after the other
at the line's rate, each arrives its delay later, in order. That is a token bucket followed by a delay line; nothing is
dropped (whoever fills a line is to look at :meth:`Line.backlog` and wait).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True)
class Profile:
    """A kind of link: bits per second each way, and the seconds it adds to a round trip. 0 bit/s: as fast as can be."""

    name: str
    rate: float
    round_trip: float


# The depth of the bucket, in seconds of the rate: what whoever serves a busy line late may catch up on.
BURST = 5e-4


class Line(Generic[_T]):
    """``put`` what is sent, ``take`` what has arrived. Times in seconds of any one clock."""

    def __init__(self, rate: float = 0.0, delay: float = 0.0) -> None:
        self._free = float("-inf")  # when the last packet put has left
        self._under_way: deque[tuple[float, _T]] = deque()
        self.set(rate, delay)

    def set(self, rate: float, delay: float) -> None:
        """``rate`` in bit/s (0: no limit), ``delay`` in seconds, for what is put from now on."""
        self._seconds_per_byte = 8 / rate if rate else 0.0
        self._delay = delay

    def put(self, now: float, size: int, packet: _T) -> None:
        self._free = max(now - BURST, self._free) + size * self._seconds_per_byte
        due = max(now, self._free) + self._delay
        if self._under_way:
            due = max(due, self._under_way[-1][0])  # a delay made shorter lets nobody overtake
        self._under_way.append((due, packet))

    def take(self, now: float) -> _T | None:
        """The next packet if it has arrived."""
        if self._under_way and self._under_way[0][0] <= now:
            return self._under_way.popleft()[1]
        return None

    def next(self) -> float | None:
        """When the next packet arrives."""
        return self._under_way[0][0] if self._under_way else None

    def backlog(self, now: float) -> float:
        """Seconds until what was put has left."""
        return max(0.0, self._free - now)
