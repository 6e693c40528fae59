"""A node's look at its sessions that are at work: a session's thread that computes does not see its client go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import structlog

from genie.remote.node.session.messages import NodeSession

log = structlog.get_logger("genie.node")

_SECONDS = 0.5  # between two looks


class Watch:
    """A thread that looks at ``sessions()`` again and again."""

    def __init__(self, sessions: Callable[[], Iterable[NodeSession]]) -> None:
        self._sessions = sessions
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="genie-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10.0)

    def _run(self) -> None:
        while not self._ended.wait(_SECONDS):
            self._look()

    def _look(self) -> None:
        """A call of its own: between two looks nothing here refers to a session, which may have ended."""
        for session in self._sessions():
            try:
                if session.cancellation.look(session.meter.at_work()):
                    log.info("work stopped: its client is gone", session=session.name)
            except Exception:  # of one session; the others are looked at all the same
                log.exception("not looked at", session=session.name)
