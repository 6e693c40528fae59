"""A flax transformer trained with optax, by a program of JAX's that runs on Genie's devices.

    python examples/06_jax.py
    GENIE_NODES=10.0.0.10:8888 python examples/06_jax.py

Without GENIE_NODES the device is this process itself (the local backend): nothing is started, nothing listens.
Parameters and the optimizer's state stay on the device from step to step, and each step takes over the memory of
those before it; this side sends tokens, and looks at the losses.
"""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # of the comparison

import flax.linen as nn
import genie_jax
import jax
import jax.numpy as jnp
import numpy as np
import optax

STEPS = 10


class Block(nn.Module):
    width: int
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mask = nn.make_causal_mask(x[..., 0])
        x = x + nn.MultiHeadDotProductAttention(num_heads=self.heads)(nn.LayerNorm()(x), mask=mask)
        return x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))


class LanguageModel(nn.Module):
    tokens: int = 64
    width: int = 32
    layers: int = 2

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = nn.Embed(self.tokens, self.width)(ids) + nn.Embed(128, self.width)(jnp.arange(ids.shape[-1]))
        for _ in range(self.layers):
            x = Block(self.width, heads=2)(x)
        return nn.Dense(self.tokens)(nn.LayerNorm()(x))


model = LanguageModel()
optimizer = optax.adamw(3e-3)


def train_step(parameters, state, ids):
    def loss_of(parameters):
        logits = model.apply(parameters, ids[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()

    loss, gradients = jax.value_and_grad(loss_of)(parameters)
    updates, state = optimizer.update(gradients, state, parameters)
    return optax.apply_updates(parameters, updates), state, loss


def train(step, batches):
    parameters = model.init(jax.random.key(0), batches[0][:, :-1])
    state = optimizer.init(parameters)
    losses = []
    for ids in batches:
        parameters, state, loss = step(parameters, state, ids)
        losses.append(loss)
    return [float(loss) for loss in losses]


def main() -> int:
    batches = [np.random.default_rng(i).integers(0, 64, (4, 17)).cumsum(1, dtype=np.int32) % 64 for i in range(STEPS)]
    remote = train(genie_jax.remote(train_step, donate_argnums=(0, 1)), batches)
    local = train(jax.jit(train_step), batches)
    for number, (there, here) in enumerate(zip(remote, local, strict=True), 1):
        print(f"step {number:2}   loss {there:.6f} remote   {here:.6f} local")
    furthest = max(abs(there - here) for there, here in zip(remote, local, strict=True))
    print("losses equal JAX's within 1e-5" if furthest < 1e-5 else f"LOSSES {furthest:.2g} FROM JAX'S")
    return 0 if furthest < 1e-5 else 1


if __name__ == "__main__":
    raise SystemExit(main())
