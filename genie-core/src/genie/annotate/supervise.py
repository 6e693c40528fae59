"""Patterns are other people's code: they may raise, answer nonsense, or never answer. They run on a thread of their
own, and one that does not come back in time is left behind."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from genie.telemetry import get_logger

log = get_logger("genie.annotate")

LONGEST = 5.0  # seconds one pattern may take over one graph

_Answer = tuple[Any, BaseException | None]


class TooSlow(Exception):
    """A pattern did not answer within its time."""


class _Stop(BaseException):
    """Raised inside a pattern that is left behind."""


class _Worker:
    """A thread that makes calls, one at a time."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._tasks: SimpleQueue[tuple[Callable[[], Any], SimpleQueue[_Answer]]] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="genie-patterns", daemon=True)
        self._thread.start()

    def ask(self, task: Callable[[], Any], seconds: float) -> Any:
        answer: SimpleQueue[_Answer] = SimpleQueue()
        self._tasks.put((task, answer))
        try:
            result, error = answer.get(timeout=seconds)
        except Empty:
            raise TooSlow(f"no answer within {seconds:g} s") from None
        if error is not None:
            raise error
        return result

    def abandon(self) -> None:
        # The interpreter's own way to stop a thread; it works on Python code, wherever it loops.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident or 0), ctypes.py_object(_Stop))

    def _work(self) -> None:
        while True:
            task, answer = self._tasks.get()
            try:
                answer.put((task(), None))
            except _Stop:
                return
            except BaseException as error:
                answer.put((None, error))


_lock = threading.Lock()
_idle: list[_Worker] = []


def supervised(task: Callable[[], Any], seconds: float = LONGEST) -> Any:
    """``task()``, on another thread. Raises what it raises, or :class:`TooSlow`; its thread is then stopped."""
    with _lock:
        worker = _idle.pop() if _idle else None
    if worker is None or worker.process != os.getpid():  # a forked child has the list and not the threads
        worker = _Worker()
    try:
        result = worker.ask(task, seconds)
    except TooSlow:
        worker.abandon()
        raise
    except KeyboardInterrupt:
        worker.abandon()
        raise
    except BaseException:
        _back(worker)
        raise
    _back(worker)
    return result


def _back(worker: _Worker) -> None:
    with _lock:
        _idle.append(worker)
