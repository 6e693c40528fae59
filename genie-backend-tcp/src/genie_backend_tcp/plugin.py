"""What this distribution offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from genie.config import Settings
from genie.hookspecs import hookimpl


def _transport(settings: Settings) -> Any:
    from genie.security import Tls, TlsFiles
    from genie_backend_tcp.transport import TcpTransport

    return TcpTransport(
        stall_timeout=settings.timeout,
        spin_us=settings.spin_us,
        tls=Tls(TlsFiles.of(settings)),
        checksums=settings.checksums,
    )


def _backend(settings: Settings) -> Any:
    from genie.remote import RemoteBackend

    return RemoteBackend.from_settings("tcp", _transport(settings), settings)


@hookimpl
def genie_transports() -> Mapping[str, Callable[[Settings], Any]]:
    return {"tcp": _transport}


@hookimpl
def genie_backends() -> Mapping[str, Callable[[Settings], Any]]:
    return {"tcp": _backend}
