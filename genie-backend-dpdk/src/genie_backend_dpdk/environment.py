"""DPDK itself, started once in a process. As an ordinary user: no huge pages, no devices but those we make. With them
where a NIC is to be driven."""

from __future__ import annotations

import atexit
import itertools
import os
import threading
import time
import weakref
from collections.abc import Sequence

from genie.errors import BackendUnavailable
from genie_backend_dpdk import _native, pci

_MEMORY_MB = pci.MEMORY_MB  # DPDK's own: the buffers for frames are most of it
_COMMON = (
    # One of EAL's threads, on whichever cores this process has: what polls are threads of our own.
    f"--lcores=0@({','.join(map(str, sorted(os.sched_getaffinity(0))))})",
    "--no-telemetry",
    "--iova-mode=va",
    f"-m{_MEMORY_MB}",
    "--log-level=*:error",
)
_ARGUMENTS = (*_COMMON, "--no-huge", "--no-shconf", "--no-pci")
_NOBODY = "ffff:ff:1f.7"  # an address that no device has: of those there are, DPDK is to touch none by itself
NICS = (*_COMMON, "--in-memory", f"--allow={_NOBODY}")
_DRAIN_SECONDS = 2.0

_lock = threading.Lock()
_started: tuple[str, ...] | None = None  # with which arguments
_numbers = itertools.count()
_ports: weakref.WeakSet[_native.Port] = weakref.WeakSet()


def start(arguments: Sequence[str] = _ARGUMENTS) -> None:
    """Once it has started, further calls do nothing; but it does not start anew for :data:`NICS`."""
    global _started
    if _native.forked():
        raise BackendUnavailable(
            "this process was forked from one that uses DPDK, and DPDK is in that one",
            hint='let multiprocessing start processes by "spawn"; or use the backend "tcp", or "dpdk,tcp"',
        )
    with _lock:
        if _started is not None and arguments == NICS != _started:
            raise BackendUnavailable(
                "DPDK has started in this process without NICs, and starts once",
                where="setting 'dpdk_device'",
                hint="use the NIC first, or in a process of its own",
            )
        try:
            _native.start(list(arguments))
        except (RuntimeError, MemoryError) as error:
            raise BackendUnavailable(
                f"DPDK does not start here: {error}",
                hint='use the backend "tcp", or "dpdk,tcp" to fall back on it',
            ) from error
        if _started is None:
            _started = tuple(arguments)


def started() -> bool:
    return _started is not None


def device_name(driver: str) -> str:
    """One that is new in this process."""
    return f"{driver}{next(_numbers)}"


def watch(port: _native.Port) -> None:
    """What is written when the process ends is delivered first."""
    _ports.add(port)


def _forget() -> None:
    for port in list(_ports):
        port.forget()


os.register_at_fork(after_in_child=_forget)


@atexit.register
def _drain() -> None:
    if _native.forked():
        return
    until = time.monotonic() + _DRAIN_SECONDS  # for all of them together
    for port in list(_ports):
        port.drain(max(until - time.monotonic(), 0.0))
