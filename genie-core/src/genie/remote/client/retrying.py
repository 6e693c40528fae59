"""Trying again, with pauses (:mod:`genie.backoff`).

Only what may be done twice is: connecting, and (in :mod:`genie.security.rpc`, by gRPC's own means) asking the control
plane for what it knows, or for a ticket. Work is not: that a link broke says nothing about whether it was done, and
sessions know how to find out (:mod:`genie.remote.client.rejoining`). Nor is what was refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from genie.backoff import pauses
from genie.errors import BackendUnavailable, ConnectionLost, DeadlineExceeded

_ATTEMPTS = 4

_T = TypeVar("_T")


def connected(connect: Callable[[float], _T], timeout: float) -> _T:
    """What ``connect`` gives, which is told how many seconds are left. Tried again while a node that is there hangs up,
    as one does that has too many connections; what else goes wrong is raised at once."""
    deadline = time.monotonic() + timeout
    first: BackendUnavailable | None = None
    for attempt, pause in enumerate(pauses(), 1):
        try:
            return connect(timeout if attempt == 1 else max(deadline - time.monotonic(), 0.001))
        except BackendUnavailable as error:
            first = first or error
            if not error.transient or attempt == _ATTEMPTS or time.monotonic() + pause >= deadline:
                raise first from error
        except (ConnectionLost, DeadlineExceeded) as error:
            if first is not None:
                raise first from error
            raise
        time.sleep(pause)
    raise AssertionError("pauses never end")
