"""Logs and counters. Importing this sets nothing up; the runtime does, when it starts.

structlog is imported with the first event: it takes longer to import than all of Genie.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

if TYPE_CHECKING:
    pass

Number: TypeAlias = int | float
Source: TypeAlias = Callable[[], Mapping[str, Number]]

_applied: tuple[str | None, bool] | None = None  # what we configured structlog for, if we did
_level: str | None = None
_json = False


def configure(level: str = "WARNING", json: bool = False) -> None:
    """Send our events to standard error, from ``level`` up. A program's own structlog set-up is left alone."""
    global _level, _json
    _level, _json = level, json
    if "structlog" in sys.modules:
        _apply()


def get_logger(name: str) -> Logger:
    """A structlog logger, made when it is first used."""
    return Logger(name)


class Logger:
    """What modules hold: ``log.info("event", key=value)``, and so on."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bound: Any = None

    def __getattr__(self, method: str) -> Any:
        if self._bound is None:
            import structlog

            _apply()
            self._bound = structlog.get_logger(part=self._name)
        return getattr(self._bound, method)


def _apply() -> None:
    global _applied
    import structlog

    wanted = (_level, _json)
    if _level is None or (wanted == _applied and structlog.is_configured()):  # nothing started yet, or nothing changed
        return
    if structlog.is_configured() and _applied is None:
        return
    _applied = wanted
    level, json = _level, _json
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if json else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=_StandardError(),
        cache_logger_on_first_use=False,  # a later configure() holds for loggers that exist
    )


class _StandardError:
    """Looks standard error up each time, so that a program which replaces it gets our events too."""

    def __call__(self, *_args: Any) -> _Printer:
        return _Printer(sys.stderr)


class _Printer:
    """What cannot be written, as on a full disk, is dropped: nothing fails for its log."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def msg(self, message: str) -> None:
        with contextlib.suppress(OSError), _printing:
            self._file.write(message + "\n")
            self._file.flush()

    log = debug = info = warn = warning = error = critical = fatal = failure = exception = msg


_printing = threading.RLock()  # a signal may arrive while it is held


class Counters:
    """Numbers that only grow, and sources that are asked when somebody looks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, Number] = {}
        self._sources: dict[str, Source] = {}

    def add(self, name: str, amount: Number = 1) -> None:
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + amount

    def add_source(self, name: str, source: Source) -> None:
        """``source()`` is asked at each :meth:`snapshot` until it is replaced or removed under ``name``."""
        with self._lock:
            self._sources[name] = source

    def remove_source(self, name: str) -> None:
        with self._lock:
            self._sources.pop(name, None)

    def snapshot(self) -> dict[str, Number]:
        """Our counts plus every source's; equal names add up."""
        with self._lock:
            total, sources = dict(self._counts), list(self._sources.values())
        for source in sources:  # outside the lock: a source may count
            for name, number in source().items():
                total[name] = total.get(name, 0) + number
        return total

    def clear(self) -> None:
        """Zero our own counts; sources keep theirs."""
        with self._lock:
            self._counts.clear()


counters = Counters()
