"""Random numbers, bit for bit JAX's.

What JAX makes of its hash functions is JAX's own decomposition; the usual ones of those are here, in few nodes.
Threefry and Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import jax
import numpy as np
import torch
from jax import lax
from jax._src.random import core as jax_random
from jax._src.random import philox2x32 as jax_philox2x32
from jax._src.random import prng as jax_prng
from jax._src.random import threefry4x32 as jax_threefry4x32

from genie.errors import UnsupportedOperation
from genie_jax import keys
from genie_jax.dtypes import torch_dtype
from genie_jax.rules import Equation, Tensor, rule

_MASK = 0xFFFFFFFF


def _words_of(aval: Any) -> Any:
    """The type of a key array's words."""
    return jax.ShapeDtypeStruct((*aval.shape, *keys.key_shape(aval.dtype)), np.uint32)


@rule("random_wrap")
def _wrap(here: Equation, words: Tensor, *, impl: Any) -> Tensor:
    return keys.of_words(words)


@rule("random_unwrap")
def _unwrap(here: Equation, x: Tensor) -> Tensor:
    return keys.words(x, here.taken[0].dtype)


@rule("random_clone")
def _clone(here: Equation, x: Tensor) -> Tensor:
    return x


@rule("random_seed")
def _seed(here: Equation, seeds: Tensor, *, impl: Any) -> Tensor:
    (words,) = here.of_jax(jax_prng.iterated_vmap_unary(seeds.ndim, impl.seed), seeds)
    return keys.of_words(words)


@rule("random_split")
def _split(here: Equation, x: Tensor, *, shape: Any) -> Tensor:
    (aval,) = here.taken
    split = jax_prng.iterated_vmap_unary(x.ndim, lambda key: aval.dtype._impl.split(key, shape))
    (words,) = here.of_jax(split, keys.words(x, aval.dtype), types=[_words_of(aval)])
    return keys.of_words(words)


@rule("random_fold_in")
def _fold_in(here: Equation, x: Tensor, data: Tensor) -> Tensor:
    aval, of_data = here.taken
    fold = jax_prng.iterated_vmap_binary_bcast(aval.shape, of_data.shape, aval.dtype._impl.fold_in)
    (words,) = here.of_jax(fold, keys.words(x, aval.dtype), data, types=[_words_of(aval), of_data])
    return keys.of_words(words)


@rule("random_bits")
def _bits(here: Equation, x: Tensor, *, bit_width: int, shape: Any) -> Sequence[Tensor]:
    (aval,) = here.taken
    bits = jax_prng.iterated_vmap_unary(x.ndim, lambda key: aval.dtype._impl.random_bits(key, bit_width, shape))
    return here.of_jax(bits, keys.words(x, aval.dtype), types=[_words_of(aval)])


@rule("random_gamma")
def _gamma(here: Equation, x: Tensor, alpha: Tensor, *, log_space: bool) -> Sequence[Tensor]:
    return here.of_jax(partial(jax_random._gamma_impl, log_space=log_space, use_vmap=True), x, alpha)


@rule("iota_2x32_shape")
def _iota_2x32(here: Equation, *, shape: Any) -> Sequence[Tensor]:
    count = torch.arange(prod(shape), dtype=torch.int64).reshape(tuple(shape))
    return (count >> 32).to(torch.int32), count.to(torch.int32)


@rule("threefry2x32")
def _threefry2x32(here: Equation, *operands: Tensor) -> Sequence[Tensor]:
    return threefry(*operands)


