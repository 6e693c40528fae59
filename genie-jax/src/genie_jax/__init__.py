"""Genie's JAX frontend: :func:`remote`, and the arrays it gives.

JAX is imported with the first of them: programs of other frameworks do without it where this is installed, too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genie_jax.arrays import RemoteArray
    from genie_jax.functions import remote

__all__ = ["RemoteArray", "remote"]

_WHERE = {"RemoteArray": "genie_jax.arrays", "remote": "genie_jax.functions"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_WHERE[name]), name)
    globals()[name] = found
    return found
