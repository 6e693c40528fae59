"""The audit log: who did what on a node, or was refused, and when. One JSON object per line; never a secret."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import threading
import time
from pathlib import Path

from genie.errors import ConfigError
from genie.telemetry import get_logger

log = get_logger("genie.security")

_LONGEST = 256  # characters of what a peer says of itself
_REFUSALS = 20  # lines of refusals a second: who guesses must not fill the disk


class AuditLog:
    """Appends to ``path``, opened anew when it was moved away; without a path it goes nowhere but the node's log."""

    def __init__(self, path: str | Path | None = None) -> None:
        self._path = None if path is None else Path(path)
        self._lock = threading.Lock()
        self._descriptor = -1
        self._second = 0
        self._refused = 0
        self._unsaid = 0
        self._lost = 0  # lines that could not be written
        self._cut = False  # in the middle of a line: the next begins with one's end
        if self._path is not None:
            try:
                self._descriptor = _open(self._path)
            except OSError as error:
                raise ConfigError(f"cannot write the audit log: {error.strerror}", where=str(self._path)) from error

    def write(self, event: str, **facts: str | float | int) -> None:
        """Facts that are empty are left out. Does not raise: a full disk must not stop the node, whose own log says
        so."""
        now = datetime.datetime.now(datetime.UTC)
        line: dict[str, str | float | int] = {"time": now.isoformat(timespec="milliseconds"), "event": event}
        line |= {key: _short(value) for key, value in facts.items() if value != ""}
        with self._lock:
            if event == "refused" and not self._may_tell():
                return
            if self._unsaid and event == "refused":
                line["refusals_not_logged"] = self._unsaid
                self._unsaid = 0
            if event == "refused":
                log.warning("refused", **{key: value for key, value in line.items() if key not in ("event", "time")})
            if self._path is None:
                return
            if self._lost:
                line["lines_lost"] = self._lost
            data = json.dumps(line, ensure_ascii=True).encode() + b"\n"
            try:
                self._reopen_if_moved(self._path)
                if self._cut:
                    data = b"\n" + data
                written = os.write(self._descriptor, data)
                self._cut = written != len(data)
                if self._cut:
                    raise OSError("the line was cut short")
            except OSError as error:
                self._lost += 1
                log.error("the audit log is not written", reason=error.strerror or str(error), path=str(self._path))
            else:
                if self._lost:
                    log.warning("the audit log is written again", lost=self._lost, path=str(self._path))
                self._lost = 0

    def told(self, what: str, problem: str) -> None:
        """Of a file that changed."""
        self.write("not reloaded" if problem else "reloaded", what=what, reason=problem)

    def close(self) -> None:
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor, self._path = -1, None

    def _may_tell(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._refused = second, 0
        self._refused += 1
        if self._refused <= _REFUSALS:
            return True
        self._unsaid += 1
        return False

    def _reopen_if_moved(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            there = os.stat(path)
            if self._descriptor >= 0:
                ours = os.fstat(self._descriptor)
                if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                    return
        fresh = _open(path)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = fresh


def _open(path: Path) -> int:
    # Not waiting: whoever writes, all sessions in turn, would be held up by a pipe that nobody reads.
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)


def _short(value: str | float | int) -> str | float | int:
    return value[:_LONGEST] if isinstance(value, str) else value
