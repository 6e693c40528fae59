"""What this distribution offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from genie.config import Settings
from genie.errors import BackendUnavailable
from genie.hookspecs import hookimpl


def _transport(settings: Settings) -> Any:
    try:
        from genie_backend_dpdk import device
        from genie_backend_dpdk.transport import DpdkTransport
    except ImportError as error:  # it was built here or elsewhere with libraries that are not here now
        raise BackendUnavailable(
            f"DPDK is not to be had here: {error}",
            hint='install its libraries, see docs/dpdk.md; or use the backend "tcp", or "dpdk,tcp" to fall back on it',
        ) from error

    carrier = device.parse(settings.dpdk_device)
    return DpdkTransport(carrier, stall_timeout=settings.timeout, spin_us=settings.spin_us, busy=carrier.busy)


def _backend(settings: Settings) -> Any:
    from genie.remote import RemoteBackend

    return RemoteBackend.from_settings("dpdk", _transport(settings), settings)


@hookimpl
def genie_transports() -> Mapping[str, Callable[[Settings], Any]]:
    return {"dpdk": _transport}


@hookimpl
def genie_backends() -> Mapping[str, Callable[[Settings], Any]]:
    return {"dpdk": _backend}
