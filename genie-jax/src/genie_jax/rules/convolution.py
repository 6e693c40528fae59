"""Convolutions of any layout."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from genie_jax.dtypes import torch_dtype
from genie_jax.rules import Equation, Tensor, rule
from genie_jax.rules.contract import common
from genie_jax.rules.slicing import padded
from genie_jax.rules.wide import narrow
from genie_jax.rules.windows import windows


@rule("conv_general_dilated")
def _conv(
    here: Equation,
    x: Tensor,
    y: Tensor,
    *,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any,
    rhs_dilation: Any,
    dimension_numbers: Any,
    feature_group_count: int,
    batch_group_count: int,
    precision: Any,
    preferred_element_type: Any,
    out_sharding: Any,
) -> Tensor:
    x_layout, y_layout, made_layout = dimension_numbers
    shape = tuple(here.made[0].shape)
    target = torch_dtype(here.made[0].dtype)
    if 0 in shape or 0 in x.shape or 0 in y.shape:
        return torch.zeros(shape, dtype=target)
    x, y = common(here, x.permute(x_layout), y.permute(y_layout))
    groups = feature_group_count
    if batch_group_count > 1:  # groups of examples become groups of features
        x = x.reshape(batch_group_count, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
        groups = batch_group_count
    made = _convolved(x, y, window_strides, padding, lhs_dilation, rhs_dilation, groups)
    return narrow(made, target).permute([made_layout.index(axis) for axis in range(made.ndim)])


def _convolved(
    x: Tensor,
    y: Tensor,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    spread: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Examples and features first."""
    even = all(low == high >= 0 for low, high in padding) and all(each == 1 for each in spread)
    native = x.is_floating_point() and 1 <= len(strides) <= 3
    amounts = [low for low, _ in padding] if even and native else [0] * len(strides)
    if not (even and native):
        between = [(low, high, apart - 1) for (low, high), apart in zip(padding, spread, strict=True)]
        x = padded(x, 0, [(0, 0, 0), (0, 0, 0), *between])
    if native:
        return torch.convolution(x, y, None, list(strides), amounts, list(dilation), False, [0] * len(strides), groups)
    return _by_product(x, y, strides, dilation, groups)


def _by_product(x: Tensor, y: Tensor, strides: Sequence[int], dilation: Sequence[int], groups: int) -> Tensor:
    """For types and ranks for which ATen has no convolution: every window as a row of a matrix."""
    examples, features = x.shape[:2]
    rank = len(strides)
    seen = windows(x, [1, 1, *y.shape[2:]], [1, 1, *strides], [1, 1, *dilation])
    places = seen.shape[2 : 2 + rank]
    seen = seen.reshape(examples, groups, features // groups, prod(places), prod(y.shape[2:]))
    rows = seen.permute(1, 0, 3, 2, 4).reshape(groups, examples * prod(places), -1)
    columns = y.reshape(groups, y.shape[0] // groups, -1).transpose(1, 2)
    made = torch.bmm(rows, columns).reshape(groups, examples, *places, -1)
    return made.movedim((0, -1), (1, 2)).reshape(examples, y.shape[0], *places)
