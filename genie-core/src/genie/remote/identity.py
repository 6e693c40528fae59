"""Who we are to a peer: which host, which client."""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@functools.cache
def host_identity() -> str:
    """Equal in all processes of one running host that share its network; "" where that can't be told.

    The network namespace takes part because containers share the boot id of their host, and not its sockets.
    """
    try:
        return f"{_BOOT_ID.read_text().strip()}/{socket.gethostname()}/{os.readlink('/proc/self/ns/net')}"
    except OSError:
        return ""


def client_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
