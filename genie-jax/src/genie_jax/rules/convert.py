"""From one type to another."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from genie.errors import UnsupportedOperation
from genie_jax.dtypes import is_key, is_unsigned, torch_dtype
from genie_jax.rules import Equation, Tensor, rule
from genie_jax.rules.unsigned import widened
from genie_jax.rules.wide import small

_LOWEST = -(1 << 63)
_HIGHEST = (1 << 63) - 1
_HALF = 2.0**63


@rule("convert_element_type")
def _convert(here: Equation, x: Tensor, *, new_dtype: Any, weak_type: bool, sharding: Any) -> Tensor:
    if is_key(here.taken[0].dtype) or is_key(new_dtype):
        raise UnsupportedOperation("converting random keys")
    return converted(here.taken[0].dtype, new_dtype, x)


def converted(given: Any, wanted: Any, x: Tensor) -> Tensor:
    """``x``, JAX's type ``given``, in JAX's type ``wanted``: integers wrap, floats saturate, NaN is zero."""
    given, wanted = np.dtype(given), np.dtype(wanted)
    target = torch_dtype(wanted)
    if given == wanted:
        return x
    if x.is_complex() and not target.is_complex:
        x = torch.real(x)
    if x.is_floating_point() and not target.is_floating_point and not target.is_complex:
        if x.element_size() == 1:
            x = x.to(torch.float32)
        return torch.ne(x, 0) if target == torch.bool else _saturated(wanted, x)
    if is_unsigned(given):
        if target.is_floating_point or target.is_complex:
            x = _from_unsigned(given, x, torch.float32 if target.itemsize == 1 else target)
        elif given.itemsize < 8:
            x = widened(given, x)
    if target.is_floating_point and target.itemsize == 1:
        return small(x.to(torch.float32), target)
    return x.to(target)


def _saturated(wanted: np.dtype[Any], x: Tensor) -> Tensor:
    limits = np.iinfo(wanted)
    target = torch_dtype(wanted)
    wide = torch.where(torch.isnan(x), torch.zeros_like(x), x).to(torch.float64)
    if limits.bits < 64:
        return torch.clamp(wide, float(limits.min), float(limits.max)).to(torch.int64).to(target)
    if limits.min < 0:
        return _limited(wide)
    # What needs the highest bit is that bit, and the rest of it.
    upper = torch.bitwise_xor(_limited(torch.sub(wide, _HALF)), _LOWEST)
    return torch.where(torch.ge(wide, _HALF), upper, _limited(torch.clamp(wide, min=0.0)))


def _limited(x: Tensor) -> Tensor:
    """float64 as int64: no float is the largest of those, so that one is chosen."""
    beyond = torch.ge(x, _HALF)
    kept = torch.clamp(torch.where(beyond, torch.zeros_like(x), x), min=-_HALF).to(torch.int64)
    return torch.where(beyond, torch.full_like(kept, _HIGHEST), kept)


def _from_unsigned(given: np.dtype[Any], x: Tensor, target: torch.dtype) -> Tensor:
    if given.itemsize < 8:
        return widened(given, x).to(target)
    # Half of a number that has the highest bit, with the bit that goes kept for the rounding, is positive.
    half = torch.bitwise_or(torch.bitwise_and(x >> 1, _HIGHEST), torch.bitwise_and(x, 1))
    wide = torch.float64 if target in (torch.float64, torch.complex128) else torch.float32
    return torch.where(torch.lt(x, 0), torch.mul(half.to(wide), 2.0), x.to(wide)).to(target)


@rule("bitcast_convert_type")
def _bitcast(here: Equation, x: Tensor, *, new_dtype: Any) -> Tensor:
    target = torch_dtype(new_dtype)
    plain = x.contiguous().reshape(x.shape or (1,))
    return plain.view(target).reshape(tuple(here.made[0].shape))


_INTEGER = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


@rule("reduce_precision")
def _reduce_precision(here: Equation, x: Tensor, *, exponent_bits: int, mantissa_bits: int) -> Tensor:
    """As XLA reduces it: to the nearest even mantissa; exponents too large are infinite, and too small zero."""
    carrier = _INTEGER.get(x.dtype)
    if carrier is None:
        raise UnsupportedOperation(f"reduce_precision of {here.taken[0].dtype}")
    width = 8 * x.element_size()
    digits = {torch.float16: 10, torch.bfloat16: 7, torch.float32: 23, torch.float64: 52}[x.dtype]
    exponents = width - 1 - digits
    bits = x.contiguous().view(carrier)
    if mantissa_bits < digits:
        unit = 1 << (digits - mantissa_bits)
        last = torch.bitwise_and(bits, unit) >> (digits - mantissa_bits)
        bits = torch.bitwise_and(torch.add(torch.add(bits, last), (unit >> 1) - 1), -unit)
    if exponent_bits < exponents:
        sign, exponent = -(1 << (width - 1)), ((1 << exponents) - 1) << digits
        bias, reduced = (1 << (exponents - 1)) - 1, (1 << (exponent_bits - 1)) - 1
        own = torch.bitwise_and(bits, exponent)
        zero = torch.bitwise_and(bits, sign)
        infinite = torch.bitwise_or(zero, exponent)
        large = torch.gt(own, (bias + reduced) << digits)
        small = torch.le(own, (bias - reduced) << digits)
        bits = torch.where(small, zero, torch.where(large, infinite, bits))
    made = bits.view(x.dtype)
    return torch.where(torch.isnan(x), x, made)
