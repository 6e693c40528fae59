"""Errors as values: on their way from a node, or kept with a handle."""

from __future__ import annotations

import msgspec

import genie.errors
from genie.errors import DeadlineExceeded, GenieError, NodeError, RemoteOpError, Stage

_STAGES = frozenset(Stage)


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``error`` names a class of :mod:`genie.errors`; the rest are its fields."""

    error: str
    message: str
    where: str = ""
    hint: str = ""
    op: str = ""
    plan: int = -1
    step: int = -1
    kind: str = ""
    device: str = ""
    source: str = ""
    # Of a DeadlineExceeded:
    stage: str = ""
    seconds: float = 0.0
    setting: str = ""


def failure_of(error: BaseException) -> Failure:
    """Of anything that may be raised; what is no error of ours becomes a ``NodeError`` naming its type."""
    if isinstance(error, RemoteOpError):
        return Failure(
            error=type(error).__name__,
            message=error.message,
            where=error.where,
            hint=error.hint,
            op=error.op,
            plan=error.plan,
            step=error.step,
            kind=error.kind,
            device=error.device,
            source=error.source,
        )
    if isinstance(error, DeadlineExceeded):
        return Failure(
            error=type(error).__name__,
            message=error.message,
            where=error.where,
            hint=error.hint,
            stage=error.stage or "",
            seconds=error.seconds,
            setting=error.setting,
        )
    if isinstance(error, GenieError):
        return Failure(error=type(error).__name__, message=error.message, where=error.where, hint=error.hint)
    if isinstance(error, MemoryError):
        return Failure(error="OutOfMemory", message=str(error) or "the node ran out of memory", kind="MemoryError")
    return Failure(error="NodeError", message=f"{type(error).__name__}: {error}")


def error_of(failure: Failure, where: str = "") -> GenieError:
    """The error to raise, ``where`` if it does not say where; only classes of :mod:`genie.errors` are ever built."""
    found = getattr(genie.errors, failure.error, None)
    where = failure.where or where
    if isinstance(found, type) and issubclass(found, RemoteOpError):
        return found(
            failure.message,
            op=failure.op,
            plan=failure.plan,
            step=failure.step,
            kind=failure.kind,
            device=failure.device,
            source=failure.source,
            where=where,
            hint=failure.hint,
        )
    if not (isinstance(found, type) and issubclass(found, GenieError)):
        return NodeError(f"{failure.error}: {failure.message}", where=where, hint=failure.hint)
    if issubclass(found, DeadlineExceeded):
        return found(
            failure.message,
            stage=Stage(failure.stage) if failure.stage in _STAGES else None,  # a later version may have others
            seconds=failure.seconds,
            setting=failure.setting,
            where=where,
            hint=failure.hint,
        )
    return found(failure.message, where=where, hint=failure.hint)
