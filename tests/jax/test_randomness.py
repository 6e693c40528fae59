"""Random numbers, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

from jax import lax

Same = Callable[..., None]


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_and_bits(same_as_jax: Same, implementation: str) -> None:
    def every(seed: Any) -> Any:
        key = jax.random.key(seed, impl=implementation)
        first, second = jax.random.split(key)
        several = jax.random.split(second, (2, 3))
        return (
            *(jax.random.key_data(each) for each in (key, first, several, jax.random.fold_in(first, 7))),
            *(jax.random.bits(first, (3, 5), each) for each in (np.uint8, np.uint16, np.uint32)),
            *(jax.random.uniform(several[1, 2], (4,)), jax.random.randint(first, (9,), 0, 100)),
            jax.random.permutation(second, 6),
        )

    same_as_jax(every, np.int32(42))


@pytest.mark.parametrize("implementation", ["philox2x32", "philox4x32", "threefry4x32"])
def test_keys_of_other_sizes(same_as_jax: Same, implementation: str) -> None:
    keys = jax.random.split(jax.random.key(42, impl=implementation))
    same_as_jax(lambda keys: jax.random.bits(keys[1], (3,)), keys)


def test_what_is_drawn_in_a_loop(same_as_jax: Same) -> None:
    """By rejection: as often as it takes."""

    def every(shape: Any) -> Any:
        return jax.random.gamma(jax.random.key(1), shape).sum()

    same_as_jax(jax.value_and_grad(every), np.array([0.2, 3.0, 20.0], np.float32), tolerance=1e-5)


def test_keys_come_and_go(same_as_jax: Same) -> None:
    keys = jax.random.split(jax.random.key(3), 4)
    same_as_jax(lambda keys: (jax.vmap(lambda key: jax.random.bits(key, (3,)))(keys), keys[1:], keys == keys[1]), keys)


@pytest.mark.parametrize("shape", [(), (5,), (4,), (3, 5), (3, 4, 6), (1,)])
@pytest.mark.parametrize("algorithm", list(lax.RandomAlgorithm))
def test_generated_bits(same_as_jax: Same, algorithm: Any, shape: tuple[int, ...]) -> None:
    def every(key: Any) -> Any:
        return [
            lax.rng_bit_generator(key, shape, dtype, algorithm) for dtype in (np.uint8, np.uint16, np.uint32, np.uint64)
        ]

    with jax.enable_x64(True):
        same_as_jax(every, np.array([1, 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF], np.uint32))
        same_as_jax(every, np.array([5, 0xFFFFFFFFFFFFFFFF], np.uint64))
