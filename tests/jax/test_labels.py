"""What the patterns, which know nothing of JAX, say of models written with its libraries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import genie
from genie.graph import Graph

pytest.importorskip("jax")

import jax
import jax.numpy as jnp
import numpy as np
from genie_jax.functions import Remote
from genie_jax.translate import to_graph

WIDTH, HEADS, WORDS, ROOM = 32, 2, 64, 24
IDS = np.zeros((3, 16), np.int32)


def recorded(function: Callable[..., Any], *args: Any) -> Graph:
    traced = Remote(function, lambda: pytest.fail("nothing runs here"), (), ()).traced(args, {})
    paths = jax.tree_util.tree_flatten_with_path(traced.args_info)[0]
    origins = [(jax.tree_util.keystr(path, simple=True, separator="."), "input") for path, _ in paths]
    return to_graph(traced.jaxpr, origins)[0]


def labelled(function: Callable[..., Any], *args: Any) -> Graph:
    return genie.annotate(recorded(function, *args))


def roles(graph: Graph) -> Counter[str]:
    """How many nodes have each role."""
    return Counter(node.semantics.role for node in graph.steps if node.semantics and node.semantics.role)


def residency(graph: Graph, name: str) -> set[str | None]:
    """Where inputs whose names begin so belong."""
    entries = [entry for entry in graph.inputs if entry.name.startswith(name)]
    assert entries
    return {graph.meanings[entry.value].residency for entry in entries}


def phases(graph: Graph) -> list[str | None]:
    return [call.phase for call in genie.summary(graph).calls]


# --- models


def flax_model() -> tuple[Callable[..., Any], Any]:
    nn = pytest.importorskip("flax.linen")

    class Model(nn.Module):
        @nn.compact
        def __call__(self, ids: jax.Array) -> jax.Array:
            x = nn.Embed(WORDS, WIDTH)(ids) + nn.Embed(ROOM, WIDTH)(jnp.arange(ids.shape[-1]))
            for _ in range(2):
                mask = nn.make_causal_mask(ids)
                x = x + nn.MultiHeadDotProductAttention(num_heads=HEADS)(nn.LayerNorm()(x), mask=mask)
                x = x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x))))
            return nn.Dense(WORDS)(nn.LayerNorm()(x))

    model = Model()
    return model.apply, model.init(jax.random.key(0), IDS)


def haiku_model() -> tuple[Callable[..., Any], Any]:
    hk = pytest.importorskip("haiku")

    def forward(ids: jax.Array) -> jax.Array:
        x, mask = hk.Embed(WORDS, WIDTH)(ids), jnp.tril(jnp.ones((1, 1, ids.shape[1], ids.shape[1])))
        for _ in range(2):
            h = hk.LayerNorm(-1, True, True)(x)
            start = hk.initializers.VarianceScaling(1.0)
            x = x + hk.MultiHeadAttention(HEADS, WIDTH // HEADS, w_init=start, model_size=WIDTH)(h, h, h, mask=mask)
            x = x + hk.Linear(WIDTH)(jax.nn.gelu(hk.Linear(4 * WIDTH)(hk.LayerNorm(-1, True, True)(x))))
        return hk.Linear(WORDS)(hk.LayerNorm(-1, True, True)(x))

    model = hk.without_apply_rng(hk.transform(forward))
    return model.apply, model.init(jax.random.key(0), IDS)


def equinox_model() -> tuple[Callable[..., Any], Any]:
    eqx = pytest.importorskip("equinox")
    keys = iter(jax.random.split(jax.random.key(0), 16))
    blocks = [
        (
            eqx.nn.LayerNorm(WIDTH),
            eqx.nn.MultiheadAttention(HEADS, WIDTH, key=next(keys)),
            eqx.nn.LayerNorm(WIDTH),
            eqx.nn.Linear(WIDTH, 4 * WIDTH, key=next(keys)),
            eqx.nn.Linear(4 * WIDTH, WIDTH, key=next(keys)),
        )
        for _ in range(2)
    ]
    ends = (
        eqx.nn.Embedding(WORDS, WIDTH, key=next(keys)),
        eqx.nn.LayerNorm(WIDTH),
        eqx.nn.Linear(WIDTH, WORDS, key=next(keys)),
    )
    arrays, rest = eqx.partition((blocks, ends), eqx.is_array)

    def apply(arrays: Any, ids: jax.Array) -> jax.Array:
        blocks, (embedding, norm, head) = eqx.combine(arrays, rest)

        def one(ids: jax.Array) -> jax.Array:
            x, mask = jax.vmap(embedding)(ids), jnp.tril(jnp.ones((ids.shape[0],) * 2, bool))
            for first, attention, second, up, down in blocks:
                h = jax.vmap(first)(x)
                x = x + attention(h, h, h, mask=mask)
                x = x + jax.vmap(lambda v, up=up, down=down: down(jax.nn.gelu(up(v))))(jax.vmap(second)(x))
            return jax.vmap(head)(jax.vmap(norm)(x))

        return jax.vmap(one)(ids)

    return apply, arrays


@pytest.mark.parametrize("library", [flax_model, haiku_model, equinox_model])
def test_a_transformer(library):
    apply, parameters = library()
    graph = labelled(apply, parameters, IDS)
    found = roles(graph)
    once = ("attention_query", "attention_key", "attention_value", "causal_attention", "mlp_up", "mlp_down")
    assert {role: found[role] for role in once} == dict.fromkeys(once, 2)
    assert found["residual"] == 4
    assert found["embedding"] == found["lm_head"] == 1
    assert found["attention_softmax"] and found["mlp_activation"] and found["norm"] >= 5 * 5
    assert (genie.summary(graph).workload, phases(graph)) == ("language_model", ["prefill"])
    assert residency(graph, "0.0") == {"weight"}
    assert residency(graph, "0.1") == {"input"}


def test_names_decide_nothing():
    """The same graph without modules, names and lines is labelled the same."""
    apply, parameters = flax_model()
    graph = recorded(apply, parameters, IDS)
    from msgspec.structs import replace

    bare = replace(
        graph,
        modules=(),
        sources=(),
        inputs=tuple(replace(entry, name="") for entry in graph.inputs),
        steps=tuple(replace(node, module=-1, source=-1) for node in graph.steps),
    )
    assert roles(genie.annotate(bare)) == roles(genie.annotate(graph))


# --- caches


def decoder(parameters: Any, ids: jax.Array, caches: Any, position: jax.Array, at: bool) -> Any:
    def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * scale

    x, kept = parameters["words"][ids], []
    for p, (keys, values) in zip(parameters["layers"], caches, strict=True):
        h = norm(x, p["before"])
        q, k, v = ((h @ p[name]).reshape(*ids.shape, HEADS, -1) for name in "qkv")
        if at:
            keys, values = keys.at[:, position].set(k[:, 0]), values.at[:, position].set(v[:, 0])
        else:
            keys, values = (
                jax.lax.dynamic_update_slice(old, new, (0, position, 0, 0)) for old, new in ((keys, k), (values, v))
            )
        scores = jnp.einsum("bthd,bshd->bhts", q, keys) / 4
        seen = jnp.arange(ROOM)[None] <= position + jnp.arange(ids.shape[1])[:, None]
        shares = jax.nn.softmax(jnp.where(seen, scores, -1e9))
        x = x + jnp.einsum("bhts,bshd->bthd", shares, values).reshape(x.shape) @ p["o"]
        h = norm(x, p["after"])
        x = x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]
        kept.append((keys, values))
    return norm(x, parameters["end"]) @ parameters["head"], kept


def decoding(length: int) -> tuple[Any, ...]:
    def weight(*shape: int) -> jax.Array:
        return jnp.full(shape, 0.01) + jnp.arange(shape[-1])

    square = {name: weight(WIDTH, WIDTH) for name in "qkvo"}
    layer = square | {"gate": weight(WIDTH, 80), "up": weight(WIDTH, 80), "down": weight(80, WIDTH)}
    layers = [layer | {"before": weight(WIDTH), "after": weight(WIDTH)} for _ in range(2)]
    parameters = {"words": weight(WORDS, WIDTH), "head": weight(WIDTH, WORDS), "end": weight(WIDTH), "layers": layers}
    caches = [(jnp.zeros((1, ROOM, HEADS, WIDTH // HEADS)),) * 2 for _ in layers]
    return parameters, np.zeros((1, length), np.int32), caches, np.int32(5)


@pytest.mark.parametrize("at", [False, True], ids=["dynamic_update_slice", "at set"])
def test_a_step_with_a_cache(at):
    graph = labelled(lambda *args: decoder(*args, at), *decoding(1))
    assert (genie.summary(graph).workload, phases(graph)) == ("language_model", ["decode"])
    found = roles(graph)
    assert found["kv_append"] == 4
    assert found["mlp_gate"] == found["mlp_up"] == found["mlp_down"] == found["causal_attention"] == 2
    assert residency(graph, "0.2") == {"kv_cache"}
    assert residency(graph, "0.0") == {"weight"}


def test_many_positions_into_a_cache_are_a_prefill():
    graph = labelled(lambda *args: decoder(*args, False), *decoding(6))
    assert phases(graph) == ["prefill"]
    assert residency(graph, "0.2") == {"kv_cache"}


@pytest.mark.parametrize("loop", ["scan", "while"])
def test_a_cache_that_a_loop_carries(loop):
    def generate(parameters: Any, ids: jax.Array, caches: Any, position: jax.Array) -> Any:
        def turn(carried: Any) -> Any:
            ids, caches, position = carried
            scores, caches = decoder(parameters, ids, caches, position, False)
            return jnp.argmax(scores, -1).astype(jnp.int32), caches, position + 1

        start = (ids, caches, position)
        if loop == "while":
            return jax.lax.while_loop(lambda carried: carried[2] < ROOM, turn, start)
        return jax.lax.scan(lambda carried, _: (turn(carried), carried[0]), start, length=4)

    graph = labelled(generate, *decoding(1))
    (node,) = [node for node in graph.nodes() if node.operation.startswith("genie::")]
    assert node.semantics.phase == "decode"
    assert genie.summary(graph).workload == "language_model"
    assert residency(graph, "0.2") == {"kv_cache"}
    assert residency(graph, "0.0") == {"weight"}
    assert [graph.meanings[value].residency for value in node.outputs[1:5]] == ["kv_cache"] * 4
    body = node.regions[-1]
    assert roles(body)["kv_append"] == 4
    assert Counter(each.semantics.phase for each in body.steps)["decode"] > len(body.steps) / 2


def test_layers_in_a_scan_are_no_recurrence():
    weights = {"up": jnp.ones((4, WIDTH, 64)), "down": jnp.ones((4, 64, WIDTH))}

    def deep(weights: Any, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, p: (x + jax.nn.gelu(x @ p["up"]) @ p["down"], None), x, weights)[0]

    graph = labelled(deep, weights, jnp.ones((2, 8, WIDTH)))
    assert residency(graph, "0.0") == {"weight"}
    assert residency(graph, "0.1") == {"input"}
    assert roles(graph.regions[0])["mlp_up"] == roles(graph.regions[0])["mlp_down"] == 1


def test_a_recurrent_network():
    nn = pytest.importorskip("flax.linen")

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(4)(nn.RNN(nn.LSTMCell(8))(x))

    x = jnp.ones((2, 6, 5))
    graph = labelled(Model().apply, Model().init(jax.random.key(0), x), x)
    assert genie.summary(graph).workload == "recurrent"
    (body,) = graph.regions
    states = [body.meanings[entry.value].residency for entry in body.inputs]
    assert states[:2] == ["recurrent_state"] * 2
    assert "weight" in states


# --- pictures and training


def test_a_network_of_convolutions():
    nn = pytest.importorskip("flax.linen")

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x)))
            for features, stride in ((8, 1), (16, 2)):
                y = nn.Conv(features, (3, 3), (stride, stride), use_bias=False)(x)
                y = nn.relu(nn.BatchNorm(use_running_average=True)(y))
                y = nn.BatchNorm(use_running_average=True)(nn.Conv(features, (3, 3), use_bias=False)(y))
                x = nn.relu(y + (x if stride == 1 else nn.Conv(features, (1, 1), (2, 2))(x)))
            return nn.Dense(10)(x.mean((1, 2)))

    x = jnp.ones((2, 16, 16, 3))
    graph = labelled(Model().apply, Model().init(jax.random.key(0), x), x)
    found = roles(graph)
    assert (genie.summary(graph).workload, phases(graph)) == ("vision", ["vision_encode"])
    assert found["conv_stem"] + found["conv"] + found["downsample"] == 6
    assert found["norm"] >= 5 * 4
    assert residency(graph, "0.0") == {"weight"}


def test_a_step_of_training():
    optax = pytest.importorskip("optax")
    apply, parameters = flax_model()
    optimizer = optax.adamw(1e-3)

    def step(parameters: Any, state: Any, ids: jax.Array) -> Any:
        def loss(parameters: Any) -> jax.Array:
            scores = apply(parameters, ids)
            return optax.softmax_cross_entropy_with_integer_labels(scores[:, :-1], ids[:, 1:]).mean()

        value, gradients = jax.value_and_grad(loss)(parameters)
        updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state, value

    graph = labelled(step, parameters, optimizer.init(parameters), IDS)
    said = genie.summary(graph)
    assert (said.workload, said.training) == ("language_model", True)
    counted = Counter(node.semantics.phase for node in graph.steps)
    assert min(counted["forward"], counted["backward"], counted["optimizer"]) > 100
    assert residency(graph, "0.0") == {"weight"}
    assert residency(graph, "0.1.0.mu") == residency(graph, "0.1.0.nu") == {"recurrent_state"}
    forward = [node for node in graph.steps if node.semantics.phase == "forward"]
    assert Counter(node.semantics.role for node in forward)["causal_attention"] == 2
    last = [node for node in graph.nodes() if set(node.outputs) & set(graph.outputs[:4])]
    assert {node.semantics.phase for node in last} == {"optimizer"}


def test_paths_of_modules():
    def inner(x: jax.Array) -> jax.Array:
        with jax.named_scope("block"), jax.named_scope("up/left"):
            return jnp.tanh(jnp.einsum("ij,j->i", jnp.ones((3, 3)), x))

    graph = recorded(jax.grad(lambda x: jax.vmap(inner)(x).sum()), jnp.ones((2, 3)))
    assert {module.path for module in graph.modules} == {"block.up.left"}
    backward = [node.semantics is not None and node.semantics.phase == "backward" for node in graph.steps]
    assert any(backward) and not all(backward)


def test_classes_of_modules():
    eqx = pytest.importorskip("equinox")
    layer = eqx.nn.MLP(4, 4, 8, 1, key=jax.random.key(0))
    graph = recorded(lambda x: layer(x), jnp.ones(4))
    assert ("MLP.Linear", "Linear") in [(module.path, module.type) for module in graph.modules]
