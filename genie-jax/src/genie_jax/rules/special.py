"""Special functions. Those that ATen has are its own; JAX decomposes the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jax._src.lax import special as jax_special

from genie_jax.rules import Equation, Tensor, rule
from genie_jax.rules.elementwise import exactly
from genie_jax.rules.wide import computable, through

_MATRICES = 1 << 22  # of four float64, which a term of a continued fraction is for each element


def _unary(name: str, compute: Callable[[Tensor], Tensor]) -> None:
    @rule(name)
    def apply(here: Equation, x: Tensor, *, accuracy: Any = None) -> Tensor:
        exactly(accuracy)
        return computable(compute, x)


def _digamma(x: Tensor) -> Tensor:
    """No number at zero, where ATen has the limit from one side."""
    return torch.where(torch.eq(x, 0), torch.full_like(x, float("nan")), torch.digamma(x))


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "bessel_i0e": lambda x: through(torch.float32, torch.special.i0e, x),
    "bessel_i1e": lambda x: through(torch.float32, torch.special.i1e, x),
    "digamma": _digamma,
    "erf": torch.erf,
    "erf_inv": torch.erfinv,
    "erfc": torch.erfc,
    "lgamma": torch.lgamma,
}
for _name, _function in _FUNCTIONS.items():
    _unary(_name, _function)


@rule("igamma")
def _igamma(here: Equation, a: Tensor, x: Tensor) -> Tensor:
    return through(torch.float32, lambda a, x: _incomplete(torch.special.gammainc, a, x), a, x)


@rule("igammac")
def _igammac(here: Equation, a: Tensor, x: Tensor) -> Tensor:
    return through(torch.float32, lambda a, x: _incomplete(torch.special.gammaincc, a, x), a, x)


def _incomplete(compute: Callable[[Tensor, Tensor], Tensor], a: Tensor, x: Tensor) -> Tensor:
    """An incomplete gamma function, which in ATen forgets an ``a`` that is no number where x is zero."""
    made = compute(a, x)
    return torch.where(torch.isnan(a), torch.full_like(made, float("nan")), made)


@rule("zeta")
def _zeta(here: Equation, x: Tensor, q: Tensor) -> Tensor:
    return through(torch.float32, torch.special.zeta, x, q)


@rule("polygamma")
def _polygamma(here: Equation, m: Tensor, x: Tensor) -> Tensor:
    """(-1)**(m + 1) m! zeta(m + 1, x); the orders are data, and those that are no natural number give NaN."""

    def compute(m: Tensor, x: Tensor) -> Tensor:
        order = torch.add(m, 1.0)
        size = torch.mul(torch.exp(torch.lgamma(order)), torch.special.zeta(order, x))
        odd = torch.eq(torch.remainder(m, 2.0), 1.0)
        made = torch.where(torch.eq(m, 0), _digamma(x), torch.where(odd, size, torch.neg(size)))
        wrong = torch.logical_or(torch.lt(m, 0), torch.ne(m, torch.floor(m)))
        return torch.where(wrong, torch.full_like(made, float("nan")), made)

    return through(torch.float32, compute, m, x)


@rule("regularized_incomplete_beta")
def _regularized_incomplete_beta(here: Equation, a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    return through(torch.float32, _incomplete_beta, *torch.broadcast_tensors(a, b, x))


def _incomplete_beta(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """By the continued fraction of https://dlmf.nist.gov/8.17.E22, of as many terms as JAX takes at most."""
    swapped = torch.gt(x, torch.div(torch.add(a, 1.0), torch.add(torch.add(a, b), 2.0)))
    p, q, y = torch.where(swapped, b, a), torch.where(swapped, a, b), torch.where(swapped, torch.sub(1.0, x), x)
    p, q, y = (each.to(torch.float64) for each in (p, q, y))
    fraction = _fraction(p, q, y, 256 if a.dtype == torch.float32 else 512)
    scale = torch.sub(torch.lgamma(torch.add(p, q)), torch.add(torch.lgamma(p), torch.lgamma(q)))
    powers = torch.add(torch.mul(p, torch.log(y)), torch.mul(q, torch.log1p(torch.neg(y))))
    made = torch.div(torch.exp(torch.add(powers, scale)), torch.mul(p, fraction))
    made = torch.where(swapped, torch.sub(1.0, made), made).to(a.dtype)
    # The ends, in JAX's order: what is outside comes last.
    no_a = torch.logical_or(torch.eq(a, 0), torch.isinf(b))
    no_b = torch.logical_or(torch.eq(b, 0), torch.isinf(a))
    first, last = torch.eq(x, 0), torch.eq(x, 1)
    one = torch.logical_or(torch.logical_and(no_a, torch.logical_not(first)), last)
    zero = torch.logical_or(torch.logical_and(no_b, torch.logical_not(last)), first)
    made = torch.where(zero, torch.zeros_like(made), torch.where(one, torch.ones_like(made), made))
    outside = torch.logical_or(torch.logical_or(torch.lt(a, 0), torch.lt(b, 0)), torch.logical_and(no_a, no_b))
    outside = torch.logical_or(outside, torch.logical_or(torch.lt(x, 0), torch.gt(x, 1)))
    outside = torch.logical_or(outside, torch.isnan(torch.add(torch.add(a, b), x)))
    return torch.where(outside, torch.full_like(made, float("nan")), made)


def _fraction(a: Tensor, b: Tensor, x: Tensor, terms: int) -> Tensor:
    """1 + d1 / (1 + d2 / (1 + …)), as a product of matrices, so many at a time as memory is for."""
    at_once = terms
    while at_once > 1 and at_once * x.numel() > _MATRICES:
        at_once //= 2
    whole = _terms(a, b, x, 1, at_once)
    for first in range(1 + at_once, 1 + terms, at_once):
        whole = _scaled(torch.matmul(whole, _terms(a, b, x, first, at_once)))
    ends = torch.sum(whole, -1)
    return torch.div(ends[..., 0], ends[..., 1])


def _terms(a: Tensor, b: Tensor, x: Tensor, first: int, count: int) -> Tensor:
    """The product of the matrices of ``count`` terms (a power of two), float64 [..., 2, 2]."""
    number = torch.arange(first, first + count, dtype=torch.float64).reshape(count, *[1] * x.ndim)
    m = torch.floor(torch.div(number, 2.0))
    even = torch.div(torch.mul(torch.mul(m, torch.sub(b, m)), x), (a + 2 * m - 1) * (a + 2 * m))
    odd = torch.div(torch.mul(torch.mul(-(a + m), a + b + m), x), (a + 2 * m) * (a + 2 * m + 1))
    d = torch.where(torch.eq(torch.remainder(number, 2.0), 0), even, odd)
    one, nothing = torch.ones_like(d), torch.zeros_like(d)
    matrices = torch.stack([torch.stack([one, d], -1), torch.stack([one, nothing], -1)], -2)
    while matrices.shape[0] > 1:
        matrices = _scaled(torch.matmul(matrices[0::2], matrices[1::2]))
    return matrices[0]


def _scaled(matrices: Tensor) -> Tensor:
    return torch.div(matrices, torch.amax(torch.abs(matrices), (-2, -1), keepdim=True))


@rule("igamma_grad_a")
def _igamma_grad_a(here: Equation, a: Tensor, x: Tensor) -> Sequence[Tensor]:
    return here.of_jax(jax_special._up_and_broadcast(jax_special.igamma_grad_a_impl), a, x)
