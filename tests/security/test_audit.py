"""The audit log: lines that machines read, whatever happens to the file."""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from pathlib import Path

import pytest

from genie.errors import ConfigError
from genie.security import AuditLog


def _lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    log = AuditLog(path)
    log.write("opened", user="alice", tenant="", client="x" * 10_000)
    log.write("closed", user='a"\n{"event": "forged"}', seconds=1.5)
    first, second = _lines(path)
    assert first["event"] == "opened" and first["user"] == "alice" and "tenant" not in first
    assert len(str(first["client"])) < 1000
    assert second["event"] == "closed"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_log_that_was_moved_away_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    log = AuditLog(path)
    log.write("one")
    path.rename(tmp_path / "audit.1")
    log.write("two")
    assert [line["event"] for line in _lines(tmp_path / "audit.1")] == ["one"]
    assert [line["event"] for line in _lines(path)] == ["two"]


def test_a_full_disk_stops_nobody() -> None:
    log = AuditLog("/dev/full")
    log.write("opened")


def test_what_a_full_disk_cost_is_said_when_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = AuditLog(tmp_path / "audit")
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        log.write("opened")
        log.write("closed")
    log.write("drain")
    log.write("cancelled")
    after, later = _lines(tmp_path / "audit")
    assert (after["event"], after["lines_lost"]) == ("drain", 2)
    assert "lines_lost" not in later


def test_who_guesses_does_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    path = tmp_path / "audit"
    log = AuditLog(path)
    for _ in range(1000):
        log.write("refused", reason="no")
    log.write("opened")  # is not held back by them
    now += 1
    log.write("refused", reason="no")
    lines = _lines(path)
    assert len(lines) < 50
    assert lines[-2]["event"] == "opened"
    assert lines[-1]["refusals_not_logged"] == 1000 - (len(lines) - 2)


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="audit log"):
        AuditLog(tmp_path / "none" / "audit")


def test_a_pipe_that_nobody_reads_holds_nobody_up(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="cannot write the audit log"):
        AuditLog(pipe)
    path = tmp_path / "audit"
    log = AuditLog(path)
    path.unlink()
    os.rename(pipe, path)  # while the node serves
    log.write("opened")
    path.unlink()
    log.write("closed")
    assert [(line["event"], line["lines_lost"]) for line in _lines(path)] == [("closed", 1)]


def test_after_a_line_that_was_cut_short_the_next_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit"
    log = AuditLog(path)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:10]))  # the disk is nearly full
    log.write("one")
    monkeypatch.setattr(os, "write", write)
    log.write("two")
    log.write("three")
    log.close()
    cut, *whole = path.read_text().splitlines()
    assert len(cut) == 10
    assert [json.loads(line)["event"] for line in whole] == ["two", "three"]
