"""How often, and for how long, a lost node is looked for."""

from __future__ import annotations

import time

from genie.backoff import pauses


class Budget:
    """Shared by all attempts since the program last got an answer: a node that dies again and again uses it up."""

    def __init__(self, attempts: int, seconds: float) -> None:
        self._attempts = attempts
        self._seconds = seconds
        self.renew()

    @property
    def left(self) -> float:
        """Seconds."""
        return self._seconds - self._spent

    def renew(self) -> None:
        self._used, self._spent, self._pauses = 0, 0.0, pauses()

    def spend(self, seconds: float) -> None:
        self._spent += seconds

    def again(self) -> bool:
        """Wait for the next attempt, longer each time; ``False`` if there is none left."""
        self._used += 1
        pause = next(self._pauses)
        if self._used >= self._attempts or pause >= self.left:
            return False
        self._spent += pause
        time.sleep(pause)
        return True
