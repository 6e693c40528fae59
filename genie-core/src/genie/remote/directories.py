"""Where a node puts its Unix socket."""

from __future__ import annotations

import contextlib
import os
import tempfile


def own_directory() -> str | None:
    """A new directory for this user alone, if one can be made."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    # A socket's path is short; a longer directory is no use.
    for parent in (runtime if 0 < len(runtime) < 60 else None, None):
        with contextlib.suppress(OSError):
            return tempfile.mkdtemp(prefix="genie-", dir=parent)  # mode 0700
    return None
