"""Factorisations by Householder's reflections that ATen has none of, written for JAX, which makes loops of them.

In LAPACK's form, as JAX's are: reflection i is ``I - scale v v^H``, where v begins with a one and follows it below the
factor's diagonal (Golub and Van Loan, "Matrix Computations", 5.1 and 5.4.2, 7.4.2). Each is of the last two axes.
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax
from jax import numpy as jnp


def _reflection(x: Any, at: Any) -> tuple[Any, Any, Any]:
    """The vector and the scale of what makes ``[x[at], 0, …]`` of ``x[at:]``, and that element."""
    number = jnp.arange(x.shape[0])
    first, rest = x[at], jnp.where(number > at, x, 0)
    length = jnp.linalg.norm(rest)
    already = (length == 0) & (jnp.imag(first) == 0)
    whole = jnp.hypot(jnp.abs(first), length)
    made = jnp.where(jnp.signbit(jnp.real(first)), whole, -whole)
    scale = jnp.where(already, 0, (made - first) / jnp.where(already, 1, made)).astype(x.dtype)
    vector = jnp.where(number == at, 1, rest / jnp.where(already, 1, first - made))
    return vector, scale, jnp.where(already, first, made.astype(x.dtype))


def _from_left(x: Any, vector: Any, scale: Any) -> Any:
    """``x`` after the reflection's adjoint."""
    with jax.default_matmul_precision("highest"):
        return x - jnp.conj(scale) * jnp.outer(vector, jnp.conj(vector) @ x)


def _stored(x: Any, column: Any, at: Any, made: Any, vector: Any) -> Any:
    """``x`` with the vector below element ``at`` of a column, which is ``made``."""
    number = jnp.arange(x.shape[0])
    kept = jnp.where(number < at, x[:, column], jnp.where(number == at, made, vector))
    return x.at[:, column].set(kept)


def _pivoted(x: Any) -> tuple[Any, Any, Any]:
    """Factors, scales and the order of the columns of one matrix: each time the longest of those that are left."""
    rows, columns = x.shape
    count = min(rows, columns)

    def step(i: Any, held: Any) -> Any:
        x, scales, order = held
        below = jnp.where(jnp.arange(rows)[:, None] >= i, jnp.abs(x), 0)
        lengths = jnp.where(jnp.arange(columns) >= i, jnp.linalg.norm(below, axis=0), -1)
        longest = jnp.argmax(lengths)
        places = jnp.arange(columns)
        swapped = jnp.where(places == i, longest, jnp.where(places == longest, i, places))
        x, order = x[:, swapped], order[swapped]
        vector, scale, made = _reflection(x[:, i], i)
        later = jnp.where(places > i, _from_left(x, vector, scale), x)
        return _stored(later, i, i, made, vector), scales.at[i].set(scale), order

    start = (x, jnp.zeros(count, x.dtype), jnp.arange(columns, dtype=jnp.int32))
    return lax.fori_loop(0, count, step, start)


def _of_each(function: Any, x: Any) -> Any:
    """``function`` of a matrix, of all of them."""
    for _ in range(x.ndim - 2):
        function = jax.vmap(function)
    return function(x)


def pivoted_qr(x: Any, *, full: bool) -> tuple[Any, Any, Any]:
    """As ``jax.lax.linalg.qr`` with pivoting."""
    rows, columns = x.shape[-2:]
    factors, scales, order = _of_each(_pivoted, x)
    if rows < columns:
        q = lax.linalg.householder_product(factors[..., :rows], scales)
    elif full:
        wide = jnp.pad(factors, [(0, 0)] * (x.ndim - 1) + [(0, rows - columns)])
        q = lax.linalg.householder_product(wide, scales)
    else:
        q = lax.linalg.householder_product(factors, scales)
        factors = factors[..., :columns, :]
    return q, jnp.triu(factors), order


def _reduced(x: Any) -> tuple[Any, Any]:
    size = x.shape[0]

    def step(i: Any, held: Any) -> Any:
        x, scales = held
        vector, scale, made = _reflection(x[:, i], i + 1)
        later = jnp.arange(size) > i
        with jax.default_matmul_precision("highest"):
            right = x - scale * jnp.outer(x @ vector, jnp.conj(vector))
        x = jnp.where(later, right, x)
        x = jnp.where(later, _from_left(x, vector, scale), x)
        return _stored(x, i, i + 1, made, vector), scales.at[i].set(scale)

    return lax.fori_loop(0, size - 1, step, (x, jnp.zeros(max(size - 1, 0), x.dtype)))


def hessenberg(x: Any) -> tuple[Any, Any]:
    """As ``jax.lax.linalg.hessenberg``: the reduced matrix with the vectors below it, and their scales."""
    return _of_each(_reduced, x)
