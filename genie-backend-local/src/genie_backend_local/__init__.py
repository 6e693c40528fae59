"""Runs plans on this machine's CPU and GPUs.

>>> backend = LocalBackend()
>>> session = backend.connect(backend.devices()[0])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genie_backend_local.backend import LocalBackend
    from genie_backend_local.session import Allocation, LocalSession, SharedValue

__all__ = ["Allocation", "LocalBackend", "LocalSession", "SharedValue"]

_MODULES = {"LocalBackend": "backend", "Allocation": "session", "LocalSession": "session", "SharedValue": "session"}


def __getattr__(name: str) -> Any:
    # Discovering plugins imports this package; only using it imports PyTorch.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
