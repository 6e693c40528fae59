"""Files that people change while a node runs."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from genie.errors import ConfigError
from genie.telemetry import get_logger

log = get_logger("genie.security")

_T = TypeVar("_T")
_State: TypeAlias = tuple[tuple[int, ...], ...]


class Watched(Generic[_T]):
    """What ``load`` makes of ``paths``, made again when one of them has changed.

    The first time a :class:`ConfigError` is the caller's. Later the last good value stays in use, and the log says
    so: a file may be half written, or one of two that belong together. ``told`` hears of every reload, with what was
    wrong or "".
    """

    def __init__(
        self, what: str, paths: Sequence[Path], load: Callable[[], _T], told: Callable[[str, str], None] | None = None
    ) -> None:
        self._what = what
        self._paths = tuple(paths)
        self._load = load
        self._told = told
        self._lock = threading.Lock()
        self._state = _look(self._paths)  # before loading: what changes meanwhile is seen next time
        self._value = load()
        self._problem = ""

    def get(self) -> _T:
        with self._lock:
            state = _look(self._paths)
            if state == self._state:
                return self._value
            self._state = state
            problem = ""
            try:
                self._value = self._load()
            except ConfigError as error:
                problem = f"{error.message} ({error.where})" if error.where else error.message
                log.warning("the last good version stays in use", what=self._what, reason=problem)
            else:
                # Who was warned is told that it is over, at the same level.
                (log.warning if self._problem else log.info)("reloaded", what=self._what)
            self._problem = problem
            if self._told is not None:
                self._told(self._what, problem)
            return self._value


def _look(paths: Sequence[Path]) -> _State:
    return tuple(_look_at(path) for path in paths)


def _look_at(path: Path) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read_small(path: Path, what: str, most: int = 1 << 20, hint: str = "") -> bytes:
    """All of a file of at most ``most`` bytes. Raises :class:`ConfigError`."""
    try:
        # Not waiting: a pipe in the place of a file would hold up whoever reads it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"{what} is no file", where=str(path))
            data = file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {what}: {error.strerror or error}", where=str(path), hint=hint) from error
    if len(data) > most:
        raise ConfigError(f"{what} is larger than {most} bytes", where=str(path))
    return data


def warn_if_exposed(path: Path, what: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("others may read a secret", what=what, path=str(path), hint=f"chmod 600 {path}")
