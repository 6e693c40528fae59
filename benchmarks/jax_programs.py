"""Programs in plain JAX for the benchmarks: a transformer language model and its training step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

VOCABULARY, WIDTH, HEADS, LAYERS, LENGTH, BATCH = 512, 256, 4, 4, 128, 4


def normal(generator: np.random.Generator, *shape: int, scale: float = 0.05) -> Any:
    return jnp.asarray((generator.normal(size=shape) * scale).astype(np.float32))


def lm_parameters(generator: np.random.Generator) -> Any:
    layer = {"qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH), "up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH)}
    layers = [
        {name: normal(generator, *shape) for name, shape in layer.items()}
        | {name: jnp.ones(WIDTH) for name in ("norm1", "norm2")}
        for _ in range(LAYERS)
    ]
    return {"embedding": normal(generator, VOCABULARY, WIDTH), "layers": layers, "norm": jnp.ones(WIDTH)}


def tokens(generator: np.random.Generator) -> np.ndarray:
    return generator.integers(0, VOCABULARY, (BATCH, LENGTH)).astype(np.int32)


def _normed(x: Any, weight: Any) -> Any:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * weight


def lm(parameters: Any, ids: Any) -> Any:
    """Logits [batch, length, vocabulary]."""
    batch, length = ids.shape
    x = parameters["embedding"][ids]
    mask = jnp.tril(jnp.ones((length, length), bool))
    for layer in parameters["layers"]:
        qkv = (_normed(x, layer["norm1"]) @ layer["qkv"]).reshape(batch, length, 3, HEADS, WIDTH // HEADS)
        q, k, v = (jnp.moveaxis(qkv[:, :, i], 1, 2) for i in range(3))
        scores = jnp.where(mask, q @ jnp.swapaxes(k, -1, -2) / np.sqrt(WIDTH // HEADS), -1e9)
        mixed = jnp.moveaxis(jax.nn.softmax(scores) @ v, 2, 1).reshape(batch, length, WIDTH)
        x = x + mixed @ layer["out"]
        x = x + jax.nn.gelu(_normed(x, layer["norm2"]) @ layer["up"]) @ layer["down"]
    return _normed(x, parameters["norm"]) @ parameters["embedding"].T


def loss(parameters: Any, ids: Any) -> Any:
    scored = jax.nn.log_softmax(lm(parameters, ids)[:, :-1])
    return -jnp.mean(jnp.take_along_axis(scored, ids[:, 1:, None], axis=-1))


def train(parameters: Any, momentum: Any, ids: Any) -> Any:
    """A step of gradient descent with momentum: parameters, momentum, loss."""
    value, gradients = jax.value_and_grad(loss)(parameters, ids)
    momentum = jax.tree_util.tree_map(lambda m, g: 0.9 * m + g, momentum, gradients)
    parameters = jax.tree_util.tree_map(lambda p, m: p - 0.01 * m, parameters, momentum)
    return parameters, momentum, value
