"""Branches and loops of JAX's, which are regions of the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import genie_jax
from jax import lax
from jax import numpy as jnp

from genie.errors import UnsupportedOperation
from genie.graph import Graph

Same = Callable[..., None]
X = np.linspace(-1, 2, 6, dtype=np.float32).reshape(2, 3)


def operations(graph: Graph) -> list[str]:
    return [node.operation for node in graph.steps] + [each for one in graph.regions for each in operations(one)]


def halvings(x: Any) -> Any:
    """How often x is halved until it is below 1, and what is left of it."""
    return lax.while_loop(lambda c: c[1] > 1, lambda c: (c[0] + 1, c[1] / 2), (0, x))


@pytest.mark.parametrize("x", [0.5, 3.0, 1e6])
def test_while_of_any_number_of_turns(same_as_jax: Same, x: float) -> None:
    same_as_jax(halvings, np.float32(x))


def test_while_with_constants_of_condition_and_body(same_as_jax: Same) -> None:
    table = jnp.arange(5.0)

    def program(x: Any, limit: Any, step: Any) -> Any:
        return lax.while_loop(
            lambda c: (c[0] < limit) & (c[0] < table.sum()), lambda c: (c[0] + step, c[1] @ table + c[1]), (x, table)
        )

    same_as_jax(program, np.float32(0), np.float32(4), np.float32(1.5), tolerance=1e-6)


def test_under_vmap_each_loop_ends_on_its_own(same_as_jax: Same) -> None:
    same_as_jax(jax.vmap(halvings), np.array([0.5, 3, 1e6, 7, np.nan], np.float32))
    same_as_jax(jax.vmap(jax.vmap(halvings)), np.abs(X) * 9)

    def wide(x: Any) -> Any:  # what is carried has dimensions behind those of the batch
        return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + x, c[1] * 2), (x, jnp.ones((2, 2))))

    same_as_jax(jax.vmap(wide), np.array([0.5, 1, 9], np.float32))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [0, 1, 4])
def test_scan(same_as_jax: Same, reverse: bool, length: int) -> None:
    def program(x: Any, lines: Any) -> Any:
        def body(carried: Any, given: Any) -> Any:
            row, number = given
            carried = carried * 0.5 + row
            return carried, {"sum": carried.sum(), "both": (row.T + number, number)}

        return lax.scan(body, x, (lines, jnp.arange(length)), reverse=reverse, unroll=2)

    lines = np.arange(length * 6, dtype=np.float32).reshape(length, 2, 3)
    same_as_jax(program, X, lines, tolerance=1e-6)


def test_scan_of_nothing_but_a_length_and_of_nothing_but_slices(same_as_jax: Same) -> None:
    same_as_jax(lambda x: lax.scan(lambda c, _: (c * 3, None), x, None, length=4), X)
    same_as_jax(lambda x: lax.scan(lambda _, row: (None, row + 1), None, x), X)
    same_as_jax(lambda x: lax.map(lambda row: row.sum() + x.size, x), X)
    same_as_jax(lambda x: lax.while_loop(lambda _: False, lambda _: (), ()) or x, X)


def test_what_is_carried_keeps_its_type(same_as_jax: Same) -> None:
    def program(x: Any, bits: Any) -> Any:
        def body(i: Any, carried: Any) -> Any:
            key, flag, small, words, weak, wide = carried
            key, sub = jax.random.split(key)
            return (
                *(key, ~flag, small + x[0, 0].astype(small.dtype)),
                *((words << 1) ^ jax.random.bits(sub, words.shape), weak * 2, wide.T.reshape(wide.shape) * 1j),
            )

        start = (jax.random.key(3), x > 0, x.astype(jnp.bfloat16), bits, 1, x.astype(jnp.complex64))
        key, *rest = lax.fori_loop(0, bits[0].astype(jnp.int32) % 7, body, start)
        return jax.random.key_data(key), rest

    same_as_jax(program, X, np.array([4, 2**31, 2**32 - 1], np.uint32))


@pytest.mark.parametrize("which", [-1, 0, 1, 2, 7])
def test_cond_and_switch(same_as_jax: Same, which: int) -> None:
    same_as_jax(lambda i, x: lax.cond(i > 0, lambda v: v * 2, lambda v: v.T.reshape(v.shape), x), which, X)
    branches = [lambda v: v + 1, lambda v: v[::-1], lambda v: jnp.zeros_like(v)]
    same_as_jax(lambda i, x: lax.switch(i, branches, x), which, X)
    same_as_jax(lambda i, x: lax.switch(1, branches, x) + lax.switch(i, branches[:1], x), which, X)
    same_as_jax(jax.vmap(lambda i, x: lax.switch(i, branches, x)), np.array([which, 1]), X)


def test_a_number_of_no_branch_is_the_last_ones(same_as_jax: Same) -> None:
    jaxprs = [jax.make_jaxpr(lambda v, k=k: v * k)(X) for k in (2.0, 3.0, 4.0)]
    for count in (2, 3):

        def program(i: Any, x: Any, count: int = count) -> Any:
            return lax.cond_p.bind(i, x, branches=tuple(jaxprs[:count]))

        for which in (-1, 0, 1, 5):
            same_as_jax(program, np.int32(which), X)


def test_one_branch_alone_runs() -> None:
    branch = genie_jax.remote(lambda i, x: lax.cond(i > 0, lambda v: jnp.linalg.inv(v), lambda v: v, x))
    made = branch(1, np.eye(2, dtype=np.float32))
    np.testing.assert_allclose(np.asarray(made), np.eye(2))
    assert operations(branch.latest).count("genie::cond") == 1
    assert "aten::linalg_inv_ex" not in [node.operation for node in branch.latest.steps]


def test_loops_in_loops_in_branches(same_as_jax: Same) -> None:
    def program(x: Any, n: Any) -> Any:
        table = jnp.cumsum(x, 1)

        def row(carried: Any, r: Any) -> Any:
            long = lax.cond(r.sum() > 0, lambda: lax.fori_loop(0, n, lambda i, a: a + table[0] * i, r), lambda: r * 2)
            return carried + long, (long, lax.map(lambda e: jnp.where(e > 0, e, carried.sum()), long))

        return lax.scan(row, jnp.zeros(3), x)

    same_as_jax(program, X, 3, tolerance=1e-6)


@pytest.mark.parametrize(
    "transform",
    [
        jax.grad,
        lambda f: jax.jit(jax.value_and_grad(f)),
        lambda f: jax.grad(jax.checkpoint(f)),
        lambda f: lambda x: jax.jvp(f, (x,), (x,)),
        lambda f: lambda x: jax.vmap(jax.grad(f))(jnp.stack([x, x * 2])),
        lambda f: jax.hessian(f),
    ],
)
def test_within_transformations(same_as_jax: Same, transform: Any) -> None:
    def program(x: Any) -> Any:
        def body(carried: Any, row: Any) -> Any:
            carried = lax.cond(row.sum() > 0, lambda c: jnp.tanh(c * row), lambda c: c + row, carried)
            return carried, jnp.sin(carried)

        last, every = lax.scan(body, jnp.ones(3), x)
        return (last.sum() + lax.fori_loop(0, 3, lambda i, a: a * jnp.cos(last), every).sum()) ** 2

    same_as_jax(transform(program), X, tolerance=1e-5)


def test_implicit_functions(same_as_jax: Same) -> None:
    def root(a: Any) -> Any:
        def solve(f: Any, x0: Any) -> Any:
            return lax.while_loop(lambda x: jnp.abs(f(x)) > 1e-6, lambda x: x - f(x) / jax.grad(f)(x), x0)

        return lax.custom_root(lambda x: x**2 - a, a, solve, lambda g, y: y / g(1.0))

    same_as_jax(jax.value_and_grad(root), np.float32(2), tolerance=1e-5)


def test_what_fails_in_a_loop_says_where_it_is() -> None:
    deep = lambda x, n: x if n == 0 else lax.fori_loop(0, x.astype(int), lambda i, c: deep(c, n - 1), x)  # noqa: E731
    with pytest.raises(UnsupportedOperation, match="more than 8 deep"):
        genie_jax.remote(deep, static_argnums=1)(np.float32(1), 9)


def test_names_and_lines_of_what_is_in_a_region() -> None:
    def body(i: Any, x: Any) -> Any:
        with jax.named_scope("attention"):
            return jnp.sin(x)

    with jax.named_scope("model"):
        program = genie_jax.remote(lambda x: lax.fori_loop(0, 3, body, x))
        program(X)
    (loop,) = (node for node in program.latest.steps if node.regions)
    region = loop.regions[-1]
    (sine,) = (node for node in region.steps if node.operation == "aten::sin")
    assert region.modules[sine.module].path.endswith("attention")
    assert "test_control.py" in region.sources[sine.source]
