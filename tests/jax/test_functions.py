"""Functions of real and complex numbers, and the primitives that only wrap programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import genie_jax
from jax import lax
from jax import numpy as jnp
from jax.scipy import special

from genie.errors import UnsupportedOperation

Same = Callable[..., None]
ODD = np.array([0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997, 1e10, -3.7, np.inf, -np.inf, np.nan], np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_roundings_and_signs(same_as_jax: Same, dtype: str) -> None:
    def every(x: Any) -> Any:
        return (
            *(lax.sign(x), lax.round(x), lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN), lax.floor(x), lax.ceil(x)),
            *(lax.is_finite(x), lax.clamp(x, x[::-1], x), lax.nextafter(x, x[::-1]), lax.rem(x, x[::-1])),
            lax.max(x, x[::-1]),
        )

    same_as_jax(every, np.asarray(jnp.asarray(ODD).astype(dtype)))


def test_special_functions(same_as_jax: Same) -> None:
    def every(x: Any, y: Any) -> Any:
        return (
            *(lax.cbrt(x), lax.cbrt(-x), lax.pow(x, y), lax.atan2(-x, y), lax.erf_inv(x / 6), lax.lgamma(x)),
            *(lax.digamma(x), lax.bessel_i0e(x), lax.bessel_i1e(x), lax.igamma(x, y), lax.igammac(x, y)),
            *(lax.polygamma(jnp.floor(y), x), lax.zeta(x + 1, y), special.gammaln(x), lax.logistic(-x)),
        )

    same_as_jax(
        every, np.linspace(0.1, 5.5, 23, dtype=np.float32), np.linspace(4, 0.3, 23, dtype=np.float32), tolerance=2e-5
    )


def test_special_functions_of_no_number(same_as_jax: Same) -> None:
    x = np.array([0.0, -0.0, np.nan, 1.0], np.float32)
    nothing = np.zeros(4, np.float32)
    same_as_jax(lambda x, y: (lax.digamma(x), lax.igamma(x + 1, y), lax.igammac(x + 1, y)), x, nothing, tolerance=1e-6)


def test_incomplete_beta_and_its_ends(same_as_jax: Same) -> None:
    ends = np.array([0, 1, np.inf, np.nan, -1, 0.5, 30], np.float32)
    a, b, x = (each.ravel() for each in np.meshgrid(ends, ends, np.array([0, 1, 0.3, -0.5, 2], np.float32)))
    same_as_jax(lax.betainc, a, b, x, tolerance=1e-5)


def test_complex_numbers(same_as_jax: Same) -> None:
    def every(x: Any, y: Any) -> Any:
        z = lax.complex(x, y)
        return (
            *(lax.real(z), lax.imag(z), lax.conj(z), lax.conj(x), lax.abs(z), lax.sign(z), lax.exp(z), lax.log1p(z)),
            *(lax.tanh(z), lax.pow(z, z[::-1]), lax.max(z, z[::-1]), lax.min(z, z[::-1])),
        )

    same_as_jax(
        every, np.linspace(-1, 2, 9, dtype=np.float32), np.linspace(2, -0.5, 9, dtype=np.float32), tolerance=1e-5
    )


def test_floats_of_a_byte(same_as_jax: Same) -> None:
    x = np.asarray(jnp.asarray([0.5, -1.0, 3.0, 0.0, 448.0]).astype(jnp.float8_e4m3fn))

    def every(x: Any) -> Any:
        return (
            *(x + x, x * x, -x, lax.abs(x), x < x[::-1], lax.sort(x), lax.max(x, x[::-1]), lax.argmax(x, 0, np.int32)),
            *(x.astype(np.float32), lax.is_finite(x), lax.top_k(x, 2)),
        )

    same_as_jax(every, x)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"])
def test_floats_of_a_byte_that_become_too_large(same_as_jax: Same, dtype: str) -> None:
    x = np.asarray(jnp.asarray([0.5, 1.0, 96.0, 448.0]).astype(dtype))
    same_as_jax(lambda x: (lax.sign(x), x**2, x**3, lax.integer_pow(x, -2), lax.top_k(x, 2)), x)
    same_as_jax(lambda x: (jnp.outer(x, x), x[None] @ x[:, None]), x)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e8m0fnu"])
def test_floats_of_a_byte_put_among_others(same_as_jax: Same, dtype: str) -> None:
    def every(x: Any, at: Any) -> Any:
        table = x.reshape(3, 4)
        return (
            *(x.at[at].set(x[:3]), x.at[2].set(x[5]), x.at[at].add(x[:3]), x.at[at].multiply(x[:3])),
            *(x.at[at].max(x[:3]), lax.dynamic_update_slice(x, x[:3], (at[0],))),
            *(lax.dynamic_update_slice(table, table[:1], (at[0], 0)), table.at[at[0], at[1]].set(x[3])),
            lax.dynamic_update_slice(table, table[:2, :2], (1, 1)),
        )

    same_as_jax(every, np.asarray(jnp.arange(1.0, 13.0).astype(dtype)), np.array([1, 5, 99], np.int32))


def test_wrapped_programs(same_as_jax: Same) -> None:
    @jax.custom_vjp
    def twice(x: Any) -> Any:
        return 2 * x

    twice.defvjp(lambda x: (2 * x, None), lambda _, g: (3 * g,))

    def every(x: Any) -> Any:
        kept = jax.checkpoint(lambda y: jnp.sin(twice(y)).sum())
        branch = lax.platform_dependent(x, cpu=lambda y: y + 1, default=lambda y: y - 1)
        return twice(x), jax.grad(kept)(x), lax.optimization_barrier((x, x + 1)), jax.device_put(x), branch

    same_as_jax(every, np.linspace(0, 1, 5, dtype=np.float32), tolerance=1e-6)


def test_programs_with_other_ways_to_be_computed(same_as_jax: Same) -> None:
    @jax.custom_batching.custom_vmap
    def twice(x: Any) -> Any:
        return 2 * x

    twice.def_vmap(lambda size, batched, x: (3 * x, True))

    def every(x: Any) -> Any:
        plus = lax.composite(lambda x: x + 1, "example.plus")
        product = jax.custom_derivatives.linear_call(lambda r, v: r * v, lambda r, v: r * v, x, x)
        here = jax.sharding.NamedSharding(jax.make_mesh((1,), ("a",)), jax.sharding.PartitionSpec())
        return twice(x), jax.vmap(twice)(x), plus(x), product, lax.with_sharding_constraint(x, here)

    same_as_jax(every, np.linspace(0, 1, 5, dtype=np.float32))


def test_constants_keep_the_signs_of_their_zeros(same_as_jax: Same) -> None:
    zeros = np.array([0.0, -0.0, 0.0], np.float32)
    same_as_jax(
        lambda x: (1 / (x * zeros), 1 / (x * -np.zeros(3, np.float32)), 1 / (x * np.float32(-0.0))), np.float32(1)
    )


@pytest.mark.parametrize(
    ("function", "primitive"),
    [
        (lambda x: lax.linalg.eigh(x, subset_by_index=(0, 1)), "eigh"),
        (lambda x: lax.exp(x, accuracy=lax.AccuracyMode.HIGHEST), "exp"),
        (lambda x: lax.linalg.eig(x), "eig"),
        (lambda x: x.astype(jnp.int4), "convert_element_type"),
        (
            lambda x: lax.scan(lambda c, _: (c.astype(jnp.int4).astype(x.dtype), None), x, length=2),
            "convert_element_type",
        ),
        (lambda x: lax.linalg.schur(x), "schur"),
        (lambda x: jax.ffi.ffi_call("name", jax.ShapeDtypeStruct(x.shape, x.dtype))(x), "ffi_call"),
        (lambda x: lax.rng_uniform(x[0, 0], x[0, 1], (3,)), "rng_uniform"),
    ],
)
def test_a_refusal_names_the_primitive_and_the_line(function: Callable[[Any], Any], primitive: str) -> None:
    with pytest.raises(UnsupportedOperation) as refused:
        genie_jax.remote(function)(np.eye(3, dtype=np.float32))
    assert f"JAX's primitive {primitive}" in refused.value.message
    assert refused.value.message.count("primitive") == 1
    assert "test_functions.py:" in refused.value.where
    assert refused.value.hint


def test_a_refusal_says_whether_xla_has_the_primitive() -> None:
    def hint(function: Callable[[Any], Any]) -> str:
        with pytest.raises(UnsupportedOperation, match="has no translation") as refused:
            genie_jax.remote(function)(np.eye(3, dtype=np.float32))
        return refused.value.hint

    assert hint(lax.linalg.schur).startswith("XLA has it")
    assert hint(lambda x: jax.new_ref(x)[...]).startswith("XLA does not have it")


def test_derivatives_by_integers_are_refused() -> None:
    """In JAX they are of a type without values."""
    derivative = jax.grad(lambda w, at: w[at], argnums=(0, 1), allow_int=True)
    with pytest.raises(UnsupportedOperation, match="float0"):
        genie_jax.remote(derivative)(jnp.ones(3), jnp.asarray(1))
