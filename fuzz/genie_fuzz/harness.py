"""What a target is, and what holds for every input of every target besides that it does not crash."""

from __future__ import annotations

import contextlib
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import attrs
import structlog

from genie.errors import GenieError

CORPUS = Path(__file__).resolve().parent.parent / "corpus"


class Finding(AssertionError):
    """An invariant does not hold: not for the target's own code to catch."""


@attrs.frozen(kw_only=True)
class Target:
    """``one`` takes an input and raises nothing, unless it found something.

    ``bytes_per_byte`` and ``bytes_at_least`` bound what Python's allocators give out while an input is looked at, by
    its length; ``seconds`` bounds the time. ``share`` is the target's part of a campaign's time. ``modules`` are measured for coverage. ``msgpack_at`` is where an input's
    msgpack begins, for mutations that keep its structure; -1: it has none.
    """

    name: str
    one: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    modules: tuple[str, ...]
    bytes_per_byte: int = 64
    bytes_at_least: int = 1 << 16
    seconds: float = 1.0
    msgpack_at: int = -1
    largest: int = 4096
    share: float = 1.0


def refuses(allowed: tuple[type[GenieError], ...], call: Callable[[], object]) -> object:
    """What ``call`` gives, or ``None`` when it raised one of ``allowed``, with a message. Anything else goes through."""
    try:
        return call()
    except allowed as error:
        if not error.message or len(error.message) > 1 << 14:
            raise Finding(f"a {type(error).__name__} with a message of {len(error.message)} characters") from error
        return None


def check(held: bool, what: str) -> None:
    if not held:
        raise Finding(what)


def measured(target: Target, data: bytes) -> None:
    """Run an input and check what it took. Caches are warm after a first run, which is not counted."""
    target.one(data)
    started = tracemalloc.is_tracing()
    if not started:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        target.one(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        if not started:
            tracemalloc.stop()
    allowed = target.bytes_at_least + target.bytes_per_byte * len(data)
    check(peak - before <= allowed, f"{peak - before} bytes for an input of {len(data)}; {allowed} are allowed")


def timed(target: Target, data: bytes) -> None:
    """Run an input within the target's time of this thread's own."""
    begun = time.thread_time()
    target.one(data)
    took = time.thread_time() - begun
    check(took <= target.seconds, f"{took:.3f} s for an input of {len(data)} bytes; {target.seconds} are allowed")


def corpus(target: Target) -> list[Path]:
    folder = CORPUS / target.name
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


class _Log:
    """Nobody reads what thousands of refusals a second log; but ``exception`` is for what nobody foresaw."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def bind(self, **_: object) -> _Log:
        return self

    new = unbind = try_unbind = bind

    def debug(self, event: str, **_: object) -> None:
        """Not a finding."""

    info = warning = error = debug

    def exception(self, event: str, **_: object) -> None:
        raise Finding(f"unforeseen: {event}: {sys.exc_info()[1]!r}")


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Within it, what the product logs as an unforeseen exception is a finding."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=_Log, processors=[], cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**before)
