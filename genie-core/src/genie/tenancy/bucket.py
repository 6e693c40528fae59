"""A token bucket that may be overdrawn: what was let through is paid for before the next is."""

from __future__ import annotations

import time
from collections.abc import Callable

_BURST_SECONDS = 1.0  # of the rate: what may be saved up


class Bucket:
    """``rate`` in bytes per second; 0: nothing is held back. Not thread-safe."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._level = rate * _BURST_SECONDS
        self._at = clock()

    def set_rate(self, rate: int) -> None:
        self._fill()
        self._level = min(self._level, rate * _BURST_SECONDS) if self._rate else rate * _BURST_SECONDS
        self._rate = rate

    def take(self, size: int) -> None:
        if self._rate:
            self._fill()
            self._level -= size

    def wait(self) -> float:
        """Seconds until more may be let through."""
        if not self._rate:
            return 0.0
        self._fill()
        return max(-self._level / self._rate, 0.0)

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._level + (now - self._at) * self._rate, self._rate * _BURST_SECONDS)
        self._at = now
