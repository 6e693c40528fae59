"""Graphs with fewer nodes: the same bits, and what is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

import genie_jax
import jax
import jax.numpy as jnp
from genie_jax import translate
from genie_jax.functions import Remote

from genie.graph import Graph


def recorded(function: Callable[..., Any], *args: Any) -> Graph:
    traced = Remote(function, lambda: pytest.fail("nothing runs here"), (), ()).traced(args, {})
    return translate.to_graph(traced.jaxpr, [("", "input")] * len(traced.jaxpr.in_avals))[0]


def operators(function: Callable[..., Any], *args: Any) -> list[str]:
    return [node.operation.removeprefix("aten::") for node in recorded(function, *args).steps]


X = np.linspace(-2, 2, 24, dtype=np.float32).reshape(2, 3, 4)
ODD = np.array([0.0, -0.0, 1.5, -1.5, np.inf, -np.inf, np.nan, 1e-40], np.float32)


def softmax(x: jax.Array) -> jax.Array:
    return jax.nn.softmax(x / 3.0 + jnp.sqrt(7.0), -1)


def norm(x: jax.Array) -> jax.Array:
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)


def zeros(x: jax.Array) -> Any:
    return x * -0.0, x + 0.0, x * 0.0, jnp.maximum(x, -0.0), jnp.copysign(1.0, x) / -0.0


def whole(x: jax.Array) -> Any:
    number = x.astype(jnp.int32)
    return number // 3, number % 3, number.astype(jnp.uint32) * 3, number > 1, number << 2, number.astype(jnp.int8) - 3


def views(x: jax.Array) -> Any:
    y = x.reshape(6, 4).reshape(2, 3, 4).transpose(2, 0, 1).reshape(4, 6)
    return y + 1, y[:, None, :, None].squeeze() * 2, jnp.broadcast_to(x[:, :1], x.shape) - x, x.T.reshape(-1)


def looked_up(x: jax.Array) -> Any:
    at = jnp.array([[1, -1], [7, 0]])
    return x.reshape(6, 4)[at], jnp.take(x.reshape(6, 4), at, axis=0), x[:, 1], x.at[:, at[0, 0]].set(5.0)


def set_at(x: jax.Array) -> Any:
    near, far = jnp.int32(2), jnp.int32(9)
    row = jnp.ones((2, 3))
    return x.at[..., near].set(row), x.at[..., far].set(row), x.at[1, :, near].set(0.0), x.at[..., -1].add(row)


def products(x: jax.Array) -> Any:
    w = jnp.arange(20.0, dtype=jnp.float32).reshape(5, 4)
    return jnp.einsum("abc,dc->abd", x, w), jnp.einsum("dc,abc->dab", w, x), jnp.einsum("abc,aec->abe", x, x), x @ w.T


def small(x: jax.Array) -> Any:
    y = x.astype(jnp.bfloat16)
    return y * 1.3, y / 3.0, jax.nn.gelu(y), jnp.where(y > 0.1, y, -1.0)


@pytest.mark.parametrize("function", [softmax, norm, zeros, whole, views, looked_up, set_at, products, small])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_same_bits(function, transposed, monkeypatch):
    x = np.ascontiguousarray(X.T).T if transposed else X
    few = [np.asarray(each) for each in jax.tree_util.tree_leaves(genie_jax.remote(function)(x))]
    count = len(recorded(function, x).steps)
    monkeypatch.setattr(translate, "simplified", lambda graph: graph)
    many = [np.asarray(each) for each in jax.tree_util.tree_leaves(genie_jax.remote(lambda x: function(x))(x))]
    assert count <= len(recorded(function, x).steps)
    for one, other in zip(few, many, strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


@pytest.mark.parametrize("function", [zeros, lambda x: x / 0.1, lambda x: jnp.maximum(x, 0.0) - 1, softmax])
def test_numbers_without_an_inverse_or_a_sign(function, monkeypatch):
    few = [np.asarray(each) for each in jax.tree_util.tree_leaves(genie_jax.remote(function)(ODD))]
    monkeypatch.setattr(translate, "simplified", lambda graph: graph)
    many = [np.asarray(each) for each in jax.tree_util.tree_leaves(genie_jax.remote(lambda x: function(x))(ODD))]
    for one, other in zip(few, many, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(np.signbit(one), np.signbit(other))


def test_equal_ones_are_computed_once():
    assert operators(lambda x: jnp.tanh(x) * jnp.tanh(x), X) == ["tanh", "mul"]


def test_results_stay_apart():
    """Two results are two values, though they are equal; and none is an operand."""
    graph = recorded(lambda x: (jnp.tanh(x), jnp.tanh(x), x.reshape(x.shape)), X)
    assert len(set(graph.outputs[:2])) == 2
    genie_jax.remote(lambda x: (jnp.tanh(x), jnp.tanh(x)))(X)[0].block_until_ready()


def test_numbers_are_no_arrays():
    assert operators(lambda x: jnp.where(x > 0.5, x * 2, -1.0) + jnp.sqrt(2.0), X) == ["gt", "mul", "where", "add"]


def test_a_division_stays_one_unless_by_a_power_of_two():
    assert operators(lambda x: x / 4.0, X) == ["div"]
    assert operators(lambda x: x / 3.0, X) == ["full", "div"]


def test_what_is_spread_anyway_is_not_spread_before():
    bias = np.ones(4, np.float32)
    assert operators(lambda x, b: x + jnp.broadcast_to(b, x.shape), X, bias) == ["add"]


def test_a_product_with_a_matrix_is_one_operator():
    w = np.ones((4, 5), np.float32)
    assert operators(lambda x, w: x @ w, X.reshape(6, 4), w) == ["mm"]
    assert operators(lambda x, w: x @ w, X, w) == ["view", "mm", "view"]


def test_rows_of_a_table_are_looked_up_by_one_operator():
    ids = np.zeros((2, 3), np.int32)
    found = operators(lambda table, ids: table.at[ids].get(mode="clip"), np.ones((7, 4), np.float32), ids)
    assert found.count("embedding") == 1
    assert "index_select" not in found


def test_one_place_of_a_cache_is_written_where_it_is():
    """Not by taking the cache apart, and putting it together again."""
    cache, new = np.zeros((2, 9, 3), np.float32), np.ones((2, 3), np.float32)
    graph = recorded(lambda cache, new, at: cache.at[:, at].set(new), cache, new, np.int32(3))
    large = [node.operation for node in graph.steps for out in node.outputs if graph.values[out].shape == cache.shape]
    assert large == ["aten::index_copy"]
