"""What is said of a primitive that is not translated: its name, the user's line, and whether XLA would have it."""

from __future__ import annotations

from typing import Any

from jax._src.interpreters import mlir

from genie.errors import UnsupportedOperation

_LEAVE = "leave that part to JAX: compute it with jax.jit, outside of what is remote"


def of(primitive: Any, what: str, where: str) -> UnsupportedOperation:
    """``what`` is what is wrong with the primitive."""
    return UnsupportedOperation(f"JAX's primitive {primitive.name} {what}", where=where, hint=_hint(primitive))


def name(error: UnsupportedOperation, primitive: Any, where: str) -> None:
    """Adds to what a rule raised what it does not know of. Of primitives within one another the innermost is named."""
    error.where = error.where or where
    if _NAMED not in error.message:
        error.message = f"{error.message} ({_NAMED} {primitive.name})"
        error.hint = error.hint or _hint(primitive)


_NAMED = "JAX's primitive"


def _hint(primitive: Any) -> str:
    """A node with an XLA engine is sent a program's graph, too, and so nothing that has none."""
    of_processors = mlir._platform_specific_lowerings["cpu"]
    if primitive in mlir._lowerings or primitive in of_processors:
        return f"XLA has it, but an XLA engine takes only what is translated, too; {_LEAVE}"
    return f"XLA does not have it on a processor, either, and no node runs it; {_LEAVE}"
