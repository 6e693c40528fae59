"""Integers where a processor traps or wraps otherwise, and every pair of types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

from jax import lax
from jax import numpy as jnp

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
FLOATS = ["float16", "bfloat16", "float32", "float64"]
Same = Callable[..., None]


def _edges(dtype: str) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.array([limits.min, limits.min + 1, 0, 1, 2, 3, 7, limits.max // 2 + 1, limits.max - 1, limits.max], dtype)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_arithmetic_of_integers(same_as_jax: Same, dtype: str) -> None:
    numbers = _edges(dtype)
    divisors = np.array([0, 1, 3, np.iinfo(dtype).max, 5], dtype)
    if dtype.startswith("i"):
        divisors = np.concatenate([divisors, np.array([-1, np.iinfo(dtype).min], dtype)])
    x, y = (each.ravel() for each in np.meshgrid(numbers, divisors))

    def every(x: Any, y: Any) -> Any:
        return (
            *(lax.div(x, y), lax.rem(x, y), lax.mulhi(x, y), lax.max(x, y), lax.min(x, y), lax.lt(x, y), lax.ge(x, y)),
            *(lax.sign(x), lax.clz(x), lax.population_count(x), lax.clamp(y, x, y), lax.integer_pow(x, 3)),
        )

    with jax.enable_x64(True):
        same_as_jax(every, x, y)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_shifts_by_the_width_and_more(same_as_jax: Same, dtype: str) -> None:
    width = 8 * np.dtype(dtype).itemsize
    by = np.array([0, 1, width - 1, width, min(width + 1, 127), 127], dtype)
    x, y = (each.ravel() for each in np.meshgrid(_edges(dtype), by))

    def every(x: Any, y: Any) -> Any:
        return lax.shift_left(x, y), lax.shift_right_arithmetic(x, y), lax.shift_right_logical(x, y)

    with jax.enable_x64(True):
        same_as_jax(every, x, y)


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS, "bool", "complex64"])
def test_every_pair_of_types(same_as_jax: Same, dtype: str) -> None:
    if dtype in INTEGERS:
        numbers = jnp.asarray(_edges(dtype)) if dtype[-2:] != "64" else _edges(dtype)
    elif dtype == "bool":
        numbers = np.array([False, True])
    else:
        with jax.enable_x64(True):
            plain = [0.0, -0.0, 0.4, -1.7, 3e9, -3e9, 1e19, 3e19, 255.0, 256.0, -129.0, np.inf, -np.inf, np.nan]
            numbers = np.asarray(jnp.asarray(plain).astype(dtype))
    targets = [each for each in (*INTEGERS, *FLOATS, "bool", "complex64") if each != dtype]

    def every(x: Any) -> Any:
        return [lax.convert_element_type(x, each) for each in targets]

    with jax.enable_x64(True):
        same_as_jax(every, numbers)


@pytest.mark.parametrize(
    ("dtype", "exponent", "mantissa"),
    [
        ("float32", 8, 7),
        ("float32", 8, 0),
        ("float32", 5, 10),
        ("float64", 8, 23),
        ("bfloat16", 5, 2),
        ("float16", 3, 10),
    ],
)
def test_reduced_precision(same_as_jax: Same, dtype: str, exponent: int, mantissa: int) -> None:
    with jax.enable_x64(True):
        numbers = np.asarray(
            jnp.asarray(
                [0.0, -0.0, 1.0, 1.0009765625, -3.14159, 1e-30, 65519.0, 65520.0, 1e30, 6e-8, np.inf, np.nan]
            ).astype(dtype)
        )
        same_as_jax(lambda x: lax.reduce_precision(x, exponent, mantissa), numbers)


def test_reinterpreted_bits(same_as_jax: Same) -> None:
    x = np.array([[1.5, -0.0], [np.inf, 3e-40]], np.float32)
    words = lax.bitcast_convert_type(x, np.uint16)
    same_as_jax(lambda x: (lax.bitcast_convert_type(x, np.uint32), lax.bitcast_convert_type(x, np.uint16)), x)
    same_as_jax(lambda x: lax.bitcast_convert_type(x, np.float32), words)
    same_as_jax(lambda x: lax.bitcast_convert_type(x, np.uint8), np.float32(2.5))
