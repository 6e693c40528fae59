"""Linear algebra and Fourier transforms; factors are compared by what they multiply to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

from jax import lax
from jax import numpy as jnp

Same = Callable[..., None]


def _matrices(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    random = np.random.default_rng(5)
    made = random.normal(size=shape)
    return (made + 1j * random.normal(size=shape) if np.dtype(dtype).kind == "c" else made).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_factors(same_as_jax: Same, dtype: Any) -> None:
    def every(x: Any) -> Any:
        conjugate = jnp.conj(jnp.swapaxes(x, -1, -2))
        hermitian = x @ conjugate + jnp.eye(4)
        q, r = jnp.linalg.qr(x)
        u, s, v = jnp.linalg.svd(x, full_matrices=False)
        w, z = jnp.linalg.eigh(hermitian)
        lu, pivots, permutation = lax.linalg.lu(x)
        return (
            *(q @ r, s, (u * s[..., None, :]) @ v, w, (z * w[..., None, :]) @ jnp.conj(jnp.swapaxes(z, -1, -2))),
            *(lu, pivots, permutation, jnp.linalg.cholesky(hermitian), jnp.linalg.svd(x, compute_uv=False)),
        )

    same_as_jax(every, _matrices(2, 4, 4, dtype=dtype), tolerance=2e-5)


def test_what_has_no_factor_is_no_number(same_as_jax: Same) -> None:
    x = np.stack([np.eye(3), -np.eye(3)]).astype(np.float32)
    same_as_jax(lambda x: jnp.tril(lax.linalg.cholesky(x)), x)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_pivots_of_oblong_matrices(same_as_jax: Same, shape: tuple[int, int]) -> None:
    same_as_jax(lax.linalg.lu, _matrices(2, *shape), tolerance=1e-5)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_triangular_systems(same_as_jax: Same, left: bool, lower: bool, dtype: Any) -> None:
    def every(a: Any, b: Any) -> Any:
        return [
            lax.linalg.triangular_solve(
                a, b, left_side=left, lower=lower, transpose_a=transpose, conjugate_a=conjugate, unit_diagonal=unit
            )
            for transpose in (False, True)
            for conjugate in (False, True)
            for unit in (False, True)
        ]

    a = _matrices(2, 3, 3, dtype=dtype) + 4 * np.eye(3, dtype=dtype)
    same_as_jax(every, a, _matrices(2, 3, 3, dtype=dtype)[::-1].copy(), tolerance=1e-5)


def test_linear_systems_and_their_gradient(same_as_jax: Same) -> None:
    a, b = _matrices(4, 4) + 4 * np.eye(4, dtype=np.float32), _matrices(4, 2)
    same_as_jax(jnp.linalg.solve, a, b, tolerance=1e-5)
    same_as_jax(jax.grad(lambda a, b: jnp.linalg.solve(a, b).sum()), a, b, tolerance=1e-5)


def test_tridiagonal_systems(same_as_jax: Same) -> None:
    below, diagonal, above = np.abs(_matrices(3, 5))
    below[0] = above[-1] = 0
    diagonal[2] = 0  # what elimination without exchanges would divide by
    same_as_jax(lax.linalg.tridiagonal_solve, below, diagonal, above, _matrices(5, 2), tolerance=1e-5)


def test_eigenvectors(same_as_jax: Same) -> None:
    """Which have no sign: what they project to has none either."""

    def every(x: Any) -> Any:
        values, right = lax.linalg.eig(x, compute_left_eigenvectors=False)
        return values, right[:, None, :] * jnp.conj(right)[None, :, :]

    with jax.enable_x64(True):
        same_as_jax(every, _matrices(4, 4, dtype=np.float64), tolerance=1e-9)


def test_left_eigenvectors_of_complex_matrices(same_as_jax: Same) -> None:
    def both(x: Any) -> Any:
        return lax.linalg.eig(x, compute_left_eigenvectors=True)

    same_as_jax(both, _matrices(2, 4, 4, dtype=np.complex64), tolerance=2e-5)
    same_as_jax(both, np.zeros((0, 0), np.float32))


def test_left_eigenvectors_that_are_all_the_same(same_as_jax: Same) -> None:
    def left(x: Any) -> Any:
        return lax.linalg.eig(x, compute_right_eigenvectors=False)

    same_as_jax(left, np.array([[[1, 1], [0, 1]], [[0, 1], [0, 0]]], np.complex64), tolerance=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize(("shape", "full"), [((2, 4, 3), True), ((4, 3), False), ((3, 4), True)])
def test_pivoted_factors(same_as_jax: Same, shape: tuple[int, ...], full: bool, dtype: Any) -> None:
    def factors(x: Any) -> Any:
        return lax.linalg.qr(x, pivoting=True, full_matrices=full)

    same_as_jax(factors, _matrices(*shape, dtype=dtype), tolerance=2e-6)


def test_columns_that_are_already_reduced_keep_their_signs(same_as_jax: Same) -> None:
    x = np.diag([1, -2, 0, 3]).astype(np.float32)
    same_as_jax(lambda x: lax.linalg.qr(x, pivoting=True), x)
    same_as_jax(lax.linalg.hessenberg, x)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_reflections(same_as_jax: Same, dtype: Any) -> None:
    def every(a: Any, tall: Any) -> Any:
        stored, scales = jnp.linalg.qr(tall, mode="raw")
        factors = stored.mT
        return (
            *lax.linalg.hessenberg(a),
            *(
                lax.linalg.ormqr(factors, scales, a[0], left=left, transpose=back)
                for left in (False, True)
                for back in (False, True)
            ),
        )

    same_as_jax(every, _matrices(2, 4, 4, dtype=dtype), _matrices(4, 3, dtype=dtype), tolerance=2e-6)


@pytest.mark.parametrize("axes", [(2,), (1, 2), (0, 1, 2)])
def test_fourier_transforms(same_as_jax: Same, axes: tuple[int, ...]) -> None:
    def every(x: Any, z: Any) -> Any:
        lengths = tuple(x.shape[each] for each in axes)
        return (
            *(lax.fft(z, "FFT", lengths), lax.fft(z, "IFFT", lengths), lax.fft(x, "RFFT", lengths)),
            lax.fft(z, "IRFFT", (*lengths[:-1], 2 * (lengths[-1] - 1))),
        )

    same_as_jax(every, _matrices(3, 4, 5), _matrices(3, 4, 5, dtype=np.complex64), tolerance=1e-5)
