"""A session whose node dies before every look is a session like any other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lineage.mortals import Mortals, recovered, terms

from genie.device import Device
from genie.interfaces import Session
from genie.testing import BackendSuite


class _Doomed:
    """Has the node die, and another rise, before each look."""

    def __init__(self, session: Session, kill: Callable[[], None]) -> None:
        self._session = session
        self._kill = kill

    def __getattr__(self, name: str) -> Any:
        if name in ("fetch", "describe", "synchronize", "generator_state"):
            self._kill()
        return getattr(self._session, name)


class _Backend:
    name = "mortal"

    def __init__(self, directory: Path) -> None:
        self._nodes = Mortals(1)
        self._remote = self._nodes.backend()
        self._directory = directory
        self._sessions: list[Session] = []
        self._lock = threading.Lock()  # who begins finds a node

    def devices(self) -> tuple[Device, ...]:
        return self._remote.devices()

    def connect(self, device: Device) -> Session:
        with self._lock:
            (session,) = recovered(self._remote, (device,), terms(self._directory))
        self._sessions.append(session)
        return _Doomed(session, self._kill)

    def _kill(self) -> None:
        with self._lock:
            self._nodes.again()

    def close(self) -> None:
        for session in self._sessions:
            session.close()
        self._remote.close()
        self._nodes.close()


class TestDoomed(BackendSuite):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[_Backend]:
        backend = _Backend(tmp_path)
        yield backend
        backend.close()