def threefry(key0: Tensor, key1: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """Threefry-2x32 of twenty rounds, of int32 that carry unsigned ones."""
    schedule = (key0, key1, torch.bitwise_xor(torch.bitwise_xor(key0, key1), 0x1BD11BDA))
    x0, x1 = torch.add(x0, key0), torch.add(x1, key1)
    for block in range(5):
        for by in ((13, 15, 26, 6), (17, 29, 16, 24))[block % 2]:
            x0 = torch.add(x0, x1)
            turned = torch.bitwise_or(x1 << by, torch.bitwise_and(x1 >> (32 - by), (1 << by) - 1))
            x1 = torch.bitwise_xor(x0, turned)
        x0 = torch.add(x0, schedule[(block + 1) % 3])
        x1 = torch.add(torch.add(x1, schedule[(block + 2) % 3]), block + 1)
    return x0, x1


@rule("threefry4x32")
def _threefry4x32(here: Equation, *operands: Tensor) -> Sequence[Tensor]:
    return here.of_jax(jax_threefry4x32._threefry4x32_lowering, *operands)


@rule("philox2x32")
def _philox2x32(here: Equation, *operands: Tensor) -> Sequence[Tensor]:
    return here.of_jax(jax_philox2x32._philox2x32_lowering, *operands)


@rule("philox4x32")
def _philox4x32(here: Equation, *operands: Tensor) -> Sequence[Tensor]:
    return philox(operands[2:], operands[:2])


def philox(words: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Philox-4x32 of ten rounds: four words of two keys', each int32 that carries an unsigned one."""
    x, (key0, key1) = list(words), key
    for number in range(10):
        if number:
            key0 = torch.add(key0, 0x9E3779B9 - (1 << 32))
            key1 = torch.add(key1, 0xBB67AE85 - (1 << 32))
        high0, low0 = _product(x[0], 0xD2511F53)
        high1, low1 = _product(x[2], 0xCD9E8D57)
        x = [
            torch.bitwise_xor(torch.bitwise_xor(high1, x[1]), key0),
            low1,
            torch.bitwise_xor(torch.bitwise_xor(high0, x[3]), key1),
            low0,
        ]
    return x


def _product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The high and the low word of a product."""
    wide = torch.mul(torch.bitwise_and(x.to(torch.int64), _MASK), factor)
    return (wide >> 32).to(torch.int32), wide.to(torch.int32)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high word of int64."""
    return x.to(torch.int32), (x >> 32).to(torch.int32)


def _joined(low: Tensor, high: Tensor) -> Tensor:
    return torch.bitwise_or(high.to(torch.int64) << 32, torch.bitwise_and(low.to(torch.int64), _MASK))


@rule("rng_bit_generator")
def _rng_bit_generator(
    here: Equation, key: Tensor, *, shape: Any, dtype: Any, algorithm: Any, out_sharding: Any
) -> Sequence[Tensor]:
    """As XLA expands it on a processor, where the algorithm that it calls its default is Philox."""
    dtype, shape = np.dtype(dtype), tuple(shape)
    state = key if key.dtype == torch.int64 else key.contiguous().view(torch.int64)
    by_threefry = algorithm == lax.RandomAlgorithm.RNG_THREE_FRY
    if dtype not in (np.uint8, np.uint16, np.uint32, np.uint64):
        raise UnsupportedOperation(f"random bits as {dtype}")
    wide = dtype.itemsize == 8
    following, made = _by_threefry(state, shape, wide) if by_threefry else _by_philox(state, shape, wide)
    after = torch.stack([state[0], following])
    return after if key.dtype == torch.int64 else after.view(torch.int32), made.to(torch_dtype(dtype))


def _by_threefry(state: Tensor, shape: tuple[int, ...], wide: bool) -> tuple[Tensor, Tensor]:
    """The state's second word counts. Of 32 bits, both words of a hash are used: the halves of one axis."""
    key = _halves(state[0])

    def hashed(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        count = torch.add(torch.arange(prod(sizes), dtype=torch.int64).reshape(sizes), state[1])
        return torch.add(state[1], prod(sizes)), *threefry(*key, *_halves(count))

    if wide:
        following, low, high = hashed(shape)
        return following, _joined(low, high)
    if not shape:
        following, first, _ = hashed((1,))
        return following, first.reshape(())
    even = [axis for axis, size in enumerate(shape) if size % 2 == 0]
    axis = even[0] if even else max(range(len(shape)), key=lambda each: (shape[each], -each))
    half = (shape[axis] + 1) // 2
    following, first, second = hashed((*shape[:axis], half, *shape[axis + 1 :]))
    both = torch.stack([first, second], axis + 1).reshape(*shape[:axis], 2 * half, *shape[axis + 1 :])
    return following, both.narrow(axis, 0, shape[axis])


def _by_philox(state: Tensor, shape: tuple[int, ...], wide: bool) -> tuple[Tensor, Tensor]:
    """A state of two words is the key, and the high word of a counter whose low word is the other."""
    size, each = prod(shape), 2 if wide else 4
    blocks = -(-size // each)
    low = torch.add(torch.arange(blocks, dtype=torch.int64), state[1])
    lowest = -(1 << 63)
    carried = torch.lt(torch.bitwise_xor(low, lowest), torch.bitwise_xor(state[1], lowest))
    high = torch.add(carried.to(torch.int64), state[0])
    words = philox([*_halves(low), *_halves(high)], _halves(state[0]))
    columns = [_joined(words[0], words[1]), _joined(words[2], words[3])] if wide else words
    made = torch.stack(columns, 1).reshape(-1).narrow(0, 0, size).reshape(shape)
    return torch.add(state[1], blocks), made
