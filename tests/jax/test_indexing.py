"""Gather, scatter, slices at computed places, padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import genie_jax
import jax.numpy as jnp
from jax import lax

from genie.errors import UnsupportedOperation

Check = Callable[..., None]

X = np.arange(24, dtype=np.float32).reshape(4, 6)
PLACES = np.array([[0, 1], [3, 5], [4, 0], [-1, 2]], np.int32)  # the last two are out of bounds


@pytest.mark.parametrize("mode", ["clip", "fill", "promise_in_bounds"])
@pytest.mark.parametrize("dtype", ["float32", "int16", "uint8", "uint32", "bool", "complex64"])
def test_gather_of_points_by_mode(same_as_jax: Check, mode: str, dtype: str) -> None:
    numbers = lax.GatherDimensionNumbers(offset_dims=(), collapsed_slice_dims=(0, 1), start_index_map=(0, 1))
    places = PLACES[:2] if mode == "promise_in_bounds" else PLACES
    same_as_jax(lambda x, i: lax.gather(x, i, numbers, (1, 1), mode=mode), X.astype(dtype), places)


def test_gather_of_windows_with_a_value_for_those_outside(same_as_jax: Check) -> None:
    numbers = lax.GatherDimensionNumbers(offset_dims=(0, 2), collapsed_slice_dims=(), start_index_map=(1, 0))
    places = np.array([[1, 0], [4, 2], [5, 1]], np.int32)
    same_as_jax(lambda x, i: lax.gather(x, i, numbers, (2, 2), mode="fill", fill_value=7), X, places)


def test_gather_within_a_batch(same_as_jax: Check) -> None:
    same_as_jax(jax.vmap(lambda x, i: x[i]), X, np.array([[5, 0], [1, 1], [2, 3], [0, 0]]))
    same_as_jax(lambda x, i: jnp.take_along_axis(x, i, 1), X, np.array([[5, -1], [1, 9], [2, 3], [0, 0]]))


@pytest.mark.parametrize("how", ["set", "add", "multiply", "min", "max"])
@pytest.mark.parametrize("mode", ["clip", "drop"])
@pytest.mark.parametrize("dtype", ["float32", "int32", "uint32", "complex64"])
def test_scatter_by_mode(same_as_jax: Check, how: str, mode: str, dtype: str) -> None:
    if dtype == "complex64" and how in ("min", "max"):
        pytest.skip("complex numbers have no order in NumPy's sense")
    rows = np.array([1, 3, 1, 9] if how != "set" else [1, 3, 0, 9])
    updates = (np.arange(24).reshape(4, 6) * 3 - 20).astype(np.int32).astype(dtype)
    same_as_jax(lambda x, i, u: getattr(x.at[i], how)(u, mode=mode), X.astype(dtype), rows, updates)


def test_scatter_by_a_computation(same_as_jax: Check) -> None:
    rows = np.array([0, 2])
    same_as_jax(lambda x, i: x.at[i].apply(lambda v: v * v + 1), X, rows)


def test_a_long_scatter_by_a_computation_that_may_meet_is_refused() -> None:
    with pytest.raises(UnsupportedOperation, match="200 updates that may meet"):
        genie_jax.remote(lambda x, i: x.at[i].apply(jnp.sin))(np.ones(300, np.float32), np.zeros(200, np.int32))


def test_the_gradient_of_an_embedding(same_as_jax: Check) -> None:
    ids = np.array([[1, 3], [3, 3]])
    same_as_jax(jax.grad(lambda table: jnp.sin(table[ids]).sum()), X, tolerance=1e-6)


@pytest.mark.parametrize("start", [(-3, 2), (0, 0), (9, 9), (1, -1)])
def test_slices_are_moved_into_bounds(same_as_jax: Check, start: tuple[int, int]) -> None:
    a, b = (np.int32(each) for each in start)
    same_as_jax(lambda x, a, b: lax.dynamic_slice(x, (a, b), (2, 3)), X, a, b)
    same_as_jax(lambda x, a, b: lax.dynamic_update_slice(x, -x[:2, :3], (a, b)), X, a, b)
    same_as_jax(lambda x, a: lax.dynamic_update_slice_in_dim(x, x[:1] * 2, a, 0), X, a)


@pytest.mark.parametrize("config", [((1, 2, 0), (0, 0, 1)), ((-1, 0, 2), (3, -2, 0)), ((-4, 0, 0), (0, 1, 0))])
@pytest.mark.parametrize("dtype", ["float32", "int32", "uint16", "bool"])
def test_padding(same_as_jax: Check, config: Any, dtype: str) -> None:
    x = X.astype(dtype)
    same_as_jax(lambda x: lax.pad(x, np.ones((), dtype), config), x)
    same_as_jax(lambda x, value: lax.pad(x, value, config), x, np.ones((), dtype))
