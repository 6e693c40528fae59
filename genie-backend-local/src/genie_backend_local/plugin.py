"""What this distribution offers. PyTorch is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genie.hookspecs import Offers, hookimpl

if TYPE_CHECKING:
    from genie.config import Settings
    from genie.interfaces import Backend


@hookimpl
def genie_backends() -> Offers:
    def local(settings: Settings) -> Backend:
        from genie_backend_local.backend import LocalBackend
        from genie_backend_local.engines import Engines

        return LocalBackend(
            threads=settings.threads,
            memory_limit_gb=settings.memory_limit_gb,
            batching=settings.batching,
            exact=settings.batching_exact,
            execution_seconds=settings.execution_seconds,
            swap_bytes=settings.swap_bytes,
            swap_directory=settings.swap_directory,
            swap_idle_seconds=settings.swap_idle_seconds,
            engines=Engines.installed(settings),
        )

    return {"local": local}
