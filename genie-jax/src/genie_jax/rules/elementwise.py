"""Arithmetic and functions of real and complex numbers, element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jax import lax

from genie.errors import UnsupportedOperation
from genie_jax.dtypes import is_unsigned, torch_dtype
from genie_jax.rules import Equation, Tensor, rule
from genie_jax.rules.unsigned import ordered
from genie_jax.rules.wide import computable


def _unary(name: str, compute: Callable[[Tensor], Tensor]) -> None:
    @rule(name)
    def apply(here: Equation, x: Tensor, *, accuracy: Any = None) -> Tensor:
        exactly(accuracy)
        return computable(compute, x)


def exactly(accuracy: Any) -> None:
    if accuracy is not None:
        raise UnsupportedOperation(f"a result of accuracy {accuracy}")


for _name, _function in {
    "acos": torch.acos,
    "acosh": torch.acosh,
    "asin": torch.asin,
    "asinh": torch.asinh,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "floor": torch.floor,
    "log": torch.log,
    "log1p": torch.log1p,
    "logistic": torch.sigmoid,
    "neg": torch.neg,
    "rsqrt": torch.rsqrt,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}.items():
    _unary(_name, _function)


@rule("copy", "copy_p", "stop_gradient")
def _same(here: Equation, x: Tensor) -> Tensor:
    return x


@rule("is_finite")
def _is_finite(here: Equation, x: Tensor) -> Tensor:
    return torch.isfinite(x.to(torch.float32) if x.element_size() == 1 else x)


@rule("add", "add_any")
def _add(here: Equation, x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_or(x, y) if x.dtype == torch.bool else computable(torch.add, x, y)


@rule("sub")
def _sub(here: Equation, x: Tensor, y: Tensor) -> Tensor:
    return computable(torch.sub, x, y)


@rule("mul")
def _mul(here: Equation, x: Tensor, y: Tensor, *, out_dtype: Any = None) -> Tensor:
    if out_dtype is not None:
        wide = torch_dtype(out_dtype)
        return torch.mul(x.to(wide), y.to(wide))
    return computable(torch.mul, x, y)


@rule("abs")
def _abs(here: Equation, x: Tensor) -> Tensor:
    if is_unsigned(here.taken[0].dtype) or x.dtype in (torch.bool, torch.uint8):
        return x
    return computable(torch.abs, x)


@rule("max")
def _max(here: Equation, x: Tensor, y: Tensor) -> Tensor:
    return larger(x, y) if x.is_complex() else ordered(here, torch.maximum, x, y)


@rule("min")
def _min(here: Equation, x: Tensor, y: Tensor) -> Tensor:
    return smaller(x, y) if x.is_complex() else ordered(here, torch.minimum, x, y)


def larger(x: Tensor, y: Tensor) -> Tensor:
    """Of complex numbers, by real and then by imaginary part, as JAX orders them."""
    return torch.where(_after(x, y), x, y)


def smaller(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(_after(y, x), x, y)


def _after(x: Tensor, y: Tensor) -> Tensor:
    a, b = torch.real(x), torch.real(y)
    return torch.where(torch.eq(a, b), torch.gt(torch.imag(x), torch.imag(y)), torch.gt(a, b))


@rule("clamp")
def _clamp(here: Equation, low: Tensor, x: Tensor, high: Tensor) -> Tensor:
    def between(low: Tensor, x: Tensor, high: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(low, x), high)

    return ordered(here, between, low, x, high)


@rule("sign")
def _sign(here: Equation, x: Tensor) -> Tensor:
    if x.is_complex():
        return torch.sgn(x)
    if is_unsigned(here.taken[0].dtype):
        return torch.ne(x, 0).to(x.dtype)
    if not x.is_floating_point():
        return torch.sign(x)
    return computable(_sign_of_float, x)


def _sign_of_float(x: Tensor) -> Tensor:
    kept = torch.logical_or(torch.eq(x, 0), torch.isnan(x))  # zeros keep their sign
    return torch.where(kept, x, torch.sign(x))


@rule("round")
def _round(here: Equation, x: Tensor, *, rounding_method: Any) -> Tensor:
    if rounding_method == lax.RoundingMethod.TO_NEAREST_EVEN:
        return computable(torch.round, x)
    return computable(_round_half_away, x)


def _round_half_away(x: Tensor) -> Tensor:
    whole = torch.trunc(x)
    half = torch.ge(torch.abs(torch.sub(x, whole)), 0.5)
    return torch.where(half, torch.add(whole, torch.copysign(torch.ones_like(x), x)), whole)


@rule("cbrt")
def _cbrt(here: Equation, x: Tensor, *, accuracy: Any = None) -> Tensor:
    exactly(accuracy)
    wide = x.to(torch.float64)
    root = torch.pow(torch.abs(wide), 1 / 3)
    if x.dtype == torch.float64:  # one step of Newton's, for 1/3 is no number
        square = torch.mul(root, root)
        better = torch.sub(root, torch.div(torch.sub(torch.mul(square, root), torch.abs(wide)), torch.mul(square, 3.0)))
        plain = torch.logical_or(torch.eq(wide, 0), torch.isinf(wide))
        root = torch.where(plain, root, better)
    return torch.copysign(root, wide).to(x.dtype)


@rule("pow")
def _pow(here: Equation, x: Tensor, y: Tensor) -> Tensor:
    if x.dtype != y.dtype:
        if is_unsigned(here.taken[1].dtype):
            raise UnsupportedOperation(f"a power of an exponent of {here.taken[1].dtype}")
        y = y.to(x.dtype)
    return computable(torch.pow, x, y)


@rule("integer_pow")
def _integer_pow(here: Equation, x: Tensor, *, y: int) -> Tensor:
    """By squaring, as XLA does it, so that the roundings are the same."""
    if y == 0:
        return torch.ones_like(x)
    product: Tensor | None = None
    power, left = x, abs(y)
    while left:
        if left & 1:
            product = power if product is None else computable(torch.mul, product, power)
        left >>= 1
        if left:
            power = computable(torch.mul, power, power)
    assert product is not None
    return product if y > 0 else computable(torch.div, torch.ones_like(product), product)


@rule("atan2")
def _atan2(here: Equation, y: Tensor, x: Tensor) -> Tensor:
    if x.is_complex():
        raise UnsupportedOperation("atan2 of complex numbers")
    return computable(torch.atan2, y, x)


@rule("nextafter")
def _nextafter(here: Equation, x: Tensor, y: Tensor) -> Tensor:
    if x.element_size() == 1:
        raise UnsupportedOperation(f"nextafter of {here.taken[0].dtype}")
    return torch.nextafter(x, y)


@rule("complex")
def _complex(here: Equation, real: Tensor, imaginary: Tensor) -> Tensor:
    return torch.complex(real, imaginary)


@rule("real")
def _real(here: Equation, x: Tensor) -> Tensor:
    return torch.real(x)


@rule("imag")
def _imag(here: Equation, x: Tensor) -> Tensor:
    return torch.imag(x)


@rule("conj")
def _conj(here: Equation, x: Tensor, *, input_dtype: Any = None, _input_dtype: Any = None) -> Tensor:
    return torch.conj_physical(x) if x.is_complex() else torch.complex(x, torch.zeros_like(x))


@rule("select_n")
def _select_n(here: Equation, which: Tensor, *cases: Tensor) -> Tensor:
    if which.dtype == torch.bool:
        return cases[0] if len(cases) == 1 else torch.where(which, cases[1], cases[0])
    chosen = cases[0]
    for number, case in enumerate(cases[1:], 1):
        chosen = torch.where(torch.eq(which, number), case, chosen)
    return chosen
