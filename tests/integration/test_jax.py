"""Programs of JAX's on nodes, processes of their own: what a call costs, loops, interrupts, nodes that die."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax = pytest.importorskip("jax")

import genie_jax
from jax import lax
from jax import numpy as jnp

import genie
from genie.errors import Cancelled, ExecutionTimedOut, UnsupportedOperation

from .conftest import MakeNode, Node
from .test_interrupts import interrupted

User = Callable[..., None]
LEAVES = 100


def update(parameters: Any, gradients: Any) -> Any:
    return jax.tree_util.tree_map(lambda p, g: p - 0.01 * g, parameters, gradients)


def tree(scale: float) -> dict[str, Any]:
    return {f"layer{i}": jnp.full(64, scale * i, jnp.float32) for i in range(LEAVES)}


def endless(x: Any) -> Any:
    return lax.while_loop(lambda c: c[0] > -1, lambda c: (c[0] + 1, jnp.sin(c[1])), (jnp.zeros(()), x))


def same(remote: Any, local: Any) -> None:
    far, near = jax.tree_util.tree_flatten(remote), jax.tree_util.tree_flatten(local)
    assert far[1] == near[1]
    for a, b in zip(far[0], near[0], strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)


def sent() -> int:
    return int(genie.get_stats()["bytes_sent"])


def test_a_steady_call_sends_its_plan_and_what_is_new(user: User, node: Node) -> None:
    user(node)
    step, parameters, gradients = genie_jax.remote(update, donate_argnums=0), tree(1.0), tree(0.1)
    for _ in range(3):
        parameters = step(parameters, gradients)
    before = sent()
    parameters = step(parameters, gradients)
    assert sent() - before < 64  # a frame, the plan's number, and that all is as expected
    before = sent()
    parameters = step(parameters, {**gradients, "layer7": gradients["layer8"]})
    assert sent() - before < 80  # one operand is another one
    row = np.ones(64, np.float32)
    before = sent()
    parameters = step(parameters, {**gradients, "layer7": row})
    assert row.nbytes < sent() - before < row.nbytes + 160  # one is sent
    same(parameters["layer1"], np.full(64, 1.0 - 6 * 0.001, np.float32))


def test_operands_are_sent_once_and_results_not_at_all(user: User, node: Node) -> None:
    user(node)
    weights = jnp.ones((64, 64))
    program = genie_jax.remote(lambda w, x: jnp.tanh(w @ x))
    x = program(weights, np.ones((64, 64), np.float32))
    before = sent()
    for _ in range(5):
        x = program(weights, x)
    assert sent() - before < 600
    assert np.isfinite(np.asarray(x)).all()


def test_what_has_no_elements_goes_and_comes(user: User, node: Node) -> None:
    user(node)
    made = genie_jax.remote(lambda x, y: (x[:, :2], y[:0]))(
        np.zeros((0, 3), np.float32), jnp.ones((2, 3), jnp.bfloat16)
    )
    assert [np.asarray(each).shape for each in made] == [(0, 2), (0, 3)]


def test_genie_run(user: User, node: Node) -> None:
    user(node)
    assert (
        float(genie.run(lambda x: lax.fori_loop(0, 5, lambda i, a: a + i, x), 1.0, frontend="jax", backend="tcp"))
        == 11.0
    )


def test_a_loop_runs_on_the_node(user: User, node: Node) -> None:
    """Nothing comes back between its turns."""
    user(node)
    count = genie_jax.remote(lambda x, n: lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * 1.5), (0, x)))
    count(np.float32(1), 3)
    asked = []
    for turns in (3, 500):
        before = genie.get_stats()["round_trips"]
        made, _ = count(np.float32(1), turns)
        assert int(made) == turns
        asked.append(genie.get_stats()["round_trips"] - before)
    assert asked[0] == asked[1]


def test_an_endless_loop_has_a_deadline(user: User, make_node: MakeNode) -> None:
    user(make_node("--execution-seconds", "0.5"))
    program = genie_jax.remote(endless, engine="aten")
    made = program(np.ones(3, np.float32))
    with pytest.raises(ExecutionTimedOut, match=r"in (condition|body), iteration \d+") as stopped:
        np.asarray(made[1])
    assert "test_jax.py" in str(stopped.value)
    same(genie_jax.remote(update)(tree(1.0), tree(0.1)), update(tree(1.0), tree(0.1)))


def test_an_endless_loop_is_cancelled(user: User, node: Node) -> None:
    user(node)
    made = genie_jax.remote(endless, engine="aten")(np.ones(3, np.float32))
    genie.cancel()
    with pytest.raises(Cancelled):
        np.asarray(made[1])
    same(genie_jax.remote(update)(tree(1.0), tree(0.1)), update(tree(1.0), tree(0.1)))


def test_interrupts_in_calls(user: User, node: Node) -> None:
    """Afterwards what is computed is right; what an interrupted call was given for good may be gone, and says so."""
    user(node)
    keep, give = genie_jax.remote(update), genie_jax.remote(update, donate_argnums=0)
    parameters, gradients = {"a": jnp.ones(5), "b": jnp.arange(3.0)}, {"a": jnp.ones(5), "b": np.ones(3, np.float32)}
    expected = update(update(parameters, gradients), gradients)
    same(keep(keep(parameters, gradients), gradients), expected)

    def work() -> None:
        jax.block_until_ready(give(keep(parameters, gradients), gradients))

    at = 0
    while interrupted(at, work):
        at += 1 + at // 16
        same(give(keep(parameters, gradients), gradients), expected)
    assert at > 20


def test_a_program_goes_on_on_another_node(user: User, make_node: MakeNode) -> None:
    first, second = make_node(), make_node()
    user(first, second, recovery=True, recovery_seconds=30.0)

    def step(parameters: Any, key: Any, x: Any) -> Any:
        key, drawn = jax.random.split(key)
        loss, slope = jax.value_and_grad(lambda p: ((x @ p - jax.random.normal(drawn, (4,))) ** 2).sum())(parameters)
        return parameters - 0.01 * slope, key, loss

    remote, local = genie_jax.remote(step, device=0, donate_argnums=(0, 1)), jax.jit(step)
    there = here = (jnp.ones((3, 4)), jax.random.key(1))
    there = jax.tree_util.tree_map(jnp.array, there)
    losses: list[tuple[float, float]] = []
    for number in range(8):
        x = np.random.default_rng(number).normal(size=(2, 3)).astype(np.float32)
        *there, far = remote(*there, x)
        *here, near = local(*here, x)
        if number == 4:
            first.stop()
        losses.append((float(far), float(near)))
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-5)
    assert genie.get_stats()["recoveries"] == 1


def test_on_several_nodes(user: User, make_node: MakeNode) -> None:
    user(make_node(), make_node())

    def program(layers: Any, x: Any) -> Any:
        for layer in layers:
            x = lax.scan(lambda c, row, layer=layer: (jnp.tanh(c @ layer) + row, c.sum()), x, x)[0]
        return x

    layers = [jnp.eye(8) * (i + 1) / 4 for i in range(4)]
    x = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    for device in (None, 0, 1):
        same(genie_jax.remote(program, device=device)(layers, x), program(layers, x))
    moved = genie_jax.remote(program, device=1)(layers, genie_jax.remote(program, device=0)(layers, x))
    same(moved, program(layers, program(layers, x)))


def test_threads_call_the_same_program(user: User, node: Node) -> None:
    user(node)
    program = genie_jax.remote(lambda x: lax.fori_loop(0, 4, lambda i, a: a * 2 + i, x))
    made: dict[int, float] = {}

    def call(number: int) -> None:
        made[number] = float(program(np.float32(number)))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert made == {number: number * 16.0 + 11 for number in range(6)}


def test_refusals_leave_nothing_behind(user: User, node: Node) -> None:
    user(node)
    program = genie_jax.remote(lambda x: (x * 2, jax.pure_callback(np.sin, x, x)))
    jax.block_until_ready(genie_jax.remote(update)(1.0, 2.0))
    before = sent()
    with pytest.raises(UnsupportedOperation, match="call back into Python"):
        program(np.ones(1000, np.float32))
    assert sent() - before < 100  # not the operand
