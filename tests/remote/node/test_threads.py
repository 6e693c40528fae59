"""Threads that go from one session to the next."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextvars import ContextVar

import pytest

from genie.remote.node.threads import Threads

SECONDS = 30.0
_variable: ContextVar[str] = ContextVar("_variable", default="nothing")


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads("test-worker", kept=2)
    yield made
    made.close()


def _ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "test-worker"]


def _waiting(threads: Threads, count: int) -> None:
    """Until so many have nothing to do, and there is no other."""
    tick = threading.Event()
    for _ in range(int(SECONDS * 100)):
        if threads.idle == len(_ours()) == count:
            return
        tick.wait(0.01)
    raise AssertionError(f"{threads.idle} of {len(_ours())} threads wait, and not {count}")


def test_one_after_the_other_is_of_one_thread_and_sees_nothing_of_the_last(threads: Threads) -> None:
    seen: list[tuple[threading.Thread, str]] = []

    def work() -> None:
        seen.append((threading.current_thread(), _variable.get()))
        _variable.set("of an earlier one")

    for _ in range(5):
        threads.run(work)
        _waiting(threads, 1)
    assert seen == [(seen[0][0], "nothing")] * 5


def test_all_at_once_work_and_few_stay(threads: Threads) -> None:
    together = threading.Barrier(7)
    for _ in range(6):
        threads.run(lambda: together.wait(SECONDS) and None)
    together.wait(SECONDS)
    _waiting(threads, 2)


def test_work_that_fails_ends_its_thread_alone(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    threads.run(lambda: 1 // 0)  # type: ignore[arg-type,return-value]
    _waiting(threads, 0)
    assert [each.exc_type for each in told] == [ZeroDivisionError]
    done = threading.Event()
    threads.run(done.set)
    assert done.wait(SECONDS)


def test_closed_none_stays() -> None:
    threads = Threads("test-worker")
    go, done = threading.Event(), threading.Event()
    threads.run(done.set)
    assert done.wait(SECONDS)
    threads.run(lambda: go.wait(SECONDS) and None)
    threads.close()
    go.set()
    _waiting(threads, 0)
