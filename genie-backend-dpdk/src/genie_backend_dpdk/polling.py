"""How a port's thread waits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Polling:
    """``spin_us`` (µs) after the last packet it sleeps, unless it is ``busy``."""

    spin_us: float
    busy: bool
