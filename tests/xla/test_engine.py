"""Programs run by XLA on a node, beside JAX here: bit for bit where both compile the same program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
pytest.importorskip("jaxlib")

import genie_jax
import jax
import jax.numpy as jnp
from xla.nodes import Node

import genie
from genie import api
from genie.compilers import Program
from genie.device import Device
from genie.engines import DeviceEngine
from genie.errors import ConfigError, GenieError, OutOfMemory, SchedulingError, UnsupportedOperation
from genie.graph import Artifact

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(6, 8)).astype(np.float32)
W = GENERATOR.normal(size=(8, 8)).astype(np.float32)
IMAGE = GENERATOR.normal(size=(2, 8, 8, 3)).astype(np.float32)
KERNEL = GENERATOR.normal(size=(3, 3, 3, 4)).astype(np.float32)
KEY = jax.random.PRNGKey(3)


def summed(carry: Any, row: Any) -> Any:
    return carry + row, carry * row


FAMILIES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "products": (lambda x, w: (jnp.tanh(x @ w), jnp.einsum("ij,kj->ik", x, x)), (X, W)),
    "convolution": (
        lambda x, k: jax.lax.conv_general_dilated(x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
        (IMAGE, KERNEL),
    ),
    "elementwise": (lambda x: (jnp.sin(x), jax.nn.gelu(x), jnp.sqrt(jnp.abs(x)), x > 0), (X,)),
    "reductions": (lambda x: (x.sum(0), x.max(), jnp.argmin(x, 1), jnp.cumsum(x, 1)), (X,)),
    "order": (lambda x: (jnp.sort(x, 1), jnp.argsort(x[0]), jax.lax.top_k(x, 3)), (X,)),
    "indexing": (
        lambda x, i: (x[i], x.at[i].add(1.0), jax.lax.dynamic_slice(x, (i[0], 2), (2, 3))),
        (X, np.array([1, 3])),
    ),
    "linear algebra": (
        lambda w: (jnp.linalg.cholesky(w @ w.T + 8 * jnp.eye(8)), jnp.linalg.svd(w), jnp.linalg.solve(w, w.T)),
        (W,),
    ),
    "unsigned": (lambda n: (n + 1, n >> 3, n.astype(jnp.uint8), jnp.uint16(n)), (np.array([1, 2**32 - 1], np.uint32),)),
    "random bits": (lambda k: (jax.random.bits(k, (5,)), jax.random.split(k), jax.random.normal(k, (3,))), (KEY,)),
    "typed keys": (lambda k: jax.random.uniform(jax.random.wrap_key_data(k), (4,)), (KEY,)),
    "small types": (lambda x: (x.astype(jnp.bfloat16), x.astype(jnp.float16), x.astype(jnp.int8)), (X,)),
    "complex": (lambda x: (jnp.fft.fft(x), jnp.fft.rfft2(x), jnp.abs(x + 1j)), (X,)),
    "loops": (
        lambda x: (
            jax.lax.scan(summed, x[0], x),
            jax.lax.fori_loop(0, 5, lambda i, c: c * 1.5, x),
        ),
        (X,),
    ),
    "branches": (lambda x: jax.lax.cond(x[0, 0] > 0, lambda v: v + 1, lambda v: v * 2, x), (X,)),
    "gradients": (lambda x, w: jax.grad(lambda v: jnp.sum(jnp.tanh(x @ v) ** 2))(w), (X, W)),
    "no operands": (lambda: jnp.arange(4), ()),
    "empty": (lambda x: (x[:0], x[:, :0].sum(1)), (X,)),
    "an operand as it is": (lambda x, n: (x, n + 1), (X, np.int32(3))),
    "a constant": (lambda x: x @ jnp.asarray(W) + np.float32(2), (X,)),
}


def same(made: Any, expected: Any, tolerance: float = 0.0) -> None:
    far, near = jax.tree_util.tree_flatten(made), jax.tree_util.tree_flatten(expected)
    assert far[1] == near[1]
    for there, here in zip(far[0], near[0], strict=True):
        assert (there.dtype, there.shape) == (here.dtype, here.shape)
        a, b = np.asarray(there).astype(np.complex128), np.asarray(here).astype(np.complex128)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_xla_makes_of_a_program_is_what_jax_makes(node: Node, family: str) -> None:
    function, operands = FAMILIES[family]
    remote = genie_jax.remote(function, engine="xla")
    same(remote(*operands), jax.jit(function)(*operands), 1e-6 if family in ("linear algebra", "complex") else 0.0)
    assert remote.latest is not None and remote.latest.artifacts[0].required
    assert genie.get_stats()["steps"] == 1


def test_both_engines_agree(node: Node) -> None:
    def step(w: Any, x: Any) -> Any:
        loss, gradient = jax.value_and_grad(lambda v: jnp.mean((jax.nn.softmax(x @ v) - x) ** 2))(w)
        return w - 0.1 * gradient, loss

    by_xla, by_aten = (genie_jax.remote(step, engine=engine) for engine in ("xla", "aten"))
    one, other = jnp.asarray(W), jnp.asarray(W)
    for _ in range(3):
        one, first = by_xla(one, X)
        other, second = by_aten(other, X)
        same((one, first), (other, second), 1e-5)


def test_values_stay_and_donated_ones_go(node: Node) -> None:
    step = genie_jax.remote(lambda w, x: (w + x.sum(), w.sum()), donate_argnums=(0,), engine="xla")
    w, total = step(jnp.asarray(W), X)
    before = genie.get_stats()["memory_bytes"]
    for _ in range(3):
        w, total = step(w, X)
        total.block_until_ready()
    assert genie.get_stats()["memory_bytes"] <= before + X.nbytes
    np.testing.assert_allclose(float(total), float((W + 3 * X.sum()).sum()), rtol=1e-5)


def test_a_call_after_the_first_sends_little(node: Node) -> None:
    program = genie_jax.remote(lambda w: w * 2, engine="xla")
    w = program(program(jnp.ones(1000)))
    before = genie.get_stats()["bytes_sent"]
    for _ in range(10):
        w = program(w)
    w.block_until_ready()
    assert genie.get_stats()["bytes_sent"] - before < 1000


def test_large_constants_travel_apart_from_the_program(node: Node) -> None:
    table = jnp.asarray(GENERATOR.normal(size=(256, 256)).astype(np.float32))
    program = genie_jax.remote(lambda x: x @ table, engine="xla")
    same(program(table), jax.jit(lambda x: x @ table)(table))
    assert program.latest is not None
    assert len(program.latest.artifacts[0].data) < 10_000


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x * W, x * W.T),
        lambda x: (x * W, x * W[::-1]),
        lambda x: (x * W, x * W.view(np.int32)),
        lambda x: (x * W.view(np.int32), x * W.view(np.uint32)),
    ],
    ids=["transposed", "reversed", "bits", "signs"],
)
def test_constants_that_share_their_memory_are_not_taken_for_each_other(
    node: Node, function: Callable[..., Any]
) -> None:
    ones = np.ones((8, 8), np.float32)
    same(genie_jax.remote(function, engine="xla")(ones), jax.jit(function)(ones))


def test_a_remote_program_within_another_is_compiled_with_it(node: Node) -> None:
    def inner(row: Any) -> Any:
        return jnp.sin(row) * 2

    def outer(row: Any) -> Callable[[Any], Any]:
        return lambda x: jax.lax.scan(lambda carry, each: (carry + row(each), row(carry)), x[0], x)

    made = genie_jax.remote(outer(genie_jax.remote(inner)), engine="xla")(X)
    same(made, jax.jit(outer(inner))(X))


def test_memory_is_asked_for_before_it_runs(compiler: Any) -> None:
    node = Node({"xla": compiler}, memory_limit_gb=1 / 1024)
    try:
        many = genie_jax.remote(lambda x: jnp.broadcast_to(x, (1 << 20,)) * 2, engine="xla")
        with pytest.raises(OutOfMemory, match=r"needs .* of the session's"):
            np.asarray(many(jnp.ones(())))
        same(genie_jax.remote(lambda x: x + 1, engine="xla")(jnp.ones(3)), jnp.full(3, 2.0))
    finally:
        node.close()


def test_a_node_without_the_engine() -> None:
    node = Node({})
    try:
        with pytest.raises(SchedulingError, match="has no engine for that"):
            genie_jax.remote(lambda x: x + 1, engine="xla")(X)
        same(genie_jax.remote(lambda x: x + 1)(X), X + 1)
    finally:
        node.close()


class Refusing:
    """A compiler that offers itself, and makes nothing."""

    name = "xla"
    kinds = ("stablehlo/1",)

    def __init__(self) -> None:
        self.asked = 0

    def serves(self, device: Device) -> bool:
        return True

    def compile(self, artifact: Artifact, device: Device, *, bounded: bool) -> Program:
        self.asked += 1
        raise UnsupportedOperation("this node reads an older StableHLO")

    def close(self) -> None: ...


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Refusing]:
    from genie.schedule import compiled

    monkeypatch.setattr(compiled, "_COMPILE", 0.0)  # else nothing so small would be compiled
    monkeypatch.setattr(compiled, "_COMPILE_STEP", 0.0)
    monkeypatch.setattr(compiled, "_CALL", 0.0)
    monkeypatch.setattr(compiled, "_PASSED", 0.0)
    made = Refusing()
    node = Node({"xla": made})
    yield made
    node.close()


def test_what_is_not_compiled_runs_step_by_step_unless_it_must_be(refusing: Refusing) -> None:
    same(genie_jax.remote(lambda x: jnp.sin(x) + 1)(X), jnp.sin(X) + 1, 1e-6)
    assert refusing.asked == 1
    with pytest.raises(GenieError, match="older StableHLO"):
        np.asarray(genie_jax.remote(lambda x: x + 1, engine="xla")(X))


def test_a_program_that_a_node_refuses_takes_nothing(refusing: Refusing) -> None:
    step = genie_jax.remote(lambda x: x + 1, donate_argnums=0, engine="xla")
    mine, remote = jnp.asarray(X), genie_jax.remote(lambda x: x * 1, engine="aten")(X)
    for given in (mine, remote, mine):
        with pytest.raises(GenieError, match="older StableHLO"):
            step(given)
        assert not given.is_deleted()
        same(given, X)
    same(genie_jax.remote(lambda x: x + 1, donate_argnums=0, engine="aten")(remote), X + 1)


def test_loops_are_not_compiled_where_executions_end_in_time(compiler: Any) -> None:
    node = Node({"xla": compiler}, bounded=True, execution_seconds=5.0)
    try:
        looping = genie_jax.remote(lambda x: jax.lax.scan(summed, x[0], x)[0], engine="xla")
        with pytest.raises(GenieError, match="loops"):
            np.asarray(looping(X))
        same(genie_jax.remote(lambda x: x + 1, engine="xla")(X), X + 1)
    finally:
        node.close()


@pytest.mark.parametrize("engine", ["XLA", "cuda", ""])
def test_engines_have_names(engine: str) -> None:
    with pytest.raises(ConfigError, match="there is no engine"):
        genie_jax.remote(lambda x: x, engine=engine)


def deep(x: Any) -> Any:
    """Some thousand small operators, which cost their calls."""
    for _ in range(1000):
        x = x * 0.999 + 0.001
    return x


def test_the_cost_decides_and_explains(node: Node) -> None:
    engine = api.engine(None, backend=None)
    assert isinstance(engine, DeviceEngine)
    small, large = genie_jax.remote(lambda x: x + 1), genie_jax.remote(deep)
    small(X), large(X)
    assert small.latest is not None and large.latest is not None
    chosen = [engine._scheduler.schedule(program.latest) for program in (small, large)]
    assert [plan.engine.name for plan in chosen if plan.engine is not None] == ["", "xla"]
    assert "engine step by step:" in chosen[0].text()
    assert "compiled from stablehlo/1" in str(chosen[1].explain(0))
    same(large(X), jax.jit(deep)(X))
