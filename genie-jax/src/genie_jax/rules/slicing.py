"""Parts of arrays at positions that are computed, and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from genie_jax.dtypes import is_unsigned
from genie_jax.rules import Equation, Tensor, rule
from genie_jax.rules.unsigned import widened
from genie_jax.rules.wide import is_small, put

Pad = tuple[int, int, int]  # before, after, between


def positions(dtype: Any, x: Tensor) -> Tensor:
    """Indices as int64; those of uint64 beyond it are as far out of bounds as can be."""
    if is_unsigned(dtype) and dtype.itemsize == 8:
        return torch.where(x < 0, (1 << 63) - 1, x)
    return widened(dtype, x).to(torch.int64)


def _lines(here: Equation, first: int, starts: Sequence[Tensor], sizes: Sequence[int], whole: Sequence[int]) -> Any:
    """For each axis that is not taken whole: the positions taken, which are moved to be in bounds, as XLA does it."""
    for axis, (start, size, extent) in enumerate(zip(starts, sizes, whole, strict=True)):
        if size != extent:
            dtype = here.taken[first + axis].dtype
            inside = torch.clamp(positions(dtype, start), 0, extent - size)
            yield axis, inside.reshape(1) if size == 1 else inside + torch.arange(size)


@rule("dynamic_slice")
def _dynamic_slice(here: Equation, x: Tensor, *starts: Tensor, slice_sizes: Any) -> Tensor:
    for axis, line in _lines(here, 1, starts, slice_sizes, x.shape[: len(slice_sizes)]):
        x = torch.index_select(x, axis, line)
    return x


@rule("dynamic_update_slice")
def _dynamic_update_slice(here: Equation, x: Tensor, update: Tensor, *starts: Tensor) -> Tensor:
    count = len(starts)
    lines = dict(_lines(here, 2, starts, update.shape[:count], x.shape[:count]))
    if not lines:
        return update
    if len(lines) == 1:
        ((axis, line),) = lines.items()
        return put(x, axis, line, update)
    indices: list[Tensor | None] = [None] * count
    last = max(lines)
    for axis in range(min(lines), last + 1):  # neighbours, so that the result keeps the order of the axes
        line = lines[axis] if axis in lines else torch.arange(x.shape[axis])
        indices[axis] = line.reshape([-1] + [1] * (last - axis))
    if is_small(x):
        return torch.index_put(x.view(torch.uint8), indices[: last + 1], update.view(torch.uint8)).view(x.dtype)
    return torch.index_put(x, indices[: last + 1], update)


@rule("pad")
def _pad(here: Equation, x: Tensor, value: Tensor, *, padding_config: Any) -> Tensor:
    number = here.numbers[1]
    if number is not None:
        return padded(x, number, padding_config)
    here_it_is = padded(torch.ones_like(x, dtype=torch.bool), False, padding_config)
    return torch.where(here_it_is, padded(x, 0, padding_config), value)


def padded(x: Tensor, value: Any, config: Sequence[Pad]) -> Tensor:
    """``x`` with ``value`` before, after and between its elements; negative numbers before and after take away."""
    for axis, (_, _, between) in enumerate(config):
        if between and x.shape[axis] > 1:
            spread = x.movedim(axis, -1).unsqueeze(-1)
            spread = torch.constant_pad_nd(spread, [0, between], value).flatten(-2)
            x = spread[..., : spread.shape[-1] - between].movedim(-1, axis)
    for axis, (before, after, _) in enumerate(config):
        size = x.shape[axis]
        if before < 0 or after < 0:
            x = torch.narrow(x, axis, *_kept(size, before, after))
    amounts = [max(each, 0) for before, after, _ in reversed(config) for each in (before, after)]
    if not any(amounts):
        return x
    if x.numel() == 0 or x.ndim == 0:
        shape = [n + max(a, 0) + max(b, 0) for n, (a, b, _) in zip(x.shape, config, strict=True)]
        return torch.full(shape, value, dtype=x.dtype)
    return torch.constant_pad_nd(x, amounts, value)


def _kept(size: int, before: int, after: int) -> tuple[int, int]:
    first = min(max(-before, 0), size)
    return first, max(size - first - max(-after, 0), 0)
