"""Sorting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from genie.errors import UnsupportedOperation
from genie_jax.dtypes import is_key
from genie_jax.rules import Equation, Tensor, rule
from genie_jax.rules.compare import rank
from genie_jax.rules.unsigned import widened
from genie_jax.rules.wide import is_small, moved


@rule("sort")
def _sort(
    here: Equation, *operands: Tensor, dimension: int, is_stable: bool, num_keys: int
) -> Tensor | Sequence[Tensor]:
    """By the first ``num_keys`` operands, the first of them above all: in turn from the last, each time stable.
    Zeros are equal, and what is no number comes last, in ATen as in JAX."""
    keys = [
        part
        for operand, aval in zip(operands[:num_keys], here.taken, strict=False)
        for part in _parts(operand, aval.dtype)
    ]
    order: Tensor | None = None
    for key in reversed(keys):
        if order is None:
            order = _argsort(key, dimension)
        else:
            order = torch.gather(order, dimension, _argsort(torch.gather(key, dimension, order), dimension))
    assert order is not None
    return [_taken(each, dimension, order) for each in operands]


def _parts(x: Tensor, dtype: Any) -> Sequence[Tensor]:
    """What ATen sorts by."""
    if is_key(dtype):
        raise UnsupportedOperation("sorting random keys")
    if x.is_complex():
        return torch.real(x), torch.imag(x)
    return (x.to(torch.float32) if is_small(x) else widened(dtype, x),)


def _argsort(key: Tensor, axis: int, *, descending: bool = False) -> Tensor:
    return torch.sort(key, dim=axis, descending=descending, stable=True)[1]


def _taken(x: Tensor, axis: int, order: Tensor) -> Tensor:
    return moved(lambda y: torch.gather(y, axis, order), x)


@rule("top_k")
def _top_k(here: Equation, x: Tensor, *, k: int, axis: int) -> Sequence[Tensor]:
    """The largest first in the total order of IEEE 754, as XLA has it: of zeros the positive one. Of equal ones the
    first first."""
    key = rank(here.taken[0].dtype, x)
    return _first(here, x, axis, key, descending=True)


@rule("approx_top_k")
def _approx_top_k(
    here: Equation,
    x: Tensor,
    *,
    k: int,
    reduction_dimension: int,
    recall_target: float,
    is_max_k: bool,
    reduction_input_size_override: int,
    aggregate_to_topk: bool,
) -> Sequence[Tensor]:
    """The exact ones, of which there are as many as JAX says: k, or more where it would not make them so few."""
    (key,) = _parts(x, here.taken[0].dtype)
    return _first(here, x, reduction_dimension % x.ndim, key, descending=is_max_k)


def _first(here: Equation, x: Tensor, axis: int, key: Tensor, *, descending: bool) -> Sequence[Tensor]:
    order = _argsort(key, axis, descending=descending).narrow(axis, 0, here.made[0].shape[axis])
    return _taken(x, axis, order), order.to(torch.int32)
