"""Factorisations of matrices. One that fails gives NaN, as JAX's do; each is of the last two axes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from genie.errors import UnsupportedOperation
from genie_jax.rules import Equation, Tensor, reflections, rule


def _or_nan(failed: Tensor, x: Tensor) -> Tensor:
    """``x``, whose matrices are NaN where the number of a failure is not zero."""
    wrong = torch.ne(failed, 0).reshape(*failed.shape, *[1] * (x.ndim - failed.ndim))
    return torch.where(wrong, torch.full_like(x, float("nan")), x)


def _whole(subset: Any, size: int, what: str) -> None:
    if subset is not None and tuple(subset) != (0, size):
        raise UnsupportedOperation(f"{what} of which only some are wanted", hint="compute all, and take those of them")


@rule("cholesky")
def _cholesky(here: Equation, x: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(x)
    return _or_nan(failed, factor)


@rule("lu")
def _lu(here: Equation, x: Tensor) -> Sequence[Tensor]:
    factors, pivots, _ = torch.linalg.lu_factor_ex(x)
    return factors, torch.sub(pivots, 1), _permutation(pivots, x.shape[-2])


@rule("lu_pivots_to_permutation")
def _lu_pivots_to_permutation(here: Equation, swaps: Tensor, *, permutation_size: int) -> Tensor:
    return _permutation(torch.add(swaps, 1), permutation_size)


def _permutation(pivots: Tensor, size: int) -> Tensor:
    """Of the rows, int32 [..., size], that LAPACK's ``pivots`` (int32, from 1) make by their swaps."""
    if 0 in (size, pivots.shape[-1]):
        return torch.arange(size, dtype=torch.int32).expand(*pivots.shape[:-1], size)
    shape = (*pivots.shape[:-1], size, pivots.shape[-1])
    matrix = torch.lu_unpack(torch.zeros(shape), pivots.contiguous(), unpack_data=False)[0]
    return torch.argmax(matrix, -2).to(torch.int32)


@rule("qr")
def _qr(here: Equation, x: Tensor, *, pivoting: bool, full_matrices: bool, use_magma: Any) -> Sequence[Tensor]:
    if pivoting:
        return here.of_jax(partial(reflections.pivoted_qr, full=full_matrices), x)
    return torch.linalg.qr(x, mode="complete" if full_matrices else "reduced")


@rule("geqrf")
def _geqrf(here: Equation, x: Tensor) -> Sequence[Tensor]:
    return torch.geqrf(x)


@rule("householder_product")
def _householder_product(here: Equation, x: Tensor, scales: Tensor) -> Tensor:
    return torch.linalg.householder_product(x, scales)


@rule("ormqr")
def _ormqr(here: Equation, x: Tensor, scales: Tensor, other: Tensor, *, left: bool, transpose: bool) -> Tensor:
    rows = x.shape[-2]
    square = torch.nn.functional.pad(x[..., :rows], (0, max(0, rows - x.shape[-1])))
    q = torch.linalg.householder_product(square, scales)
    q = q.mH if transpose else q
    return torch.matmul(q, other) if left else torch.matmul(other, q)


@rule("hessenberg")
def _hessenberg(here: Equation, x: Tensor) -> Sequence[Tensor]:
    return here.of_jax(reflections.hessenberg, x)


@rule("eigh")
def _eigh(
    here: Equation, x: Tensor, *, lower: bool, sort_eigenvalues: bool, subset_by_index: Any, algorithm: Any
) -> Sequence[Tensor]:
    """By LAPACK, whatever the ``algorithm``; always sorted."""
    _whole(subset_by_index, x.shape[-1], "eigenvalues")
    values, vectors = torch.linalg.eigh(x, UPLO="L" if lower else "U")
    return vectors, values


@rule("eig")
def _eig(
    here: Equation,
    x: Tensor,
    *,
    compute_left_eigenvectors: bool,
    compute_right_eigenvectors: bool,
    enable_eigvec_derivs: bool,
    implementation: Any,
) -> Sequence[Tensor]:
    if not compute_left_eigenvectors and not compute_right_eigenvectors:
        return [torch.linalg.eigvals(x)]
    if compute_left_eigenvectors and x.numel() and not x.is_complex():
        raise UnsupportedOperation(
            "left eigenvectors of a real matrix, whose signs LAPACK alone knows",
            hint="compute_left_eigenvectors=False, or give it the matrix as complex numbers",
        )
    values, right = torch.linalg.eig(x)
    left = [_left(x, values, right) if x.numel() else right] if compute_left_eigenvectors else []
    return [values, *left, *([right] if compute_right_eigenvectors else [])]


def _left(x: Tensor, values: Tensor, right: Tensor) -> Tensor:
    """Left eigenvectors: what the right ones' inverse has for rows, of length one and with their largest elements
    real and positive. NaN where there are no such: where eigenvectors are not independent."""
    wide = right.to(torch.complex128)
    inverse, failed = torch.linalg.inv_ex(wide)
    rows = torch.div(inverse, torch.linalg.vector_norm(inverse, dim=-1, keepdim=True))
    largest = torch.argmax(torch.abs(rows), -1, keepdim=True)
    rows = torch.mul(rows, torch.conj_physical(torch.sgn(torch.gather(rows, -1, largest))))
    off = torch.matmul(rows, x.to(wide.dtype)) - torch.mul(values.to(wide.dtype).unsqueeze(-1), rows)
    size = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    near = torch.finfo(right.dtype).eps ** 0.5
    wrong = torch.gt(torch.linalg.vector_norm(off, dim=(-2, -1), keepdim=True), torch.mul(size, near))
    left = torch.where(wrong, torch.full_like(rows, float("nan")), rows)
    return _or_nan(failed, torch.conj_physical(left).mT.to(right.dtype))


@rule("svd")
def _svd(
    here: Equation, x: Tensor, *, full_matrices: bool, compute_uv: bool, subset_by_index: Any, algorithm: Any = None
) -> Sequence[Tensor]:
    """By LAPACK, whatever the ``algorithm``."""
    _whole(subset_by_index, min(x.shape[-2:]), "singular values")
    if not compute_uv:
        return [torch.linalg.svdvals(x)]
    left, values, right = torch.linalg.svd(x, full_matrices=full_matrices)
    return values, left, right
