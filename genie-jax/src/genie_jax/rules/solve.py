"""Linear equations. What has no solution is NaN, as in JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jax._src.lax import linalg as jax_linalg

from genie.errors import UnsupportedOperation
from genie_jax.rules import Equation, Tensor, rule
from genie_jax.rules.wide import through

_LARGEST_TRIDIAGONAL = 4096  # solved as a whole matrix, of that many squared elements


@rule("triangular_solve")
def _triangular_solve(
    here: Equation,
    a: Tensor,
    b: Tensor,
    *,
    left_side: bool,
    lower: bool,
    transpose_a: bool,
    conjugate_a: bool,
    unit_diagonal: bool,
) -> Tensor:
    def solve(a: Tensor, b: Tensor) -> Tensor:
        if conjugate_a and a.is_complex():
            a = torch.conj_physical(a)
        if transpose_a:
            a = a.mT
        upper = lower if transpose_a else not lower
        return torch.linalg.solve_triangular(a, b, upper=upper, left=left_side, unitriangular=unit_diagonal)

    return through(torch.float32, solve, a, b)


@rule("tridiagonal_solve")
def _tridiagonal_solve(
    here: Equation, below: Tensor, diagonal: Tensor, above: Tensor, b: Tensor, *, perturb_singular: bool
) -> Tensor:
    size = diagonal.shape[-1]
    if perturb_singular:
        raise UnsupportedOperation("a tridiagonal solution that perturbs singular matrices")
    if size > _LARGEST_TRIDIAGONAL:
        raise UnsupportedOperation(
            f"a tridiagonal system of {size} equations", hint=f"up to {_LARGEST_TRIDIAGONAL} are solved"
        )

    def solve(below: Tensor, diagonal: Tensor, above: Tensor, b: Tensor) -> Tensor:
        matrix = torch.diag_embed(diagonal)
        if size > 1:
            matrix = torch.add(matrix, torch.diag_embed(below[..., 1:], -1))
            matrix = torch.add(matrix, torch.diag_embed(above[..., :-1], 1))
        made, failed = torch.linalg.solve_ex(matrix, b)
        wrong = torch.ne(failed, 0).reshape(*failed.shape, 1, 1)
        return torch.where(wrong, torch.full_like(made, float("nan")), made)

    return through(torch.float32, solve, below, diagonal, above, b)


@rule("custom_linear_solve")
def _custom_linear_solve(here: Equation, *operands: Tensor, const_lengths: Any, jaxprs: Any) -> Sequence[Tensor]:
    before = const_lengths.matvec + const_lengths.vecmat
    constants = operands[before : before + const_lengths.solve]
    sides = operands[before + const_lengths.solve + const_lengths.transpose_solve :]
    return here.translate(jaxprs.solve, *constants, *sides)


@rule("symmetric_product")
def _symmetric_product(here: Equation, a: Tensor, c: Tensor, *, alpha: Any, beta: Any) -> Sequence[Tensor]:
    return here.of_jax(lambda x, y: jax_linalg._symmetric_product_jax_fn(x, y, alpha=alpha, beta=beta), a, c)


@rule("cholesky_update")
def _cholesky_update(here: Equation, factor: Tensor, vector: Tensor) -> Sequence[Tensor]:
    return here.of_jax(jax_linalg._cholesky_update_jax_fn, factor, vector)
