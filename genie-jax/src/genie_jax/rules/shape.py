"""Primitives that move elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from genie_jax.dtypes import torch_dtype
from genie_jax.rules import Equation, Tensor, rule
from genie_jax.rules.wide import moved


@rule("broadcast_in_dim")
def _broadcast(here: Equation, x: Tensor, *_: Tensor, shape: Any, broadcast_dimensions: Any, sharding: Any) -> Tensor:
    given = [1] * len(shape)
    for axis, dimension in enumerate(broadcast_dimensions):
        given[dimension] = x.shape[axis]
    return x.reshape(given).expand(tuple(shape))


@rule("reshape")
def _reshape(here: Equation, x: Tensor, *_: Tensor, new_sizes: Any, dimensions: Any, sharding: Any) -> Tensor:
    return (x if dimensions is None else x.permute(dimensions)).reshape(tuple(new_sizes))


@rule("squeeze")
def _squeeze(here: Equation, x: Tensor, *, dimensions: Any) -> Tensor:
    return x.reshape(tuple(here.made[0].shape))


@rule("expand_dims")
def _expand_dims(here: Equation, x: Tensor, *, dimensions: Any) -> Tensor:
    return x.reshape(tuple(here.made[0].shape))


@rule("transpose")
def _transpose(here: Equation, x: Tensor, *, permutation: Any) -> Tensor:
    return x.permute(tuple(permutation))


@rule("concatenate")
def _concatenate(here: Equation, *parts: Tensor, dimension: int) -> Tensor:
    return torch.cat(parts, dimension)


@rule("stack")
def _stack(here: Equation, *parts: Tensor, axis: int) -> Tensor:
    return torch.stack(parts, axis)


@rule("unstack")
def _unstack(here: Equation, x: Tensor, *, axis: int) -> Sequence[Tensor]:
    return torch.unbind(x, axis)


@rule("tile")
def _tile(here: Equation, x: Tensor, *, reps: Any) -> Tensor:
    return x.repeat(tuple(reps))


@rule("slice")
def _slice(here: Equation, x: Tensor, *, start_indices: Any, limit_indices: Any, strides: Any) -> Tensor:
    for axis, (start, limit) in enumerate(zip(start_indices, limit_indices, strict=True)):
        step = 1 if strides is None else strides[axis]
        if (start, limit, step) != (0, x.shape[axis], 1):
            x = torch.ops.aten.slice.Tensor(x, axis, start, limit, step)
    return x


@rule("rev")
def _rev(here: Equation, x: Tensor, *, dimensions: Any) -> Tensor:
    return moved(lambda y: torch.flip(y, tuple(dimensions)), x)


@rule("split")
def _split(here: Equation, x: Tensor, *, sizes: Any, axis: int) -> Sequence[Tensor]:
    return torch.split(x, list(sizes), axis)


@rule("iota")
def _iota(here: Equation, *_: Tensor, dtype: Any, shape: Any, dimension: int, sharding: Any) -> Tensor:
    line = torch.arange(shape[dimension], dtype=torch.int64).to(torch_dtype(dtype))
    sizes = [1] * len(shape)
    sizes[dimension] = shape[dimension]
    return line.reshape(sizes).expand(tuple(shape))
