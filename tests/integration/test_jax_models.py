"""Models of flax, haiku and equinox, trained with optax on a node, beside JAX: losses, gradients, random bits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import genie_jax
from jax import numpy as jnp

from .conftest import Node

STEPS = 20
TOLERANCE = 1e-5
Loss = Callable[[Any, Any, Any, Any], Any]  # of parameters, a random key, inputs and labels


@pytest.fixture(autouse=True)
def connected(user: Callable[..., None], node: Node) -> Iterator[None]:
    user(node)
    return


def flax_transformer() -> tuple[Any, Loss, Any]:
    linen = pytest.importorskip("flax.linen")

    class Transformer(linen.Module):  # type: ignore[misc,name-defined]
        @linen.compact
        def __call__(self, ids: Any) -> Any:
            x = linen.Embed(16, 16)(ids)
            x = x + linen.MultiHeadDotProductAttention(num_heads=2, dropout_rate=0.1, deterministic=False)(
                linen.LayerNorm()(x), mask=linen.make_causal_mask(ids)
            )
            x = x + linen.Dense(16)(linen.gelu(linen.Dense(32)(linen.LayerNorm()(x))))
            return linen.Dense(4)(linen.LayerNorm()(x))[:, -1]

    model, ids = Transformer(), numbers((4, 9), 16)
    parameters = jax.jit(model.init)({"params": jax.random.key(0), "dropout": jax.random.key(1)}, ids)
    return parameters, lambda p, key, x, y: entropy(model.apply(p, x, rngs={"dropout": key}), y), ids


def haiku_lstm() -> tuple[Any, Loss, Any]:
    haiku = pytest.importorskip("haiku")

    def forward(x: Any) -> Any:
        core = haiku.LSTM(12)
        out, _ = haiku.dynamic_unroll(core, x, core.initial_state(x.shape[1]))
        return haiku.Linear(4)(haiku.dropout(haiku.next_rng_key(), 0.2, out[-1]))

    model, x = haiku.transform(forward), np.random.default_rng(0).normal(size=(7, 4, 5)).astype(np.float32)
    return jax.jit(model.init)(jax.random.key(0), x), lambda p, key, x, y: entropy(model.apply(p, key, x), y), x


def equinox_cnn() -> tuple[Any, Loss, Any]:
    equinox = pytest.importorskip("equinox")
    first, second = jax.random.split(jax.random.key(0))
    layers = [
        *(equinox.nn.Conv2d(3, 8, 3, key=first), equinox.nn.Lambda(jax.nn.relu), equinox.nn.MaxPool2d(2, 2)),
        *(equinox.nn.Lambda(jnp.ravel), equinox.nn.Dropout(0.2), equinox.nn.Linear(72, 4, key=second)),
    ]
    arrays, rest = equinox.partition(equinox.nn.Sequential(layers), equinox.is_array)
    x = images().transpose(0, 3, 1, 2)

    def loss(p: Any, key: Any, x: Any, y: Any) -> Any:
        model = equinox.combine(p, rest)
        return entropy(jax.vmap(lambda each, its: model(each, key=its))(x, jax.random.split(key, len(x))), y)

    return arrays, loss, x


def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)


def numbers(shape: tuple[int, ...], count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, count, shape).astype(np.int32)


def entropy(logits: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@pytest.mark.parametrize("make", [flax_transformer, haiku_lstm, equinox_cnn])
def test_training_is_jaxs(make: Callable[[], tuple[Any, Loss, Any]]) -> None:
    parameters, loss, x = make()
    labels = numbers((4,), 4)
    # The gradient of an attention's key bias is zero but for rounding, which a smaller epsilon would make a step of.
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(3e-3, STEPS), eps=1e-3)
    )

    def step(parameters: Any, state: Any, key: Any, x: Any) -> Any:
        key, drawn = jax.random.split(key)
        value, slopes = jax.value_and_grad(loss)(parameters, drawn, x, labels)
        updates, state = optimizer.update(slopes, state, parameters)
        return optax.apply_updates(parameters, updates), state, key, value

    start = (parameters, optimizer.init(parameters), jax.random.key(5))
    far = jax.tree_util.tree_map(jnp.array, start)
    near, losses = start, []
    remote, local = genie_jax.remote(step, donate_argnums=(0, 1, 2)), jax.jit(step)
    for _ in range(STEPS):
        *far, there = remote(*far, x)
        *near, here = local(*near, x)
        losses.append((float(there), float(here)))
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=TOLERANCE, atol=TOLERANCE)
    assert losses[-1][0] < losses[0][0]
    np.testing.assert_array_equal(jax.random.key_data(jnp.asarray(far[2])), jax.random.key_data(near[2]))
    close(far[0], near[0])
    # for each row of the batch on its own
    keys = jax.random.split(jax.random.key(9), 3)
    each = jax.vmap(jax.grad(loss), in_axes=(None, 0, None, None))
    close(
        genie_jax.remote(each)(parameters, keys, x, labels),
        jax.jit(each)(parameters, keys, x, labels),
    )


def close(remote: Any, local: Any) -> None:
    for a, b in zip(jax.tree_util.tree_leaves(remote), jax.tree_util.tree_leaves(local), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=TOLERANCE, atol=TOLERANCE)
