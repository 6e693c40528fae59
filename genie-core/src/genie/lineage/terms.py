"""On which terms sessions are recovered."""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from genie.config import Settings


@attrs.frozen(kw_only=True)
class Terms:
    """See docs/recovery.md. Bytes and seconds."""

    attempts: int = 50
    seconds: float = 60.0
    log_bytes: int = 64 << 20
    disk_bytes: int = 16 << 30
    directory: Path
    checkpoint_interval: float = 60.0
    checkpoint_to: str = "disk"

    @classmethod
    def from_settings(cls, settings: Settings) -> Terms:
        return cls(
            attempts=settings.recovery_attempts,
            seconds=settings.recovery_seconds,
            log_bytes=settings.recovery_log_bytes,
            disk_bytes=settings.recovery_disk_bytes,
            checkpoint_interval=settings.checkpoint_interval,
            checkpoint_to=settings.checkpoint_to,
            directory=Path(settings.recovery_dir).expanduser() if settings.recovery_dir else _cache(),
        )


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "genie" / "recovery"
