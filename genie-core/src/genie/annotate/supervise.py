"""Patterns are other people's code: they may raise, answer nonsense, or never answer. They run on a thread of their
own, and one that does not come back in time is left behind."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """What a task returned, or what it raised; :class:`TooSlow` if it did neither in time."""

    result: Any
    error: BaseException | None


class TooSlow(Exception):
    """A pattern did not answer within its time."""


class _Stop(BaseException):
    """Raised inside a task that is left behind."""


class _Round:
    """Tasks for a worker, one after the other, and how far it is."""

    def __init__(self, tasks: Sequence[Callable[[], Any]]) -> None:
        self.tasks = tasks
        self.outcomes: list[Outcome] = []
        self.done = threading.Event()
        self.left = False  # nobody waits for it any more

    def work(self) -> None:
        for task in self.tasks:
            try:
                outcome = Outcome(task(), None)
            except _Stop:
                return
            except BaseException as error:
                outcome = Outcome(None, error)
            if self.left:
                return
            self.outcomes.append(outcome)
        self.done.set()


class _Worker:
    """A thread that works rounds off, one at a time."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.rounds: SimpleQueue[_Round] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="genie-patterns", daemon=True)
        self._thread.start()

    def stop(self, round: _Round) -> None:
        round.left = True
        # The interpreter's own way to stop a thread; it works on Python code, wherever it loops.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident or 0), ctypes.py_object(_Stop))

    def _work(self) -> None:
        try:
            while True:
                round = self.rounds.get()
                round.work()
                if round.left:
                    return
        except _Stop:
            return


_lock = threading.Lock()
_idle: list[_Worker] = []


def supervised(tasks: Sequence[Callable[[], Any]], seconds: float) -> list[Outcome]:
    """The outcome of each task, in order. Tasks run on another thread; one that takes longer than ``seconds`` is
    stopped, and the others go on."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(tasks):
        round = _Round(tasks[len(outcomes) :])
        worker = _worker()
        worker.rounds.put(round)
        try:
            finished = _wait(round, seconds)
        except BaseException:  # Ctrl-C
            worker.stop(round)
            raise
        if finished:
            with _lock:
                _idle.append(worker)
            outcomes += round.outcomes
        else:
            worker.stop(round)
            outcomes += round.outcomes[: len(round.tasks) - 1]
            outcomes.append(Outcome(None, TooSlow(f"no answer within {seconds:g} s")))
    return outcomes


def _wait(round: _Round, seconds: float) -> bool:
    """Whether the round ended, each of its tasks within its time."""
    while True:
        before = len(round.outcomes)
        if round.done.wait(seconds):
            return True
        if len(round.outcomes) == before:
            return False


def _worker() -> _Worker:
    with _lock:
        while _idle:
            worker = _idle.pop()
            if worker.process == os.getpid():  # a forked child has the list and not the threads
                return worker
    return _Worker()
