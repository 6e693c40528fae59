"""Primitives that make fewer elements of many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
import numpy as np
import torch
from jax.extend import core

from genie_jax.dtypes import torch_dtype
from genie_jax.rules import Equation, Tensor, rule
from genie_jax.rules.elementwise import larger, smaller
from genie_jax.rules.unsigned import ordered, widened
from genie_jax.rules.wide import computable


@rule("reduce_sum")
def _sum(here: Equation, x: Tensor, *, axes: Any, out_sharding: Any) -> Tensor:
    return computable(lambda y: torch.sum(y, tuple(axes), dtype=y.dtype), x) if axes else x


@rule("reduce_prod")
def _prod(here: Equation, x: Tensor, *, axes: Any, out_sharding: Any = None) -> Tensor:
    def product(y: Tensor) -> Tensor:
        wide = y.to(torch.float32) if y.is_floating_point() and y.element_size() == 2 else y
        for axis in sorted(axes, reverse=True):
            wide = torch.prod(wide, axis, dtype=wide.dtype)
        return wide.to(y.dtype)

    return computable(product, x)


@rule("reduce_max")
def _max(here: Equation, x: Tensor, *, axes: Any, out_sharding: Any = None) -> Tensor:
    return _extreme(here, x, axes, torch.amax, larger, low=True)


@rule("reduce_min")
def _min(here: Equation, x: Tensor, *, axes: Any, out_sharding: Any = None) -> Tensor:
    return _extreme(here, x, axes, torch.amin, smaller, low=False)


def _extreme(
    here: Equation, x: Tensor, axes: Any, compute: Callable[..., Tensor], chosen: Callable[..., Tensor], *, low: bool
) -> Tensor:
    if not axes:
        return x
    if 0 in x.shape:
        return torch.full(tuple(here.made[0].shape), _limit(here.made[0].dtype, low=low), dtype=x.dtype)
    if x.is_complex():
        return _tree([_front(x, axes)], lambda a, b: [chosen(a[0], b[0])])[0]
    return ordered(here, lambda y: compute(y, tuple(axes)), x)


def _limit(dtype: Any, *, low: bool) -> float | int | bool:
    """The least value of a type, or the largest, as its carrier has it."""
    number = np.dtype(dtype)
    if number == np.bool_:
        return not low
    if jax.numpy.issubdtype(number, np.integer):
        limit = np.array(np.iinfo(number).min if low else np.iinfo(number).max, number)
        return int(limit.view(f"i{number.itemsize}")) if number.itemsize > 1 else int(limit)
    return float("-inf") if low else float("inf")


@rule("reduce_and")
def _and(here: Equation, x: Tensor, *, axes: Any, out_sharding: Any = None) -> Tensor:
    if x.dtype == torch.bool:
        return torch.all(x, tuple(axes)) if axes else x
    return _bits(here, x, axes, torch.bitwise_and, 255 if x.dtype == torch.uint8 else -1)


@rule("reduce_or")
def _or(here: Equation, x: Tensor, *, axes: Any, out_sharding: Any = None) -> Tensor:
    if x.dtype == torch.bool:
        return torch.any(x, tuple(axes)) if axes else x
    return _bits(here, x, axes, torch.bitwise_or, 0)


@rule("reduce_xor")
def _xor(here: Equation, x: Tensor, *, axes: Any, out_sharding: Any = None) -> Tensor:
    if x.dtype == torch.bool:
        return torch.ne(torch.bitwise_and(torch.sum(x, tuple(axes), dtype=torch.int64), 1), 0) if axes else x
    return _bits(here, x, axes, torch.bitwise_xor, 0)


def _bits(here: Equation, x: Tensor, axes: Any, compute: Callable[..., Tensor], unit: int) -> Tensor:
    if 0 in x.shape:
        return torch.full(tuple(here.made[0].shape), unit, dtype=x.dtype)
    return _tree([_front(x, axes)], lambda a, b: [compute(a[0], b[0])])[0]


@rule("reduce")
def _reduce(here: Equation, *operands: Tensor, computation: Any, jaxpr: Any, dimensions: Any) -> Sequence[Tensor]:
    """Any computation, which XLA takes for associative: a tree of it, each level one application to halves."""
    count = len(operands) // 2
    values, initial = operands[:count], operands[count:]
    scalar = core.jaxpr_as_fun(jaxpr)

    def apply(a: Sequence[Tensor], b: Sequence[Tensor]) -> Sequence[Tensor]:
        shape = a[0].shape
        flat = [each.expand(shape).reshape(-1) for each in (*a, *b)]
        types = [jax.ShapeDtypeStruct((prod(shape),), each.dtype) for each in (*here.made, *here.made)]
        return [each.reshape(shape) for each in here.of_jax(jax.vmap(scalar), *flat, types=types)]

    shape = tuple(here.made[0].shape)
    start = [each.expand(shape) for each in initial]
    if 0 in values[0].shape:
        return start
    return apply(start, _tree([_front(each, dimensions) for each in values], apply))


def _front(x: Tensor, axes: Any) -> Tensor:
    """The reduced axes as one, which is the first."""
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    return x.permute(*axes, *kept).reshape(prod(x.shape[axis] for axis in axes), *(x.shape[axis] for axis in kept))


def _tree(
    values: Sequence[Tensor], apply: Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]
) -> Sequence[Tensor]:
    while (size := values[0].shape[0]) > 1:
        half = size // 2
        made = apply([each[:half] for each in values], [each[half : 2 * half] for each in values])
        values = [
            torch.cat([new, each[2 * half :]]) if size % 2 else new for new, each in zip(made, values, strict=True)
        ]
    return [each[0] for each in values]


@rule("argmax")
def _argmax(here: Equation, x: Tensor, *, axes: Any, index_dtype: Any) -> Tensor:
    return _position(here, torch.argmax, x, axes, index_dtype)


@rule("argmin")
def _argmin(here: Equation, x: Tensor, *, axes: Any, index_dtype: Any) -> Tensor:
    return _position(here, torch.argmin, x, axes, index_dtype)


def _position(here: Equation, compute: Callable[..., Tensor], x: Tensor, axes: Any, index_dtype: Any) -> Tensor:
    """The first of the largest, or the first that is no number, in ATen as in JAX."""
    (axis,) = axes
    plain = widened(here.taken[0].dtype, x)
    if x.dtype == torch.bool:
        plain = x.to(torch.uint8)
    elif x.is_floating_point() and x.element_size() == 1:
        plain = x.to(torch.float32)
    return compute(plain, axis).to(torch_dtype(index_dtype))
