"""What this distribution offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from genie.config import Settings
from genie.hookspecs import hookimpl


def _transport(settings: Settings) -> Any:
    from genie_backend_dpdk import device
    from genie_backend_dpdk.transport import DpdkTransport

    device.check(settings.dpdk_device)
    return DpdkTransport(stall_timeout=settings.timeout, spin_us=settings.spin_us)


def _backend(settings: Settings) -> Any:
    from genie.remote import RemoteBackend

    return RemoteBackend.from_settings("dpdk", _transport(settings), settings)


@hookimpl
def genie_transports() -> Mapping[str, Callable[[Settings], Any]]:
    return {"dpdk": _transport}


@hookimpl
def genie_backends() -> Mapping[str, Callable[[Settings], Any]]:
    return {"dpdk": _backend}
