"""Small models as graphs, written operator by operator with the modules they would have: what golden texts are of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from core.programs import Program

from genie.graph import Evidence, Graph, Many, Module, Ref, ScalarTensor, Semantics


class Model(Program):
    """A program whose operators are issued in modules."""

    def __init__(self) -> None:
        super().__init__()
        self.modules: dict[Module, int] = {}
        self.here = -1
        self.phase: str | None = None

    @contextmanager
    def module(self, path: str, kind: str) -> Iterator[None]:
        before, self.here = self.here, self.modules.setdefault(Module(path, kind), len(self.modules))
        yield
        self.here = before

    @contextmanager
    def training(self, phase: str) -> Iterator[None]:
        self.phase = phase
        yield
        self.phase = None

    def _place(self) -> None:
        node = self.steps.pop()
        semantics = None
        if self.phase is not None:
            why = Evidence("phase", "framework", f"recorded in the {self.phase} pass")
            semantics = Semantics(phase=self.phase, evidence=(why,))
        self.steps.append(msgspec.structs.replace(node, module=self.here, semantics=semantics))

    def op(self, name: str, *args: Any, **more: Any) -> int:
        made = super().op(name, *args, **more)
        self._place()
        return made

    def write(self, name: str, *args: Any) -> None:
        super().write(name, *args)
        self._place()

    def graph(self, *outputs: int) -> Graph:
        return msgspec.structs.replace(super().graph(*outputs), modules=tuple(self.modules))

    # --- what models are made of

    def same(self, name: str, *operands: int, shape: tuple[int, ...] = ()) -> int:
        return self.op(name, *map(Ref, operands), shape=shape or self.values[operands[0]].shape)

    def view(self, x: int, *shape: int) -> int:
        return self.op("view", Ref(x), Many(shape), shape=shape, view=True)

    def product(self, path: str, x: int, out: int) -> int:
        *front, wide = self.values[x].shape
        with self.module(path, "Linear"):
            args = Ref(x), Ref(self.weight(out, wide)), Ref(self.weight(out))
            return self.op("linear", *args, shape=(*front, out))

    def norm(self, path: str, x: int) -> int:
        wide = self.values[x].shape[-1]
        with self.module(path, "LayerNorm"):
            args = (Ref(x), Many((wide,)), Ref(self.weight(wide)), Ref(self.weight(wide)), 1e-5)
            return self.op("layer_norm", *args, shape=self.values[x].shape)

    def heads(self, path: str, x: int, heads: int) -> int:
        batch, length, wide = self.values[x].shape
        y = self.view(self.product(path, x, wide), batch, length, heads, wide // heads)
        return self.op("transpose", Ref(y), 1, 2, shape=(batch, heads, length, wide // heads), view=True)

    def attend(self, path: str, x: int, other: int, heads: int = 2, causal: bool = False) -> int:
        """Attention of ``x`` to ``other``, projected back."""
        with self.module(path, "Attention"):
            q = self.heads(f"{path}.query", x, heads)
            k, v = self.heads(f"{path}.key", other, heads), self.heads(f"{path}.value", other, heads)
            args = (*map(Ref, (q, k, v)), None, 0.0, causal)
            y = self.op("scaled_dot_product_attention", *args, shape=self.values[q].shape)
            flat = self.op("reshape", Ref(y), shape=self.values[x].shape)
        return self.product(f"{path}.out", flat, self.values[x].shape[-1])

    def block(self, path: str, x: int, other: int = -1, causal: bool = False) -> int:
        """Attention and an MLP, each with a norm before and a sum behind it."""
        wide = self.values[x].shape[-1]
        with self.module(path, "Block"):
            y = self.norm(f"{path}.norm1", x)
            y = self.attend(f"{path}.attention", y, y if other < 0 else other, causal=causal)
            x = self.same("add", x, y)
            y = self.same("gelu", self.product(f"{path}.up", self.norm(f"{path}.norm2", x), 2 * wide))
            return self.same("add", x, self.product(f"{path}.down", y, wide))

    def convolution(self, path: str, x: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> int:
        batch, wide, *size = self.values[x].shape
        weight = self.weight(out, wide // groups, kernel, kernel)
        pair = Many((stride, stride)), Many(((kernel - 1) // 2,) * 2)
        shape = (batch, out, *(each // stride for each in size))
        with self.module(path, "Conv2d"):
            args = (Ref(x), Ref(weight), None, *pair, Many((1, 1)), False, Many((0, 0)), groups)
            return self.op("convolution", *args, shape=shape)

    def larger(self, x: int) -> int:
        batch, wide, high, broad = self.values[x].shape
        shape = (batch, wide, 2 * high, 2 * broad)
        return self.op("upsample_nearest2d", Ref(x), Many(shape[2:]), None, None, shape=shape)

    def pooled(self, x: int) -> int:
        batch, wide, *_ = self.values[x].shape
        return self.op("mean", Ref(x), Many((-1, -2)), False, None, shape=(batch, wide))

    def words(self, length: int, wide: int = 16, vocabulary: int = 50, path: str = "words") -> int:
        ids = self.input((1, length), "int64", origin="input", name="ids")
        with self.module(path, "Embedding"):
            return self.op("embedding", Ref(self.weight(vocabulary, wide)), Ref(ids), shape=(1, length, wide))

    def patches(self, wide: int = 16, path: str = "eye.cut") -> int:
        """A picture of 16×16, cut into four."""
        x = self.input((1, 3, 16, 16), origin="input", name="picture")
        y = self.op("flatten", Ref(self.convolution(path, x, wide, 8, 8)), 2, shape=(1, wide, 4), view=True)
        return self.op("transpose", Ref(y), 1, 2, shape=(1, 4, wide), view=True)

    def sinusoid(self, wide: int = 8) -> int:
        """What a time, an input, becomes by sines and cosines."""
        time = self.input((1,), "int64", origin="input", name="time")
        counted = self.op("arange", wide // 2, shape=(wide // 2,))
        rate = self.same("exp", self.op("mul", Ref(counted), ScalarTensor("float64", -2.3, True), shape=(wide // 2,)))
        number = self.op("_to_copy", Ref(self.view(time, 1, 1)), shape=(1, 1))
        angle = self.op("mul", Ref(number), Ref(rate), shape=(1, wide // 2))
        sine, cosine = self.same("sin", angle), self.same("cos", angle)
        return self.cat(sine, cosine, axis=1)


def _classifier() -> Graph:
    m = Model()
    x = m.same("relu", m.convolution("stem", m.input((1, 3, 32, 32), origin="input", name="picture"), 8, 7, 2))
    y = m.convolution("one.b", m.same("relu", m.convolution("one.a", x, 8)), 8)
    x = m.same("relu", m.same("add", x, y))
    y = m.convolution("two.b", m.same("relu", m.convolution("two.a", x, 16, 3, 2)), 16)
    x = m.same("relu", m.same("add", m.convolution("two.short", x, 16, 1, 2), y))
    return m.graph(m.product("out", m.pooled(x), 10))


def _squeezed() -> Graph:
    m = Model()
    x = m.convolution("stem", m.input((1, 3, 16, 16), origin="input", name="picture"), 8, 3, 2)
    x = m.convolution("depth", m.convolution("wide", x, 16, 1), 16, groups=16)
    s = m.same("relu", m.product("squeeze.a", m.pooled(x), 4))
    s = m.view(m.same("sigmoid", m.product("squeeze.b", s, 16)), 1, 16, 1, 1)
    x = m.convolution("narrow", m.same("mul", x, s), 8, 1)
    return m.graph(m.product("out", m.pooled(x), 10))


def _painted() -> Graph:
    m = Model()
    a = m.same("relu", m.convolution("down.0", m.input((1, 3, 16, 16), origin="input", name="picture"), 8))
    b = m.same("relu", m.convolution("down.1", a, 16, 3, 2))
    up = m.larger(m.same("relu", m.convolution("middle", b, 8)))
    x = m.same("relu", m.convolution("up.0", m.cat(a, up, axis=1), 8))
    return m.graph(m.convolution("scores", x, 5, 1))


def _seen() -> Graph:
    m = Model()
    x = m.patches()
    x = m.op("add", Ref(x), Ref(m.weight(1, 4, 16)), 1, shape=(1, 4, 16))
    for number in range(2):
        x = m.block(f"layers.{number}", x)
    first = m.op("select", Ref(m.norm("norm", x)), 1, 0, shape=(1, 16), view=True)
    return m.graph(m.product("out", first, 10))


def _boxes() -> Graph:
    m = Model()
    seen = m.patches()
    asks = m.op("expand", Ref(m.weight(6, 16)), Many((1, 6, 16)), shape=(1, 6, 16), view=True)
    found = m.block("look", asks, seen)
    kinds, boxes = m.product("kind", found, 5), m.product("box", found, 4)
    return m.graph(kinds, m.same("sigmoid", boxes))


def _denoised() -> Graph:
    m = Model()
    t = m.product("time.1", m.same("silu", m.product("time.0", m.sinusoid(), 16)), 8)
    x = m.input((1, 4, 8, 8), origin="input", name="noise")
    a = m.convolution("enter", x, 8)
    a = m.same("silu", m.same("add", a, m.view(t, 1, 8, 1, 1)))
    b = m.larger(m.same("silu", m.convolution("middle", a, 8, 3, 2)))
    return m.graph(m.convolution("leave", m.cat(a, b, axis=1), 4))


def _language(calls: int) -> Graph:
    """A layer over a cache that grows, and a choice of the next word."""
    m = Model()
    table, places = m.weight(50, 16), m.weight(20, 16)
    weights = {name: m.weight(16, 16) for name in ("query", "key", "value", "out")}
    gate, up, down, scale = m.weight(32, 16), m.weight(32, 16), m.weight(16, 32), m.weight(16)
    ids, keys, values, length = m.input((1, 5), "int64", origin="input", name="ids"), -1, -1, 0
    for _ in range(calls):
        new = m.values[ids].shape[1]
        with m.module("embed", "Embedding"):
            x = m.op("embedding", Ref(table), Ref(ids), shape=(1, new, 16))
        here = m.op("arange", length, length + new, shape=(new,), dtype="int64")
        with m.module("places", "Embedding"):
            where = m.op("embedding", Ref(places), Ref(here), shape=(new, 16))
        x = m.op("add", Ref(x), Ref(where), 1, shape=(1, new, 16))
        with m.module("layer.norm", "RMSNorm"):
            y = m.op("rms_norm", Ref(x), Many((16,)), Ref(scale), 1e-6, shape=(1, new, 16))
        with m.module("layer.attention", "Attention"):
            made = {}
            for name in ("query", "key", "value"):
                made[name] = m.view(m.linear(y, weights[name]), 1, new, 2, 8)
                made[name] = m.op("transpose", Ref(made[name]), 1, 2, shape=(1, 2, new, 8), view=True)
            keys = m.cat(keys, made["key"], axis=2) if keys >= 0 else made["key"]
            values = m.cat(values, made["value"], axis=2) if values >= 0 else made["value"]
            args = (Ref(made["query"]), Ref(keys), Ref(values), None, 0.0, length == 0)
            y = m.op("scaled_dot_product_attention", *args, shape=(1, 2, new, 8))
            y = m.linear(m.op("reshape", Ref(y), shape=(1, new, 16)), weights["out"])
        x = m.same("add", x, y)
        with m.module("layer.mlp", "MLP"):
            gated = m.same("mul", m.same("silu", m.linear(x, gate)), m.linear(x, up))
            x = m.same("add", x, m.linear(gated, down))
        with m.module("head", "Linear"):
            scores = m.op("linear", Ref(x), Ref(table), None, shape=(1, new, 50))
        last = m.op("slice", Ref(scores), 1, -1, 1 << 60, shape=(1, 1, 50), view=True)
        ids = m.op("argmax", Ref(last), -1, shape=(1, 1), dtype="int64")
        length += new
    return m.graph(ids, keys, values)


def _read() -> Graph:
    m = Model()
    x = m.block("layers.0", m.words(6))
    first = m.op("select", Ref(m.norm("norm", x)), 1, 0, shape=(1, 16), view=True)
    return m.graph(m.product("out", m.same("tanh", m.product("pooler", first, 16)), 3))


def _experts() -> Graph:
    """Every expert computes, and two of four count."""
    m = Model()
    x = m.block("layers.0", m.words(6, vocabulary=40), causal=True)
    with m.module("router", "Router"):
        chances = m.op("softmax", Ref(m.product("router.gate", x, 4)), -1, None, shape=(1, 6, 4))
        best = m.op("topk", Ref(chances), 2, -1, True, True, shape=(1, 6, 2))
        which = m.value((1, 6, 2), "int64")
        m.steps.append(msgspec.structs.replace(m.steps.pop(), outputs=(best, which)))
    with m.module("experts", "Experts"):
        rows = m.op("expand", Ref(x), Many((4, 6, 16)), shape=(4, 6, 16), view=True)
        y = m.op("bmm", Ref(rows), Ref(m.weight(4, 16, 16)), shape=(4, 6, 16))
        zeros = m.op("zeros", Many((1, 6, 4)), shape=(1, 6, 4))
        share = m.op("scatter", Ref(zeros), -1, Ref(which), Ref(best), shape=(1, 6, 4))
        share = m.view(m.op("permute", Ref(share), Many((2, 1, 0)), shape=(4, 6, 1), view=True), 4, 6, 1)
        y = m.op("sum", Ref(m.same("mul", y, share)), Many((0,)), True, None, shape=(1, 6, 16))
    return m.graph(m.product("head", m.same("add", x, y), 40))


def _remembered() -> Graph:
    """A cell with state, called on three new rows."""
    m = Model()
    into, again, out = m.weight(8, 4), m.weight(8, 8), m.weight(2, 8)
    state = m.op("zeros", shape=(1, 8))
    for _ in range(3):
        with m.module("cell", "RNNCell"):
            x = m.linear(m.input((1, 4), origin="input", name="row"), into)
            state = m.same("tanh", m.same("add", x, m.linear(state, again)))
    with m.module("out", "Linear"):
        return m.graph(m.linear(state, out), state)


def _answered() -> Graph:
    m = Model()
    seen = m.block("eye.layers.0", m.patches())
    read = m.block("reader.layers.0", m.words(6, path="reader.words"))
    joint = m.block("joint", read, seen)
    first = m.op("select", Ref(joint), 1, 0, shape=(1, 16), view=True)
    return m.graph(m.product("out", first, 7))


def _ranked() -> Graph:
    m = Model()
    dense = m.same("relu", m.product("bottom", m.input((4, 13), origin="input", name="dense"), 8))
    rows = []
    for number, many in enumerate((1 << 21, 300)):
        ids = m.input((4,), "int64", origin="input", name=f"column{number}")
        with m.module(f"tables.{number}", "Embedding"):
            rows.append(m.op("embedding", Ref(m.weight(many, 8)), Ref(ids), shape=(4, 8)))
    all_ = m.op("stack", Many(tuple(map(Ref, (dense, *rows)))), 1, shape=(4, 3, 8))
    turned = m.op("transpose", Ref(all_), 1, 2, shape=(4, 8, 3), view=True)
    met = m.op("bmm", Ref(all_), Ref(turned), shape=(4, 3, 3))
    x = m.same("relu", m.product("top.0", m.cat(dense, m.view(met, 4, 9), axis=1), 16))
    return m.graph(m.same("sigmoid", m.product("top.1", x, 1)))


def _trained() -> Graph:
    m = Model()
    x, weight, out = m.input((2, 3, 8, 8), origin="input", name="picture"), m.weight(4, 3, 3, 3), m.weight(5, 4)
    pair = Many((1, 1)), Many((1, 1)), Many((1, 1))
    with m.module("a", "Conv2d"):
        args = (Ref(x), Ref(weight), None, *pair, False, Many((0, 0)), 1)
        made = m.op("convolution", *args, shape=(2, 4, 8, 8))
    seen = m.same("relu", made)
    with m.module("out", "Linear"):
        pooled = m.pooled(seen)
        scores = m.linear(pooled, out)
    loss = m.op("mse_loss", Ref(scores), Ref(m.input((2, 5), origin="input", name="target")), 1, shape=())
    with m.training("backward"):
        grad = m.op("mse_loss_backward", Ref(loss), Ref(scores), shape=(2, 5))
        its = m.op("mm", Ref(m.op("t", Ref(grad), shape=(5, 2), view=True)), Ref(pooled), shape=(5, 4))
        back = m.op("expand", Ref(m.op("mm", Ref(grad), Ref(out), shape=(2, 4))), shape=(2, 4, 8, 8), view=True)
        back = m.op("threshold_backward", Ref(back), Ref(seen), 0, shape=(2, 4, 8, 8))
        kernel = m.op("convolution_backward", Ref(back), Ref(x), Ref(weight), shape=(4, 3, 3, 3))
    with m.training("optimizer"):
        m.write("add_", Ref(out), Ref(its), -0.1)
        m.write("add_", Ref(weight), Ref(kernel), -0.1)
    return m.graph(loss)


PROGRAMS: dict[str, Callable[[], Graph]] = {
    "classifier": _classifier,
    "squeezed": _squeezed,
    "painted": _painted,
    "seen": _seen,
    "boxes": _boxes,
    "denoised": _denoised,
    "prompt": lambda: _language(1),
    "language": lambda: _language(3),
    "read": _read,
    "experts": _experts,
    "remembered": _remembered,
    "answered": _answered,
    "ranked": _ranked,
    "trained": _trained,
}
