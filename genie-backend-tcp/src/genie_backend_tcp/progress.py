"""How slowly a peer may take or send a message: a byte now and then is progress, and would hold memory for ever."""

from __future__ import annotations

import time
from typing import Final

from genie.errors import DeadlineExceeded, Stage

LEAST_RATE: Final = 64 << 10  # bytes per second


class Progress:
    """Of one message: it may wait for its peer for some seconds in all, and longer by what the bytes that moved would
    take at the least rate. Only what is between :meth:`waits` and :meth:`moved` counts: a receiver may take its time
    between reads."""

    __slots__ = ("_began", "_moved", "_stage", "_waited", "_where")

    def __init__(self, stage: Stage, where: str) -> None:
        self._stage = stage
        self._where = where
        self._moved = 0
        self._waited = 0.0
        self._began = 0.0

    def waits(self, patience: float) -> None:
        """From now on; for so many seconds, with what it waited before. Raises :class:`DeadlineExceeded` if it has
        waited longer already."""
        if self._waited > patience + self._moved / LEAST_RATE:
            verb = "took" if self._stage is Stage.SEND else "sent"
            raise DeadlineExceeded(
                f"the peer {verb} {self._moved} bytes of a message in {self._waited:.3g} s",
                stage=self._stage,
                seconds=self._waited,
                setting="timeout",
                where=self._where,
                hint=f"{LEAST_RATE >> 10} KiB/s is the least: the link is too slow, or the peer hangs",
            )
        self._began = time.monotonic()

    def moved(self, count: int) -> None:
        """… until now, and so many bytes moved. It does not raise: they are to be kept first."""
        self._waited += time.monotonic() - self._began
        self._moved += count
