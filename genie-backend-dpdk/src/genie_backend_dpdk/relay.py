"""What two memif devices say to each other, passed on by their processes.

DPDK's driver unmaps a device's memory as soon as its socket ends or the peer's device says farewell, on a thread of
its own, also while another polls the device. So a device here never talks to the peer's: each process stands between,
passes on what it takes to join the two, and from then on nothing. When a device goes, its process has stopped to poll
it.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable

from genie.errors import BackendUnavailable

_LARGEST = 1 << 12  # bytes of a message; the driver's have 128
_MOST_FILES = 4
_FAREWELL = 8  # a message's kind, its first two bytes: MEMIF_MSG_TYPE_DISCONNECT
_POLL_MS = 1


def join(near: socket.socket, far: socket.socket, up: Callable[[], bool], until: float, *, last: bool) -> None:
    """Between this process's device, whose state ``up`` tells, and the peer's process. Of the two devices the client's
    is up ``last``: its side is then done, and the other when ``far`` ends."""
    watched = select.poll()
    for each in (near, far):
        watched.register(each.fileno(), select.POLLIN)
    while time.monotonic() < until:
        ready = {descriptor for descriptor, _ in watched.poll(_POLL_MS)}
        if near.fileno() in ready and not _pass_on(near, far):
            raise BackendUnavailable("DPDK gave up the memif device")
        if far.fileno() in ready and not _pass_on(far, near):
            if up():
                return
            raise BackendUnavailable("the other process gave up its memif device")
        if last and not ready and up():
            return
    raise BackendUnavailable("the other process's memif device does not answer")


def _pass_on(source: socket.socket, target: socket.socket) -> bool:
    """False at the end."""
    try:
        message, files, _, _ = socket.recv_fds(source, _LARGEST, _MOST_FILES)
    except ConnectionError:
        return False
    try:
        if len(message) < 2 or int.from_bytes(message[:2], "little") == _FAREWELL:
            return False
        socket.send_fds(target, [message], files)
    except (ConnectionError, TimeoutError):
        return False
    finally:
        for file in files:
            os.close(file)
    return True
