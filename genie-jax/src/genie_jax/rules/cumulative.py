"""Running sums, products and extremes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from genie_jax.rules import Equation, Tensor, rule
from genie_jax.rules.unsigned import ordered
from genie_jax.rules.wide import computable
from genie_jax.rules.windows import chosen

_EXTREMES = ("cummax", "cummin")


def _of_windows(x: Tensor, axis: int, reverse: bool, *, greatest: bool) -> Tensor:
    """Of complex numbers, as windows of all that is before (or after) each element."""
    size = x.shape[axis]
    if not x.numel():
        return x
    ones = [1] * x.ndim
    sizes = [size if each == axis else 1 for each in range(x.ndim)]
    padding = [((0, size - 1) if reverse else (size - 1, 0)) if each == axis else (0, 0) for each in range(x.ndim)]
    return chosen(x, greatest=greatest, geometry=(sizes, ones, padding, ones, ones))


def _cumulative(name: str, compute: Callable[[Tensor, int], Tensor]) -> None:
    @rule(name)
    def apply(here: Equation, x: Tensor, *, axis: int, reverse: bool) -> Tensor:
        if x.is_complex() and name in _EXTREMES:
            return _of_windows(x, axis, reverse, greatest=name == "cummax")

        def along(y: Tensor) -> Tensor:
            return torch.flip(compute(torch.flip(y, (axis,)), axis), (axis,)) if reverse else compute(y, axis)

        return ordered(here, along, x) if name in _EXTREMES else computable(along, x)


for _name, _compute in {
    "cumsum": lambda x, axis: torch.cumsum(x, axis, dtype=x.dtype),
    "cumprod": lambda x, axis: torch.cumprod(x, axis, dtype=x.dtype),
    "cummax": lambda x, axis: torch.cummax(x, axis).values,
    "cummin": lambda x, axis: torch.cummin(x, axis).values,
    "cumlogsumexp": lambda x, axis: torch.logcumsumexp(x, axis),
}.items():
    _cumulative(_name, _compute)
