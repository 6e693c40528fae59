"""Pauses between attempts: at first short, then longer, and never in step with the other clients of a node."""

from __future__ import annotations

import random
from collections.abc import Iterator

FIRST = 0.05  # seconds
LONGEST = 2.0


class _Pauses(Iterator[float]):
    """No generator: an interrupt that strikes while one is let go is lost."""

    def __init__(self) -> None:
        self._pause = FIRST

    def __next__(self) -> float:
        pause = self._pause
        self._pause = min(2 * pause, LONGEST)
        return pause * random.uniform(0.5, 1.0)


def pauses() -> Iterator[float]:
    """Seconds between attempts, without an end."""
    return _Pauses()
