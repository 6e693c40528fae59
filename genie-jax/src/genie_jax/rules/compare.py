"""Comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from genie.errors import UnsupportedOperation
from genie_jax.dtypes import is_key, is_unsigned
from genie_jax.rules import Equation, Tensor, rule
from genie_jax.rules.unsigned import widened
from genie_jax.rules.wide import is_small

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _comparison(name: str, compare: Callable[[Tensor, Tensor], Tensor]) -> None:
    @rule(name)
    def apply(here: Equation, x: Tensor, y: Tensor) -> Tensor:
        if is_key(here.taken[0].dtype):
            return _keys(name, x, y)
        if is_unsigned(here.taken[0].dtype) and name not in ("eq", "ne"):
            x, y = widened(here.taken[0].dtype, x), widened(here.taken[1].dtype, y)
        if is_small(x):
            x, y = x.to(torch.float32), y.to(torch.float32)
        return compare(x, y)


def _keys(name: str, x: Tensor, y: Tensor) -> Tensor:
    """Of random keys, word by word: as numbers, two of the same bits may differ."""
    x, y = (each.contiguous().unsqueeze(-1).view(torch.int32) for each in torch.broadcast_tensors(x, y))
    same = torch.all(torch.eq(x, y), -1)
    return same if name == "eq" else torch.logical_not(same)


for _name, _compare in {
    "eq": torch.eq,
    "ne": torch.ne,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
}.items():
    _comparison(_name, _compare)


def _total(name: str, compare: Callable[[Tensor, Tensor], Tensor]) -> None:
    @rule(name)
    def apply(here: Equation, x: Tensor, y: Tensor) -> Tensor:
        dtype = here.taken[0].dtype
        return compare(*(rank(dtype, each) for each in (x, y)))


def rank(dtype: Any, x: Tensor) -> Tensor:
    """Integers in the total order of IEEE 754: -NaN, -inf, …, -0, 0, …, inf, NaN."""
    if x.is_complex():
        raise UnsupportedOperation(f"the total order of {np.dtype(dtype).name}")
    if not x.is_floating_point():
        return widened(dtype, x)
    if x.dtype == torch.float8_e8m0fnu:  # which has no sign
        return x.contiguous().view(torch.uint8).to(torch.int16)
    width = x.element_size()
    bits = x.contiguous().view(_BITS[width])
    return torch.bitwise_xor(bits, torch.bitwise_and(bits >> (8 * width - 1), (1 << (8 * width - 1)) - 1))


for _name, _compare in {"eq_to": torch.eq, "lt_to": torch.lt, "le_to": torch.le}.items():
    _total(_name, _compare)
