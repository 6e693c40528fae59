"""What smaller graphs are worth: JAX's programs recorded with and without leaving anything out, in turns.

    python benchmarks/bench_jax_graphs.py [--rounds N] [--width N] [--json FILE]

A flax transformer's forward pass, its gradient and a step of training with optax, in this process (the local backend),
beside ``jax.jit``. ``nodes`` are operators of the graph. Results of both are compared bit by bit, and with JAX's.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import flax.linen as nn
import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax

WORDS = 256


class Model(nn.Module):
    width: int

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = nn.Embed(WORDS, self.width)(ids) + nn.Embed(64, self.width)(jnp.arange(ids.shape[-1]))
        for _ in range(2):
            h, mask = nn.LayerNorm()(x), nn.make_causal_mask(ids)
            x = x + nn.MultiHeadDotProductAttention(num_heads=2)(h, mask=mask)
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(WORDS)(nn.LayerNorm()(x))


def programs(width: int) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    model, optimizer = Model(width), optax.sgd(1e-2, momentum=0.9)
    ids = np.random.default_rng(0).integers(0, WORDS, (2, 32)).astype(np.int32)
    parameters = model.init(jax.random.key(0), ids)

    def loss(parameters: Any, ids: jax.Array) -> jax.Array:
        scores = model.apply(parameters, ids)
        return optax.softmax_cross_entropy_with_integer_labels(scores[:, :-1], ids[:, 1:]).mean()

    def step(parameters: Any, state: Any, ids: jax.Array) -> Any:
        value, gradients = jax.value_and_grad(loss)(parameters, ids)
        updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state, value

    return {
        "forward": (model.apply, (parameters, ids)),
        "gradient": (jax.value_and_grad(loss), (parameters, ids)),
        "step": (step, (parameters, optimizer.init(parameters), ids)),
    }


def here(results: Any) -> list[np.ndarray]:
    return [np.asarray(each) for each in jax.tree_util.tree_leaves(results)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    import genie_jax
    from genie_jax import translate

    rows: list[dict[str, Any]] = []
    found: dict[str, Any] = {}
    for name, (function, args) in programs(options.width).items():
        small, local = genie_jax.remote(function, engine="aten"), jax.jit(function)
        whole = genie_jax.remote(lambda *args, function=function: function(*args), engine="aten")
        few, near = here(small(*args)), here(local(*args))
        simplified, translate.simplified = translate.simplified, lambda graph: graph
        try:
            many = here(whole(*args))
        finally:
            translate.simplified = simplified
        times = measure.in_turns(
            {
                "smaller": lambda: here(small(*args)),  # noqa: B023  (called within the turn)
                "as recorded": lambda: here(whole(*args)),  # noqa: B023
                "jax.jit": lambda: here(local(*args)),  # noqa: B023
            },
            options.rounds,
            warm=3,
        )
        nodes = {"smaller": len(small.latest.steps), "as recorded": len(whole.latest.steps)}
        rows += [
            {"what": name, "who": who, "nodes": nodes.get(who, 0), "ms": measure.milliseconds(times[who])}
            for who in times
        ]
        found[name] = {
            "nodes": nodes,
            "smaller": measure.ratio(times, "smaller", "as recorded"),
            "beside_jit": measure.ratio(times, "smaller", "jax.jit"),
            "same_bits": all(one.tobytes() == other.tobytes() for one, other in zip(few, many, strict=True)),
            "from_jax": max(float(np.abs(one - other).max()) for one, other in zip(few, near, strict=True)),
        }
    print(measure.table(rows))
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
