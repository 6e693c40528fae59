"""Reductions of windows, convolutions, products over dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp
from jax import lax

Check = Callable[..., None]

GENERATOR = np.random.default_rng(0)
IMAGE = GENERATOR.normal(size=(2, 7, 6, 4)).astype(np.float32)


@pytest.mark.parametrize(("start", "how"), [(0, lax.add), (-np.inf, lax.max), (np.inf, lax.min), (1, lax.mul)])
def test_windows(same_as_jax: Check, start: float, how: Any) -> None:
    x = IMAGE[0, ..., 0]
    first = np.float32(start)
    same_as_jax(lambda x: lax.reduce_window(x, first, how, (2, 3), (1, 2), "SAME"), x, tolerance=1e-6)
    geometry = ((3, 2), (2, 1), ((1, 0), (0, 2)), (2, 1), (1, 2))
    same_as_jax(lambda x: lax.reduce_window(x, first, how, *geometry), x, tolerance=1e-6)


def test_windows_of_unsigned_numbers(same_as_jax: Check) -> None:
    x = np.array([1, 2**31 + 5, 7, 2**32 - 1], np.uint32)
    same_as_jax(lambda x: lax.reduce_window(x, np.uint32(0), lax.max, (2,), (1,), "SAME"), x)


def test_windows_by_a_computation(same_as_jax: Check) -> None:
    x = IMAGE[0, ..., 0]
    same_as_jax(lambda x: lax.reduce_window(x, np.float32(1), lambda a, b: a + b * 2, (1, 1), (2, 2), "SAME"), x)


def test_the_gradient_of_the_greatest_of_windows(same_as_jax: Check) -> None:
    def pooled(x: Any) -> Any:
        return jnp.sin(lax.reduce_window(x, -np.inf, lax.max, (1, 3, 2, 1), (1, 2, 2, 1), "SAME")).sum()

    rounded = np.round(IMAGE * 2)  # so that some are equal
    same_as_jax(jax.grad(pooled), rounded, tolerance=1e-6)
    same_as_jax(lambda x: jax.jvp(jax.grad(pooled), (x,), (x,)), IMAGE, tolerance=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "int32", "complex64"])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": "SAME"},
        {"padding": ((2, -1), (0, 3)), "rhs_dilation": (2, 1)},
        {"padding": ((0, 0), (1, 0)), "lhs_dilation": (2, 3)},
        {"padding": "VALID", "feature_group_count": 2},
        {"padding": "SAME", "batch_group_count": 2},
    ],
)
def test_convolutions(same_as_jax: Check, dtype: str, options: dict[str, Any]) -> None:
    features = 4 // options.get("feature_group_count", 1)
    x, kernel = (IMAGE * 3).astype(dtype), (GENERATOR.normal(size=(3, 2, features, 6)) * 3).astype(dtype)
    options = {"window_strides": (1, 2) if "lhs_dilation" not in options else (1, 1), **options}
    layout = ("NHWC", "HWIO", "NHWC")
    same_as_jax(
        lambda x, k: lax.conv_general_dilated(x, k, dimension_numbers=layout, **options), x, kernel, tolerance=1e-5
    )


@pytest.mark.parametrize(
    ("taken", "preferred"),
    [(("int8", "int8"), "int32"), (("uint8", "uint8"), "uint32"), (("uint16", "uint16"), "uint32"),
     (("bfloat16", "bfloat16"), "float32"), (("float32", "float32"), "bfloat16"), (("float16", "float16"), None)],
)  # fmt: skip
def test_products_in_the_type_that_is_preferred(same_as_jax: Check, taken: Any, preferred: str | None) -> None:
    x = np.abs(GENERATOR.normal(size=(3, 2, 5)) * 100).astype(np.int32) + 150
    if taken[0] == "int8":
        x = x % 128
    pair = [jnp.asarray(x % 256).astype(each) for each in taken]
    axes = (((2,), (2,)), ((1,), (1,)))
    same_as_jax(lambda a, b: lax.dot_general(a, b, axes, preferred_element_type=preferred), *pair, tolerance=1e-2)


def test_a_scan_and_a_choice(same_as_jax: Check) -> None:
    x = IMAGE[0, ..., 0]

    def step(carry: Any, row: Any) -> Any:
        carry = lax.cond(row.sum() > 0, lambda c: c * 0.5 + row, lambda c: c - row, carry)
        return carry, carry.sum()

    for reverse in (False, True):
        same_as_jax(lambda x, r=reverse: lax.scan(step, x[0], x, reverse=r), x, tolerance=1e-5)
    same_as_jax(lambda x, i: lax.switch(i, [jnp.sin, jnp.cos, jnp.tanh], x), x, np.int32(7), tolerance=1e-6)
    same_as_jax(lambda x: lax.scan(lambda c, _: (c * 2, c), x, None, length=0), x)


def test_extremes_of_complex_windows(same_as_jax: Check) -> None:
    random = np.random.default_rng(0)
    x = (random.integers(-2, 3, (4, 6)) + 1j * random.integers(-2, 3, (4, 6))).astype(np.complex64)
    x[1, 3] = x[3, 5] = np.nan

    def every(x: Any) -> Any:
        low, high = np.complex64(-np.inf), np.complex64(np.inf)
        around = ((1, 1), (1, 2))
        return (
            lax.reduce_window(x, low, lax.max, (2, 3), (1, 2), around, base_dilation=(2, 1), window_dilation=(1, 2)),
            *(
                lax.reduce_window(x, high, lax.min, (2, 3), (1, 1), "SAME"),
                lax.reduce_window(x, low, lax.max, (5, 1), (1, 1), "VALID"),
            ),
        )

    same_as_jax(every, x)


def test_products_of_groups_and_of_scales(same_as_jax: Check) -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(6, 3)).astype(np.float32), random.normal(size=(2, 3, 4)).astype(np.float32)
    same_as_jax(lax.ragged_dot, x, y, np.array([4, 2], np.int32), tolerance=1e-6)
    small = jnp.asarray(random.normal(size=(2, 32)), jnp.float8_e4m3fn)
    same_as_jax(lambda a, b: lax.scaled_dot(a, b, preferred_element_type=np.float32), small, small.T, tolerance=1e-6)
