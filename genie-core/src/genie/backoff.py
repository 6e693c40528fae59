"""Pauses between attempts: at first short, then longer, and never in step with the other clients of a node."""

from __future__ import annotations

import random
from collections.abc import Iterator

FIRST = 0.05  # seconds
LONGEST = 2.0


def pauses() -> Iterator[float]:
    """Seconds between attempts."""
    pause = FIRST
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(2 * pause, LONGEST)
