"""Floating point of a byte, which ATen only converts: computed in float32, as XLA computes it in a wider type."""

from __future__ import annotations

from collections.abc import Callable

import torch

from genie_jax.rules import Tensor


def is_small(x: Tensor) -> bool:
    return x.is_floating_point() and x.element_size() == 1


def computable(compute: Callable[..., Tensor], *operands: Tensor) -> Tensor:
    """``compute`` of the operands, whose result is of their type."""
    if not is_small(operands[0]):
        return compute(*operands)
    return small(compute(*(each.to(torch.float32) for each in operands)), operands[0].dtype)


def moved(compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``compute``, which only moves elements."""
    return compute(x.view(torch.uint8)).view(x.dtype) if is_small(x) else compute(x)


def put(x: Tensor, axis: int, at: Tensor, given: Tensor) -> Tensor:
    """``x`` with ``given`` in places of an axis."""
    if not is_small(x):
        return torch.index_copy(x, axis, at, given)
    return torch.index_copy(x.view(torch.uint8), axis, at, given.view(torch.uint8)).view(x.dtype)


def small(x: Tensor, target: torch.dtype) -> Tensor:
    """``x`` as floating point of a byte. Where ATen takes the nearest number for what has none, JAX has NaN."""
    x = x.to(torch.float32)
    if target == torch.float8_e4m3fn:  # 464 is half way between the largest and what would follow, and rounds down
        return torch.where(torch.gt(torch.abs(x), 464.0), torch.full_like(x, float("nan")), x).to(target)
    if target == torch.float8_e8m0fnu:  # neither zero nor a sign
        return torch.where(torch.gt(x, 0.0), x, torch.full_like(x, float("nan"))).to(target)
    return x.to(target)


def narrow(x: Tensor, target: torch.dtype) -> Tensor:
    """``x``, computed in a wider type, in the type of a result."""
    return small(x, target) if target.is_floating_point and target.itemsize == 1 else x.to(target)


def through(wide: torch.dtype, compute: Callable[..., Tensor], *operands: Tensor) -> Tensor:
    """``compute`` in ``wide`` where the operands are less than four bytes, for what ATen has in no smaller type."""
    dtype = operands[0].dtype
    if operands[0].element_size() >= 4:
        return compute(*operands)
    return compute(*(each.to(wide) for each in operands)).to(dtype)
