"""DPDK itself, started once in a process, as an ordinary user: no huge pages, no devices but those we make."""

from __future__ import annotations

import atexit
import itertools
import threading
import weakref
from collections.abc import Sequence

from genie.errors import BackendUnavailable
from genie_backend_dpdk import _native

_MEMORY_MB = 256  # DPDK's own: the buffers for frames are most of it
_ARGUMENTS = (
    "--no-huge",
    "--no-shconf",
    "--no-pci",
    "--no-telemetry",
    "--iova-mode=va",
    f"-m{_MEMORY_MB}",
    "--log-level=*:error",
)
_DRAIN_SECONDS = 2.0

_lock = threading.Lock()
_numbers = itertools.count()
_ports: weakref.WeakSet[_native.Port] = weakref.WeakSet()


def start(arguments: Sequence[str] = _ARGUMENTS) -> None:
    """Once it has started, further calls do nothing."""
    with _lock:
        try:
            _native.start(list(arguments))
        except RuntimeError as error:
            raise BackendUnavailable(
                f"DPDK does not start here: {error}",
                hint='use the backend "tcp", or "dpdk,tcp" to fall back on it',
            ) from error


def device_name(driver: str) -> str:
    """One that is new in this process."""
    return f"{driver}{next(_numbers)}"


def watch(port: _native.Port) -> None:
    """What is written when the process ends is delivered first."""
    _ports.add(port)


@atexit.register
def _drain() -> None:
    for port in list(_ports):
        port.drain(_DRAIN_SECONDS)
