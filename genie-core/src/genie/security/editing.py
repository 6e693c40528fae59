"""Changing a file that nodes read: whole or not at all, one editor at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from genie.errors import ConfigError

_T = TypeVar("_T")


@contextlib.contextmanager
def edited(
    path: Path, what: str, load: Callable[[Path], Sequence[_T]], dump: Callable[[Sequence[_T]], bytes]
) -> Iterator[list[_T]]:
    """The entries of the file, to be changed; none if it is not there. Raises :class:`ConfigError`."""
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"there is no such directory: {error.strerror}", where=str(path.parent)) from error
    temporary = ""
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        entries = list(load(path)) if path.exists() else []
        yield entries
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(dump(entries) + b"\n")
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), mode)
        os.replace(temporary, path)
        temporary = ""
        os.fsync(directory)
    except OSError as error:
        raise ConfigError(f"cannot write {what}: {error.strerror}", where=str(path)) from error
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        os.close(directory)
