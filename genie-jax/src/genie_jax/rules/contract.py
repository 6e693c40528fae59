"""Products over shared dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from jax._src.lax import lax as jax_lax
from jax._src.lax.scaled_dot import _scaled_dot_impl

from genie.errors import UnsupportedOperation
from genie_jax.dtypes import is_unsigned, torch_dtype
from genie_jax.rules import Equation, Tensor, rule
from genie_jax.rules.unsigned import widened
from genie_jax.rules.wide import narrow


def common(here: Equation, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the type that their products are summed in."""
    target = torch_dtype(here.made[0].dtype)
    wide = []
    for operand, aval in zip((x, y), here.taken, strict=False):
        grows = is_unsigned(aval.dtype) and aval.dtype.itemsize < 8 and target.itemsize > operand.dtype.itemsize
        wide.append(widened(aval.dtype, operand) if grows or target.is_floating_point else operand)
    kinds = [torch.float32 if each.is_floating_point() and each.dtype.itemsize == 1 else each.dtype for each in wide]
    if target.itemsize == 1 and target.is_floating_point:
        target = torch.float32
    if all(kind.is_floating_point or kind.is_complex for kind in kinds):
        target = torch.promote_types(torch.promote_types(kinds[0], kinds[1]), target)
    return wide[0].to(target), wide[1].to(target)


def _plain(precision: Any) -> None:
    """Precisions are hints of how many digits suffice at least, but for algorithms named one by one."""
    for each in precision if isinstance(precision, tuple) else (precision,):
        if each is not None and str(getattr(each, "name", each)) not in _AT_LEAST:
            raise UnsupportedOperation(f"a product by the algorithm {each}")


_AT_LEAST = frozenset(
    "DEFAULT HIGH HIGHEST F32_F32_F32 F64_F64_F64 BF16_BF16_F32 F16_F16_F32 default high highest".split()
)


@rule("dot_general")
def _dot_general(
    here: Equation,
    x: Tensor,
    y: Tensor,
    *,
    dimension_numbers: Any,
    precision: Any,
    preferred_element_type: Any,
    out_sharding: Any,
) -> Tensor:
    _plain(precision)
    (x_sum, y_sum), (x_batch, y_batch) = dimension_numbers
    target = torch_dtype(here.made[0].dtype)
    if target == torch.bool:
        x, y = x.to(torch.int64), y.to(torch.int64)
    else:
        x, y = common(here, x, y)
    x_free = [axis for axis in range(x.ndim) if axis not in (*x_sum, *x_batch)]
    y_free = [axis for axis in range(y.ndim) if axis not in (*y_sum, *y_batch)]
    batch, shared = [x.shape[axis] for axis in x_batch], prod(x.shape[axis] for axis in x_sum)
    rows, columns = [x.shape[axis] for axis in x_free], [y.shape[axis] for axis in y_free]
    lead = [prod(batch)] if batch else []
    left = x.permute([*x_batch, *x_free, *x_sum]).reshape([*lead, prod(rows), shared])
    right = y.permute([*y_batch, *y_sum, *y_free]).reshape([*lead, shared, prod(columns)])
    made = torch.bmm(left, right) if batch else torch.mm(left, right)
    made = made != 0 if target == torch.bool else narrow(made, target)
    return made.reshape([*batch, *rows, *columns])


@rule("ragged_dot_general")
def _ragged_dot_general(
    here: Equation,
    *operands: Tensor,
    ragged_dot_dimension_numbers: Any,
    precision: Any,
    preferred_element_type: Any,
    group_offset: Any,
    out_sharding: Any,
) -> Sequence[Tensor]:
    """As JAX does it where there is no kernel: products with what each group does not have left out."""
    if group_offset is not None:
        raise UnsupportedOperation("a ragged product that begins at another group than the first")
    product = partial(
        jax_lax._ragged_dot_general_impl,
        ragged_dot_dimension_numbers=ragged_dot_dimension_numbers,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return here.of_jax(product, *operands)


@rule("scaled_dot")
def _scaled_dot(
    here: Equation, *operands: Tensor, dimension_numbers: Any, preferred_element_type: Any
) -> Sequence[Tensor]:
    product = partial(
        _scaled_dot_impl,
        dimension_numbers=dimension_numbers,
        preferred_element_type=preferred_element_type,
    )
    return here.of_jax(product, *operands)
