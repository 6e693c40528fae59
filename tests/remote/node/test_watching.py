"""A node's look at its sessions."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterable

import pytest

from genie.remote.node import watching
from genie.remote.node.session.messages import NodeSession
from genie.remote.node.watching import Watch


class _Session:
    """What is looked at of one."""

    name = "1"

    def __init__(self) -> None:
        self.meter = self.cancellation = self

    def at_work(self) -> bool:
        return True

    def look(self, at_work: bool) -> bool:
        return not at_work


def test_a_session_that_ended_is_not_held_until_the_next_one_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_SECONDS", 0.001)
    session = _Session()
    its = weakref.ref(session)
    open_, looked = [session], threading.Semaphore(0)

    def sessions() -> Iterable[NodeSession]:
        looked.release()
        return tuple(open_)  # type: ignore[arg-type]

    watch = Watch(sessions)
    watch.start()
    try:
        assert all(looked.acquire(timeout=10) for _ in range(3))
        open_.clear()
        del session
        deadline = time.monotonic() + 10
        while its() is not None:
            gc.collect()
            assert time.monotonic() < deadline, "it is held"
    finally:
        watch.close()
