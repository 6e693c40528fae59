"""Threads that serve one session after the other.

A thread is cheap to begin but not to have had: numerical libraries (MKL does) keep a record of every thread that ever
computed, and the C library gives each a heap. A node that serves for months would grow by its sessions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import Context
from typing import TypeAlias

KEPT = 8  # that wait for work, at most; the others end

Work: TypeAlias = Callable[[], None]


class Threads:
    """As many as there is work at once, all called ``name``."""

    def __init__(self, name: str, kept: int = KEPT) -> None:
        self._name = name
        self._kept = kept
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []  # the latest one last: it goes on first
        self._closed = False

    def run(self, work: Work) -> None:
        """In a thread that has nothing else to do, in a context of its own. Raises :class:`RuntimeError` when there can
        be no more threads."""
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            _Worker(self, work, self._name).start()
        else:
            worker.take(work)

    def wait(self, worker: _Worker) -> bool:
        """Whether the worker is to wait for more."""
        with self._lock:
            if self._closed or len(self._idle) >= self._kept:
                return False
            self._idle.append(worker)
            return True

    @property
    def idle(self) -> int:
        """That wait for work."""
        with self._lock:
            return len(self._idle)

    def close(self) -> None:
        """Those that wait end; those at work do when that is done."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.take(None)
        for worker in idle:
            worker.join()


class _Worker(threading.Thread):
    def __init__(self, threads: Threads, work: Work, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._threads = threads
        self._work: Work | None = work
        self._given = threading.Semaphore(0)

    def take(self, work: Work | None) -> None:
        self._work = work
        self._given.release()

    def run(self) -> None:
        while self._work is not None:
            Context().run(self._work)
            self._work = None  # nothing of the session stays with who waits
            if not self._threads.wait(self):
                return
            self._given.acquire()
