"""Integers: division, bits and shifts, as XLA has them where a processor's own instructions would trap or differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jax._src.lax import lax as jax_lax

from genie_jax.dtypes import is_unsigned
from genie_jax.rules import Equation, Tensor, rule
from genie_jax.rules.unsigned import widened
from genie_jax.rules.wide import computable

_HIGHEST = (1 << 63) - 1


def _is_number(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


@rule("div")
def _div(here: Equation, x: Tensor, y: Tensor) -> Tensor:
    """Of integers towards zero; by zero all bits set; of the lowest by -1 itself."""
    if _is_number(x):
        return computable(torch.div, x, y)
    dtype = here.taken[0].dtype
    nothing = torch.eq(y, 0)
    divisor = torch.where(nothing, torch.ones_like(y), y)
    if np.dtype(dtype) == np.uint64:
        quotient = _unsigned_quotient(x, divisor)
    elif is_unsigned(dtype) or x.dtype == torch.uint8:
        quotient = torch.div(widened(dtype, x), widened(dtype, divisor), rounding_mode="trunc").to(x.dtype)
    else:
        minus = torch.eq(y, -1)
        plain = torch.div(x, torch.where(minus, torch.ones_like(y), divisor), rounding_mode="trunc")
        quotient = torch.where(minus, torch.neg(x), plain)
    return torch.where(nothing, torch.full_like(quotient, 255 if x.dtype == torch.uint8 else -1), quotient)


@rule("rem")
def _rem(here: Equation, x: Tensor, y: Tensor) -> Tensor:
    """With the dividend's sign; by zero the dividend."""
    if _is_number(x):
        return computable(torch.fmod, x, y)
    dtype = here.taken[0].dtype
    nothing = torch.eq(y, 0)
    divisor = torch.where(nothing, torch.ones_like(y), y)
    if np.dtype(dtype) == np.uint64:
        rest = torch.sub(x, torch.mul(_unsigned_quotient(x, divisor), divisor))
    elif is_unsigned(dtype) or x.dtype == torch.uint8:
        rest = torch.fmod(widened(dtype, x), widened(dtype, divisor)).to(x.dtype)
    else:
        rest = torch.fmod(x, torch.where(torch.eq(y, -1), torch.ones_like(y), divisor))
    return torch.where(nothing, x, rest)


def _unsigned_quotient(x: Tensor, y: Tensor) -> Tensor:
    """uint64 by uint64: twice the quotient of the half, and one more where the rest is still as large."""
    large = torch.lt(y, 0)
    small = torch.where(large, torch.ones_like(y), y)
    half = torch.div(_logical_right_one(x), small, rounding_mode="trunc") << 1
    rest = torch.sub(x, torch.mul(half, small))
    quotient = torch.add(half, _not_below(rest, small).to(torch.int64))
    return torch.where(large, _not_below(x, y).to(torch.int64), quotient)


def _not_below(x: Tensor, y: Tensor) -> Tensor:
    return torch.ge(widened(np.uint64, x), widened(np.uint64, y))


def _logical_right_one(x: Tensor) -> Tensor:
    return torch.bitwise_and(x >> 1, _HIGHEST)


@rule("mulhi")
def _mulhi(here: Equation, x: Tensor, y: Tensor) -> Tensor:
    dtype = np.dtype(here.taken[0].dtype)
    if dtype.itemsize == 8:
        (made,) = here.of_jax(jax_lax._mulhi_impl, x, y)
        return made
    product = torch.mul(widened(dtype, x).to(torch.int64), widened(dtype, y).to(torch.int64))
    return (product >> 8 * dtype.itemsize).to(x.dtype)  # the sign that 32 bits times 32 may have set goes with the rest


@rule("and")
def _and(here: Equation, x: Tensor, y: Tensor) -> Tensor:
    return torch.bitwise_and(x, y)


@rule("or")
def _or(here: Equation, x: Tensor, y: Tensor) -> Tensor:
    return torch.bitwise_or(x, y)


@rule("xor")
def _xor(here: Equation, x: Tensor, y: Tensor) -> Tensor:
    return torch.bitwise_xor(x, y)


@rule("not")
def _not(here: Equation, x: Tensor) -> Tensor:
    return torch.bitwise_not(x)


def _width(dtype: Any) -> int:
    return 8 * np.dtype(dtype).itemsize


def _bits(dtype: Any, x: Tensor) -> Tensor:
    """int64 of the bits of an integer, without its sign."""
    wide = x.to(torch.int64)
    return wide if _width(dtype) == 64 else torch.bitwise_and(wide, (1 << _width(dtype)) - 1)


@rule("population_count")
def _population_count(here: Equation, x: Tensor) -> Tensor:
    return _count(_bits(here.taken[0].dtype, x)).to(x.dtype)


@rule("clz")
def _clz(here: Equation, x: Tensor) -> Tensor:
    width = _width(here.taken[0].dtype)
    filled = _bits(here.taken[0].dtype, x)
    step = 1
    while step < width:
        filled = torch.bitwise_or(filled, filled >> step)
        step *= 2
    return torch.sub(width, _count(filled)).to(x.dtype)


def _count(bits: Tensor) -> Tensor:
    """The number of set bits in each int64: in pairs, in fours, in bytes, and the bytes' sum."""
    pairs = torch.sub(bits, torch.bitwise_and(bits >> 1, 0x5555555555555555))
    fours = torch.add(torch.bitwise_and(pairs, 0x3333333333333333), torch.bitwise_and(pairs >> 2, 0x3333333333333333))
    bytes_ = torch.bitwise_and(torch.add(fours, fours >> 4), 0x0F0F0F0F0F0F0F0F)
    return torch.mul(bytes_, 0x0101010101010101) >> 56


def _beyond(here: Equation, y: Tensor) -> Tensor:
    """Where a shift is by the width or more; a shift is unsigned."""
    return torch.logical_or(torch.lt(y, 0), torch.ge(y, _width(here.taken[0].dtype)))


@rule("shift_left")
def _shift_left(here: Equation, x: Tensor, y: Tensor) -> Tensor:
    beyond = _beyond(here, y)
    by = torch.where(beyond, torch.zeros_like(y), y)
    return torch.where(beyond, torch.zeros_like(x), torch.bitwise_left_shift(x, by))


@rule("shift_right_arithmetic")
def _shift_right_arithmetic(here: Equation, x: Tensor, y: Tensor) -> Tensor:
    beyond = _beyond(here, y)
    by = torch.where(beyond, torch.full_like(y, _width(here.taken[0].dtype) - 1), y)
    if x.dtype == torch.uint8:
        return torch.bitwise_right_shift(x.to(torch.int8), by.to(torch.int8)).to(torch.uint8)
    return torch.bitwise_right_shift(x, by)


@rule("shift_right_logical")
def _shift_right_logical(here: Equation, x: Tensor, y: Tensor) -> Tensor:
    beyond = _beyond(here, y)
    by = torch.where(beyond, torch.zeros_like(y), y)
    if _width(here.taken[0].dtype) == 64:
        some = torch.bitwise_right_shift(_logical_right_one(x), torch.clamp(torch.sub(by, 1), min=0))
        shifted = torch.where(torch.eq(by, 0), x, some)
    else:
        shifted = torch.bitwise_right_shift(_bits(here.taken[0].dtype, x), by.to(torch.int64)).to(x.dtype)
    return torch.where(beyond, torch.zeros_like(shifted), shifted)
