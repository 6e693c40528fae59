"""Sorting and reductions: ties, zeros of both signs, what is no number, nothing at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

from jax import lax
from jax import numpy as jnp

Same = Callable[..., None]
ODD = np.array([[0.0, np.nan, -0.0, np.inf], [2.0, -np.inf, np.nan, 2.0], [0.0, -0.0, -1.0, -1.0]], np.float32)
PAIRS = np.stack([ODD, ODD[::-1]], -1).view(np.complex64)[..., 0]
INTEGERS = np.array([[5, 0, 4294967295, 5], [2147483648, 7, 7, 1], [3, 3, 2147483647, 0]], np.uint32)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("numbers", [ODD, INTEGERS, INTEGERS.astype(np.int16), INTEGERS > 4, PAIRS])
def test_sorting(same_as_jax: Same, axis: int, numbers: np.ndarray) -> None:
    place = np.arange(12, dtype=np.int32).reshape(3, 4)

    def every(x: Any, place: Any) -> Any:
        return (
            lax.sort(x, dimension=axis),
            lax.sort((x, place), dimension=axis, num_keys=1),
            lax.sort((place // 5, x, place), dimension=axis, num_keys=2),
        )

    same_as_jax(every, numbers, place)


@pytest.mark.parametrize("numbers", [ODD, INTEGERS, INTEGERS.astype(np.int8), ODD.astype(np.float16)])
def test_largest_and_where(same_as_jax: Same, numbers: np.ndarray) -> None:
    def every(x: Any) -> Any:
        return (
            *(lax.top_k(x, 3), lax.top_k(x, 2, axis=0)),
            *(lax.argmax(x, 0, np.int32), lax.argmin(x, 1, np.int32), lax.reduce_max(x, (0,)), lax.reduce_min(x, (1,))),
            *(lax.cummax(x, 1), lax.cummin(x, 0, reverse=True)),
        )

    same_as_jax(every, numbers)


def test_bits_of_many(same_as_jax: Same) -> None:
    def every(x: Any, some: Any) -> Any:
        return [
            each(y, axes)
            for each in (lax.reduce_and, lax.reduce_or, lax.reduce_xor)
            for y in (x, some)
            for axes in ((0,), (1,), (0, 1), ())
        ]

    same_as_jax(every, INTEGERS, INTEGERS > 4)


def test_nothing_reduced(same_as_jax: Same) -> None:
    def every(x: Any, y: Any) -> Any:
        both = [
            each(z, (0,)) for each in (lax.reduce_max, lax.reduce_min, lax.reduce_sum, lax.reduce_prod) for z in (x, y)
        ]
        return *both, *(each(y, (0,)) for each in (lax.reduce_and, lax.reduce_or, lax.reduce_xor))

    same_as_jax(every, np.zeros((0, 2), np.float32), np.zeros((0, 3), np.uint16))


def test_any_computation_over_axes(same_as_jax: Same) -> None:
    def farther(a: Any, b: Any) -> Any:
        """The larger, and where it was, of two pairs."""
        return jnp.where(a[0] >= b[0], a[0], b[0]), jnp.where(a[0] >= b[0], a[1], b[1])

    def every(x: Any, place: Any) -> Any:
        return (
            lax.reduce((x, place), (np.float32(-1), np.int32(-1)), farther, (1,)),
            lax.reduce(x, np.float32(3), lambda a, b: a + b, (0, 1)),
        )

    same_as_jax(every, np.arange(15, dtype=np.float32).reshape(3, 5) % 7, np.arange(15, dtype=np.int32).reshape(3, 5))


@pytest.mark.parametrize("reverse", [False, True])
def test_running_sums(same_as_jax: Same, reverse: bool) -> None:
    def every(x: Any, y: Any) -> Any:
        return [each(z, 0, reverse=reverse) for each in (lax.cumsum, lax.cumprod) for z in (x, y)] + [
            lax.cumlogsumexp(x, 0, reverse=reverse)
        ]

    same_as_jax(every, np.linspace(-1, 2, 7, dtype=np.float32), np.arange(1, 8, dtype=np.uint32), tolerance=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_largest_in_the_total_order(same_as_jax: Same, dtype: str) -> None:
    x = jnp.asarray([-np.nan, np.inf, -0.0, 0.0, np.nan, -np.inf, 3], dtype)
    same_as_jax(lambda x: lax.top_k(x, 7)[1], x)


@pytest.mark.parametrize("reverse", [False, True])
def test_running_extremes_of_complex_numbers(same_as_jax: Same, reverse: bool) -> None:
    random = np.random.default_rng(0)
    x = (random.integers(-2, 3, (3, 7)) + 1j * random.integers(-2, 3, (3, 7))).astype(np.complex64)
    x[1, 3] = x[2, 1] = np.nan  # what is kept then depends on the order
    same_as_jax(lambda x: (lax.cummax(x, 1, reverse), lax.cummin(x, 0, reverse)), x)
