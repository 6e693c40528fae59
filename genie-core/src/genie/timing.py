"""What nodes report of how long operators took."""

from __future__ import annotations

from math import isfinite

import msgspec

from genie.graph import DTYPES, TensorSpec
from genie.graph.vocabulary import PHASES

MOST_ROWS = 1 << 12  # of one report
MAX_NAME = 256
MAX_RANK = 64
MAX_TENSORS = 1 << 12  # of one row
_LARGEST = 1 << 63


class Operand(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A tensor an operator was given or made. ``contiguous``: its elements lie in C order without gaps."""

    dtype: str
    shape: tuple[int, ...]
    contiguous: bool = True


class Timing(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How long one operator took, over ``count`` executions with these shapes and dtypes in this phase, in seconds.

    ``target`` is the operator with its overload, ``phase`` "" where unknown. ``results`` are the fresh values it made:
    they tell what operands do not, a stride or a size given as a number. ``typical`` is the median of the latest
    executions, ``variance`` that of all, in seconds².
    """

    target: str
    phase: str
    operands: tuple[Operand, ...]
    results: tuple[Operand, ...]
    count: int
    mean: float
    least: float
    variance: float
    typical: float


def fault(row: Timing) -> str:
    """Which rule the row breaks, or ""."""
    if not row.target or len(row.target) > MAX_NAME or not row.target.isprintable():
        return "its operator has no printable name"
    if row.phase and row.phase not in PHASES:
        return f"there is no phase {row.phase[:64]!r}"
    tensors = (*row.operands, *row.results)
    if len(tensors) > MAX_TENSORS:
        return f"{len(tensors)} tensors are more than {MAX_TENSORS}"
    for each in tensors:
        if each.dtype not in DTYPES:
            return f"there is no dtype {each.dtype[:64]!r}"
        if len(each.shape) > MAX_RANK or any(not 0 <= size < _LARGEST for size in each.shape):
            return "a shape is impossible"
    if not 0 < row.count < _LARGEST:
        return "it counts no executions"
    times = (row.mean, row.least, row.variance, row.typical)
    if not all(isfinite(time) and time >= 0 for time in times):
        return "a time is negative or not finite"
    return ""


def operand(spec: TensorSpec) -> Operand:
    return Operand(spec.dtype, tuple(spec.shape), _contiguous(spec))


def _contiguous(spec: TensorSpec) -> bool:
    if spec.stride is None or 0 in spec.shape:
        return True
    due = 1
    for size, step in zip(reversed(spec.shape), reversed(spec.stride), strict=True):
        if size != 1:
            if step != due:
                return False
            due *= size
    return True
