"""Reductions of windows that slide, and their derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import jax
import numpy as np
import torch

from genie.errors import UnsupportedOperation
from genie_jax.rules import Equation, Tensor, computations, rule
from genie_jax.rules.elementwise import larger, smaller
from genie_jax.rules.slicing import padded
from genie_jax.rules.unsigned import ordered, widened

# A window whose elements are combined one by one is some nodes for each.
_LARGEST = 1024


def windows(x: Tensor, sizes: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """A view of shape (windows along each axis …, a window's size along each axis …)."""
    rank = x.ndim
    for axis, (size, stride, apart) in enumerate(zip(sizes, strides, dilation, strict=True)):
        x = x.unfold(axis, (size - 1) * apart + 1, stride)
        if apart > 1:
            x = x[..., ::apart]
    assert x.ndim == 2 * rank
    return x


def _elements(x: Tensor, sizes: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> Iterator[Tensor]:
    """The first element of every window, the second …: in the order in which XLA meets them."""
    if prod(sizes) > _LARGEST:
        raise UnsupportedOperation(f"windows of {prod(sizes)} elements combined one by one ({_LARGEST} at most)")
    for offsets in product(*map(range, sizes)):
        part = x
        for axis, (at, apart, size, stride) in enumerate(zip(offsets, dilation, sizes, strides, strict=True)):
            last = x.shape[axis] - (size - 1 - at) * apart
            part = torch.ops.aten.slice.Tensor(part, axis, at * apart, last, stride)
        yield part


def _config(padding: Any, base_dilation: Any) -> list[tuple[int, int, int]]:
    return [(low, high, apart - 1) for (low, high), apart in zip(padding, base_dilation, strict=True)]


def _reduced(
    here: Equation,
    x: Tensor,
    identity: Callable[[torch.dtype], Any],
    compute: Callable[[Tensor, tuple[int, ...]], Tensor],
    geometry: tuple[Any, Any, Any, Any, Any],
) -> Tensor:
    sizes, strides, padding, base, dilation = geometry
    if 0 in here.made[0].shape:
        return torch.zeros(tuple(here.made[0].shape), dtype=x.dtype)
    rank = x.ndim

    def along(x: Tensor) -> Tensor:
        filled = padded(x, identity(x.dtype), _config(padding, base))
        return compute(windows(filled, sizes, strides, dilation), tuple(range(rank, 2 * rank)))

    return ordered(here, along, x) if rank else x


def _lowest(dtype: torch.dtype) -> Any:
    if dtype == torch.bool:
        return False
    return float("-inf") if dtype.is_floating_point else torch.iinfo(dtype).min


def _highest(dtype: torch.dtype) -> Any:
    if dtype == torch.bool:
        return True
    return float("inf") if dtype.is_floating_point else torch.iinfo(dtype).max


def chosen(x: Tensor, *, greatest: bool, geometry: tuple[Any, Any, Any, Any, Any]) -> Tensor:
    """The greatest or the least of windows of complex numbers, which ATen does not order: element by element, beginning
    with what JAX begins with, and leaving out what is padded. The order shows where one is no number."""
    sizes, strides, padding, base, dilation = geometry
    compare, loser = (larger, float("-inf")) if greatest else (smaller, float("inf"))
    config = _config(padding, base)
    mine = padded(torch.ones_like(x, dtype=torch.bool), False, config)
    parts = (_elements(each, sizes, strides, dilation) for each in (padded(x, 0, config), mine))
    held: Tensor | None = None
    for part, inside in zip(*parts, strict=True):
        held = torch.full_like(part, loser) if held is None else held
        held = torch.where(inside, compare(held, part), held)
    assert held is not None
    return held


def _sum(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return torch.any(x.flatten(axes[0]), -1) if x.dtype == torch.bool else torch.sum(x, axes, dtype=x.dtype)


@rule("reduce_window_sum")
def _window_sum(
    here: Equation,
    x: Tensor,
    *,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
    base_dilation: Any,
    window_dilation: Any,
) -> Tensor:
    geometry = (window_dimensions, window_strides, padding, base_dilation, window_dilation)
    return _reduced(here, x, lambda dtype: 0, _sum, geometry)


@rule("reduce_window_max")
def _window_max(
    here: Equation,
    x: Tensor,
    *,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
    base_dilation: Any,
    window_dilation: Any,
) -> Tensor:
    geometry = (window_dimensions, window_strides, padding, base_dilation, window_dilation)
    if x.is_complex() and 0 not in here.made[0].shape:
        return chosen(x, greatest=True, geometry=geometry)
    return _reduced(here, x, _lowest, torch.amax, geometry)


@rule("reduce_window_min")
def _window_min(
    here: Equation,
    x: Tensor,
    *,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
    base_dilation: Any,
    window_dilation: Any,
) -> Tensor:
    geometry = (window_dimensions, window_strides, padding, base_dilation, window_dilation)
    if x.is_complex() and 0 not in here.made[0].shape:
        return chosen(x, greatest=False, geometry=geometry)
    return _reduced(here, x, _highest, torch.amin, geometry)


@rule("reduce_window")
def _window_general(
    here: Equation,
    *operands: Tensor,
    jaxpr: Any,
    consts: Any,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
    base_dilation: Any,
    window_dilation: Any,
) -> Sequence[Tensor]:
    """By any computation, element by element of the windows, beginning with what is given to begin with."""
    half = len(operands) // 2
    arrays, starts = operands[:half], operands[half:]
    shape = tuple(here.made[0].shape)
    config = _config(padding, base_dilation)
    if 0 in shape:
        return [torch.zeros(shape, dtype=x.dtype) for x in arrays]
    parts = []
    for x, start in zip(arrays, starts, strict=True):
        mine = padded(torch.ones_like(x, dtype=torch.bool), False, config)
        filled = torch.where(mine, padded(x, 0, config), start)
        parts.append(_elements(filled, window_dimensions, window_strides, window_dilation))
    held: Sequence[Tensor] = [start.expand(shape) for start in starts]
    for several in zip(*parts, strict=True):
        held = computations.each(here, jaxpr, consts, *held, *(part.reshape(shape) for part in several))
    return held


def _keeps(select_prim: Any, dtype: Any) -> tuple[Callable[[Tensor, Tensor], Tensor], Any]:
    """Which of two elements a window keeps, and what loses against all: as :func:`widened` has it."""
    name = str(select_prim.name)
    if name in ("ge", "le") and dtype == np.bool_:
        return getattr(torch, name), name == "le"
    if name in ("ge", "le") and jax.numpy.issubdtype(dtype, np.floating):
        return getattr(torch, name), float("-inf" if name == "ge" else "inf")
    if name in ("ge", "le") and dtype.kind in "iu":
        last = np.iinfo(dtype)
        number = int(last.min if name == "ge" else last.max)
        return getattr(torch, name), number - (1 << 63) if dtype == np.uint64 else number
    raise UnsupportedOperation(f"selecting among windows of {dtype} by {name}")


def _selected(keeps: Callable[[Tensor, Tensor], Tensor], values: Iterator[Tensor], carried: Iterator[Tensor]) -> Tensor:
    best, held = next(values), next(carried)
    for value, carry in zip(values, carried, strict=True):
        keep = keeps(best, value)
        best = torch.where(keep, best, value)
        held = torch.where(keep, held, carry)
    return held


@rule("select_and_scatter_add")
def _select_and_scatter_add(
    here: Equation,
    source: Tensor,
    operand: Tensor,
    *,
    select_prim: Any,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
) -> Tensor:
    """Each window's element of ``source``, added where the window's chosen element is. As XLA does it on a CPU, what is
    padded may be chosen, and is then left out."""
    keeps, loser = _keeps(select_prim, here.taken[1].dtype)
    config = [(low, high, 0) for low, high in padding]
    filled = padded(widened(here.taken[1].dtype, operand), loser, config)
    ones = [1] * operand.ndim
    places = torch.arange(filled.numel()).reshape(filled.shape)
    geometry = (window_dimensions, window_strides, ones)
    chosen = _selected(keeps, _elements(filled, *geometry), _elements(places, *geometry))
    given = source.to(torch.uint8) if source.dtype == torch.bool else source
    added = torch.zeros(filled.numel(), dtype=given.dtype)
    added = torch.index_add(added, 0, chosen.reshape(-1), given.reshape(-1)).reshape(filled.shape)
    return padded(added, 0, [(-low, -high, 0) for low, high, _ in config]).to(source.dtype)


@rule("select_and_gather_add")
def _select_and_gather_add(
    here: Equation,
    tangents: Tensor,
    operand: Tensor,
    *,
    select_prim: Any,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
    base_dilation: Any,
    window_dilation: Any,
) -> Tensor:
    keeps, loser = _keeps(select_prim, here.taken[1].dtype)
    if operand.dtype == torch.float64:
        raise UnsupportedOperation(
            "the derivative of a gradient of windows of float64, which JAX itself gives with half of the digits"
        )
    config = _config(padding, base_dilation)
    geometry = (window_dimensions, window_strides, window_dilation)
    values = _elements(padded(operand, loser, config), *geometry)
    return _selected(keeps, values, _elements(padded(tangents, 0, config), *geometry))
