"""``genie_jax.remote`` beside ``jax.jit``."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

import genie_jax
import jax
import jax.experimental
import jax.numpy as jnp
from genie_jax.device import place_of

import genie
from genie.errors import CaptureError, UnsupportedOperation

P = {"w": np.full((3, 4), 0.1, np.float32), "b": np.arange(4, dtype=np.float32)}
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def f(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["w"] + p["b"]).sum()


def same(remote: Any, local: Any) -> None:
    far, near = jax.tree_util.tree_flatten(remote), jax.tree_util.tree_flatten(local)
    assert far[1] == near[1]
    for a, b in zip(far[0], near[0], strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "transform",
    [
        lambda g: g,
        lambda g: jax.jit(lambda p, x: g(p, x) * 2),
        lambda g: jax.grad(g),
        lambda g: jax.jit(jax.grad(g)),
        lambda g: lambda p, x: jax.vmap(g, in_axes=(None, 0))(p, jnp.stack([x, x + 1])),
        lambda g: lambda p, x: jax.vmap(jax.grad(g), in_axes=(None, 0))(p, jnp.stack([x, x + 1])),
        lambda g: lambda p, x: jax.grad(lambda y: jax.grad(lambda z: g(p, z))(y).sum())(x),
    ],
)
def test_within_transformations(transform: Any) -> None:
    same(transform(genie_jax.remote(f))(P, jnp.asarray(X)), transform(f)(P, jnp.asarray(X)))


def test_a_remote_program_within_another_is_a_part_of_it() -> None:
    inner = genie_jax.remote(f)
    same(genie_jax.remote(lambda p, x: inner(p, x) + 1)(P, X), f(P, X) + 1)
    same(genie_jax.remote(jax.grad(inner))(P, jnp.asarray(X)), jax.grad(f)(P, X))


def test_results_stay_and_are_taken_again() -> None:
    double = genie_jax.remote(lambda t: jax.tree_util.tree_map(lambda v: v * 2, t))
    first = double(P)
    before = genie.get_stats()["programs"]
    same(double(double(first)), jax.tree_util.tree_map(lambda v: v * 8, P))
    assert genie.get_stats()["programs"] == before
    same(double({"w": np.ones(2, np.float32)}), {"w": np.full(2, 2.0)})
    assert genie.get_stats()["programs"] == before + 1


def test_equal_programs_of_different_functions() -> None:
    one, other = genie_jax.remote(lambda x: x * 3), genie_jax.remote(lambda x: x * 3)
    for _ in range(3):
        same((one(X), other(X)), (X * 3, X * 3))


def test_donated_arrays_are_gone() -> None:
    step = genie_jax.remote(lambda p, g: jax.tree_util.tree_map(lambda a, b: a - b, p, g), donate_argnums=0)
    mine = jax.tree_util.tree_map(jnp.array, P)
    first = step(mine, P)
    assert mine["w"].is_deleted()
    same(step(first, P), jax.tree_util.tree_map(lambda v: v - 2 * v, P))
    assert first["w"].is_deleted()
    with pytest.raises(UnsupportedOperation, match="was donated"):
        step(first, P)
    again = step(jax.tree_util.tree_map(jnp.array, P), P)
    with pytest.raises(UnsupportedOperation, match="given as another argument"):
        step(again, again)
    same(again, jax.tree_util.tree_map(lambda v: v - v, P))  # nothing was taken
    same(step({"a": 0, "b": 0}, {"a": 1, "b": 1}), {"a": -1, "b": -1})  # numbers are no arrays


def test_an_array_that_is_given_twice_is_sent_once() -> None:
    mine = jnp.asarray(X)
    program = genie_jax.remote(lambda a, b: a + b)
    same(program(mine, mine), 2 * X)
    same(program(mine, mine), 2 * X)
    assert len([each for each in place_of(genie.api.engine()).kept.values() if each.of() is mine]) == 1


def test_static_arguments() -> None:
    power = genie_jax.remote(lambda x, n: x**n, static_argnums=-1)
    same((power(X, 2), power(X, 3)), (X**2, X**3))
    with pytest.raises(CaptureError, match="not hashable"):
        power(X, [1])


def test_static_arguments_that_are_equal_may_differ() -> None:
    number = genie_jax.remote(lambda n: jnp.asarray(n), static_argnums=0)
    assert [number(each).dtype for each in (1, True, 1.0)] == [np.int32, np.bool_, np.float32]


def test_static_arguments_by_name() -> None:
    def scaled(x: Any, how: str = "twice") -> Any:
        return x * {"twice": 2, "thrice": 3}[how]

    program = genie_jax.remote(scaled, static_argnums=1)
    for _ in range(2):
        same((program(X, how="thrice"), program(X, how="twice")), (X * 3, X * 2))
        same((program(X, "thrice"), program(X)), (X * 3, X * 2))
    same(jax.vmap(lambda x: program(x, how="thrice"))(jnp.asarray(X)), X * 3)


def test_settings_of_jaxs_make_another_program() -> None:
    program = genie_jax.remote(lambda x, y: x + y)
    counts, floats = np.ones(2, np.int32), np.ones(2, np.float32)
    same(program(counts, floats), np.full(2, 2.0))
    with jax.numpy_dtype_promotion("strict"), pytest.raises(Exception, match="promotion"):
        program(counts, floats)
    bits = genie_jax.remote(lambda: jax.random.bits(jax.random.key(0), (4,)))
    for partitionable in (True, False, True):
        with jax.threefry_partitionable(partitionable):
            np.testing.assert_array_equal(np.asarray(bits()), jax.random.bits(jax.random.key(0), (4,)))


def test_bad_arguments_are_refused() -> None:
    echo = genie_jax.remote(lambda x: x + 1)
    with pytest.raises(UnsupportedOperation, match="type str is no array"):
        echo("text")
    with jax.enable_x64(True):
        wide = genie_jax.remote(lambda x: x * 2)(np.ones(3))
    assert np.asarray(wide).dtype == np.float64
    with pytest.raises(CaptureError, match="jax_enable_x64"):
        echo(wide)


def test_leaked_tracers_are_refused() -> None:
    leaked: list[Any] = []
    jax.jit(lambda x: (leaked.append(x), x)[1])(X)
    with pytest.raises(CaptureError, match="another trace"):
        genie_jax.remote(lambda x: x + leaked[0])(X)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jax.pure_callback(lambda v: v, x, x),
        lambda x: (jax.debug.print("{}", x), x)[1],
        lambda x: jax.experimental.io_callback(lambda v: v, x, x),
    ],
)
def test_calls_back_into_python_are_refused(function: Any) -> None:
    with pytest.raises(UnsupportedOperation, match="call back into Python") as refused:
        genie_jax.remote(function)(X)
    assert "test_remote.py" in str(refused.value)


def test_random_keys_go_and_come() -> None:
    split = genie_jax.remote(lambda key: jax.random.split(key, 3))
    made = split(jax.random.key(7))
    expected = jax.random.split(jax.random.key(7), 3)
    assert made.dtype == expected.dtype
    np.testing.assert_array_equal(jax.random.key_data(jnp.asarray(made)), jax.random.key_data(expected))
    bits = genie_jax.remote(lambda keys: jax.random.bits(keys[1], (4,)))
    np.testing.assert_array_equal(np.asarray(bits(made)), np.asarray(jax.random.bits(expected[1], (4,))))


def test_names_are_module_paths_and_inputs_names() -> None:
    def scoped(p: Any) -> Any:
        with jax.named_scope("attention"):
            return jnp.sin(p["w"])

    program = genie_jax.remote(jax.grad(lambda p: scoped(p).sum()))
    program({"w": X})
    graph = program.latest
    assert "attention" in {module.path for module in graph.modules}
    assert [entry.name for entry in graph.inputs] == ["0.0.w"]


def test_genie_run() -> None:
    same(genie.run(f, P, X, frontend="jax"), f(P, X))


def test_arithmetic_looks() -> None:
    made = genie_jax.remote(lambda x: x.sum())(X)
    assert float(made) == made.item() == 15.0
    assert float(2 * made - 1) == 29.0
    assert made > 14 and f"{made:.1f}" == "15.0"
    assert divmod(made, 4) == (3, 3) and divmod(31, made) == (2, 1) and +made == 15
    count = genie_jax.remote(lambda x: x + 1)(np.int32(2))
    assert (count << 2, 1 << count, count >> 1, 8 >> count) == (12, 8, 1, 1)


def test_it_is_used_as_an_array() -> None:
    made = genie_jax.remote(lambda x: x - 2)(X)
    here = jnp.asarray(X - 2)
    np.testing.assert_array_equal(made == 0, here == 0)
    np.testing.assert_array_equal(made != 1, here != 1)
    np.testing.assert_array_equal((made > 0) & (made < 2), (here > 0) & (here < 2))
    same((made.sum(), made.T, made.astype(int), made.at[0].set(7), made.nbytes), (*_of(here), 24))
    with pytest.raises(TypeError, match="unhashable"):
        hash(made)
    for copied in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        same(copied, here)


def _of(here: Any) -> tuple[Any, ...]:
    return here.sum(), here.T, here.astype(int), here.at[0].set(7)


def test_an_array_that_jax_donated_meanwhile_is_refused() -> None:
    program, consume = genie_jax.remote(lambda x: x + 1), jax.jit(lambda x: x * 2, donate_argnums=0)
    mine = jnp.array(X)
    same(program(mine), X + 1)
    consume(mine).block_until_ready()
    if not mine.is_deleted():
        mine.delete()
    with pytest.raises(UnsupportedOperation, match="was donated"):
        program(mine)


def test_an_array_that_is_there_is_given_there() -> None:
    """One that was sent before, and whose identity another one may have afterwards."""
    program, take = genie_jax.remote(lambda x: x + 1), genie_jax.remote(lambda x: x * 2, donate_argnums=0)
    for number in range(5):
        mine = jnp.full((3, 300), number, jnp.float32)
        same(program(mine), np.full((3, 300), number + 1))
        same(take(mine), np.full((3, 300), number * 2))
        assert mine.is_deleted()
        del mine


def test_what_was_refused_took_nothing() -> None:
    step = genie_jax.remote(lambda p, x: p @ x, donate_argnums=0)
    mine = genie_jax.remote(lambda x: x * 1)(np.ones((3, 3), np.float32))
    with pytest.raises(TypeError):
        step(mine, np.ones(4, np.float32))
    same(step(mine, np.ones(3, np.float32)), np.full(3, 3.0))
    assert mine.is_deleted()


@pytest.mark.parametrize(
    "function",
    [
        jax.jit(lambda x: x + 1),
        jax.jit(lambda x: x * 3, donate_argnums=0),
        jax.grad(lambda x: (x**2).sum()),
        jax.vmap(jnp.sum),
        lambda x: jax.jit(lambda y: x @ y.T)(x),
        lambda x: jnp.where(x > 1, x, jnp.add(x, 2)),
        lambda x: jax.tree_util.tree_map(jnp.zeros_like, {"a": x})["a"],
        lambda x: jnp.ones(3) * x[0] + np.ones(3, np.float32),
        lambda x: jax.lax.scan(lambda c, row: (c + row, row * c), x[0], x)[1],
    ],
)
def test_functions_of_jaxs_look(function: Any) -> None:
    made = genie_jax.remote(lambda x: x * 2)(X)
    same(function(made), function(jnp.asarray(X * 2)))
    same(made, X * 2)


def test_numbers_of_python_stay_weak() -> None:
    made = genie_jax.remote(lambda x: x + 1)(2.0)
    assert (jnp.ones(2, jnp.bfloat16) * made).dtype == (made * jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16
    assert genie_jax.remote(lambda x, y: x * y)(np.ones(2, np.float16), made).dtype == np.float16
