"""Unsigned integers carried as signed ones: where the sign matters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from genie_jax.dtypes import is_unsigned
from genie_jax.rules import Equation, Tensor
from genie_jax.rules.wide import computable

_LOWEST = -(1 << 63)


def widened(dtype: Any, x: Tensor) -> Tensor:
    """Integers in the order of what they stand for: the numbers themselves, but for uint64, which has none wider."""
    if not is_unsigned(dtype):
        return x
    if np.dtype(dtype).itemsize == 8:
        return torch.bitwise_xor(x, _LOWEST)
    return torch.bitwise_and(x.to(torch.int64), (1 << 8 * np.dtype(dtype).itemsize) - 1)


def narrowed(dtype: Any, x: Tensor, carrier: torch.dtype) -> Tensor:
    """Back from :func:`widened`."""
    if not is_unsigned(dtype):
        return x
    return torch.bitwise_xor(x, _LOWEST) if np.dtype(dtype).itemsize == 8 else x.to(carrier)


def ordered(here: Equation, compute: Callable[..., Tensor], *operands: Tensor) -> Tensor:
    """``compute``, which chooses among elements by their order."""
    dtype = here.taken[0].dtype
    if not is_unsigned(dtype):
        return computable(compute, *operands)
    return narrowed(dtype, compute(*(widened(dtype, each) for each in operands)), operands[0].dtype)
