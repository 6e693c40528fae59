"""What a session used last, and has left its device since, comes back while its client is still talking."""

from __future__ import annotations

import threading

import structlog

from genie.interfaces import Session
from genie.remote.abilities import Swapping

log = structlog.get_logger("genie.node")


class Prefetch:
    """Of one session; any thread may begin it. One that has nothing away is asked one number."""

    def __init__(self, session: Session) -> None:
        self._session = session if isinstance(session, Swapping) else None
        self._one = threading.Lock()  # at a time
        self._left = 0  # bytes that stayed away, the last time: not what was used last

    def begin(self) -> None:
        """Returns at once. What fails here fails again, and is told, when the value is used."""
        if self._session is None or self._session.off_device_bytes in (0, self._left):
            return
        if not self._one.acquire(blocking=False):
            return
        try:
            threading.Thread(target=self._run, args=(self._session,), name="genie-prefetch", daemon=True).start()
        except RuntimeError:  # no more threads: then it comes back when it is used
            self._one.release()

    def wait(self, timeout: float) -> bool:
        """Until it is done. Whether that came in time."""
        if not self._one.acquire(timeout=timeout):
            return False
        self._one.release()
        return True

    def _run(self, session: Swapping) -> None:
        try:
            session.prefetch()
            self._left = session.off_device_bytes
        except Exception as error:
            log.debug("not prefetched", reason=str(error))
        finally:
            self._one.release()
