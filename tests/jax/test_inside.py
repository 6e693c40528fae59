"""Remote programs within JAX's transformations: their keys, their types, and what is made of them once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

import genie_jax
import jax
import jax.numpy as jnp

import genie

X = jnp.arange(6, dtype=jnp.float32).reshape(2, 3)


@pytest.mark.parametrize(
    "transform",
    [jax.jit, jax.vmap, lambda f: jax.jit(jax.vmap(f)), lambda f: lambda keys: jax.lax.map(f, keys)],
    ids=["jit", "vmap", "jit of vmap", "map"],
)
def test_random_keys_are_taken_and_given(transform: Callable[..., Any]) -> None:
    def draw(key: Any) -> Any:
        return jax.random.split(key), jax.random.bits(key, (3,))

    keys = jax.random.key(3) if transform is jax.jit else jax.random.split(jax.random.key(3), 2)
    (split, bits), (same_split, same_bits) = transform(genie_jax.remote(draw))(keys), transform(draw)(keys)
    assert split.dtype == same_split.dtype
    np.testing.assert_array_equal(jax.random.key_data(split), jax.random.key_data(same_split))
    np.testing.assert_array_equal(bits, same_bits)


def test_a_derivative_beside_a_key() -> None:
    def noisy(x: Any, key: Any) -> Any:
        return (x * jax.random.uniform(key, x.shape)).sum()

    key = jax.random.key(1)
    np.testing.assert_array_equal(jax.grad(genie_jax.remote(noisy))(X, key), jax.grad(noisy)(X, key))


def test_numbers_of_python_stay_weak() -> None:
    more = genie_jax.remote(lambda x: x + 1)
    half = jnp.ones(2, jnp.bfloat16)
    assert jax.jit(lambda x: more(x) * half)(2.0).dtype == jnp.bfloat16
    assert jax.vmap(lambda row: more(2.0) * row)(half).dtype == jnp.bfloat16
    assert jax.grad(lambda x: more(x) * 2)(2.0).weak_type


def test_what_is_not_compiled_is_prepared_once() -> None:
    program = genie_jax.remote(lambda x: jnp.sin(x).sum())

    def every() -> None:
        jax.grad(program)(X)
        jax.vmap(program)(X)
        jax.vmap(jax.grad(program), axis_name="rows")(X)
        jax.jacrev(lambda x: program(x) * x)(X)

    every()
    before = genie.get_stats()["programs"]
    every()
    assert genie.get_stats()["programs"] == before
