"""Small programs as graphs, written operator by operator, for tests of what graphs mean."""

from __future__ import annotations

from typing import Any

from genie.graph import Graph, Input, Many, Node, Ref, TensorSpec


class Program:
    """Builds a graph. Methods return the value they make."""

    def __init__(self) -> None:
        self.values: list[TensorSpec] = []
        self.inputs: list[Input] = []
        self.steps: list[Node] = []
        self.outputs: list[int] = []

    def value(self, shape: tuple[int, ...], dtype: str = "float32") -> int:
        self.values.append(TensorSpec(shape, dtype))
        return len(self.values) - 1

    def input(self, shape: tuple[int, ...], dtype: str = "float32", **known: Any) -> int:
        value = self.value(shape, dtype)
        self.inputs.append(Input(value, **known))
        return value

    def weight(self, *shape: int) -> int:
        return self.input(shape, origin="parameter", name=f"w{len(self.inputs)}")

    def op(self, name: str, *args: Any, shape: tuple[int, ...], dtype: str = "float32", view: bool = False) -> int:
        """``aten::name`` over ``args``, in which a :class:`Ref` is a value."""
        made = self.value(shape, dtype)
        aliases = ((made, args[0].value),) if view else ()
        self.steps.append(Node(len(self.steps), f"aten::{name}", "", args, (made,), aliases=aliases))
        return made

    def write(self, name: str, *args: Any) -> None:
        """An in-place operator on the first of ``args``."""
        self.steps.append(Node(len(self.steps), f"aten::{name}", "", args, (-1,), mutates=(args[0].value,)))

    def linear(self, x: int, weight: int) -> int:
        shape = (*self.values[x].shape[:-1], self.values[weight].shape[0])
        return self.op("linear", Ref(x), Ref(weight), None, shape=shape)

    def cat(self, *parts: int, axis: int) -> int:
        shape = list(self.values[parts[0]].shape)
        shape[axis] = sum(self.values[part].shape[axis] for part in parts)
        return self.op("cat", Many(tuple(map(Ref, parts))), axis, shape=tuple(shape), dtype=self.values[parts[0]].dtype)

    def attention(self, query: int, key: int, value: int) -> int:
        args = (Ref(query), Ref(key), Ref(value), None, 0.0, False, None, False)
        return self.op("scaled_dot_product_attention", *args, shape=self.values[query].shape)

    def graph(self, *outputs: int) -> Graph:
        return Graph(tuple(self.values), tuple(self.inputs), tuple(self.steps), outputs)


def decoder(calls: int, static: bool = False, prompt: int = 5, window: int = 0) -> Graph:
    """A language model of one layer, called ``calls`` times: a prompt, then token by token."""
    p = Program()
    table, wq, wk, wv = p.weight(50, 16), p.weight(16, 16), p.weight(16, 16), p.weight(16, 16)
    ids = p.input((1, prompt), "int64", origin="input")
    longest = prompt + calls
    keys = p.op("zeros", shape=(1, 2, longest, 8)) if static else -1
    held = p.op("zeros", shape=(1, 2, longest, 8)) if static else -1
    for call in range(calls):
        new = p.values[ids].shape[1]
        x = p.op("embedding", Ref(table), Ref(ids), shape=(1, new, 16))
        q, k, v = (p.op("view", Ref(p.linear(x, weight)), shape=(1, 2, new, 8), view=True) for weight in (wq, wk, wv))
        if static:
            place = p.op("arange", new, shape=(new,), dtype="int64")
            p.write("index_copy_", Ref(keys), 2, Ref(place), Ref(k))
            p.write("index_copy_", Ref(held), 2, Ref(place), Ref(v))
        elif call == 0:
            nothing = p.op("empty", shape=(1, 2, 0, 8))
            keys, held = p.cat(nothing, k, axis=2), p.cat(nothing, v, axis=2)
        else:
            if window:
                keys, held = (
                    p.op("slice", Ref(each), 2, 1, 1 << 60, 1, shape=(1, 2, p.values[each].shape[2] - 1, 8), view=True)
                    for each in (keys, held)
                )
            keys, held = p.cat(keys, k, axis=2), p.cat(held, v, axis=2)
        seen = p.attention(q, keys, held)
        flat = p.op("reshape", Ref(seen), shape=(1, new, 16))
        logits = p.op("linear", Ref(flat), Ref(table), None, shape=(1, new, 50))
        ids = p.op("argmax", Ref(logits), -1, shape=(1, 1), dtype="int64")
    return p.graph(ids, keys, held)


def recurrent(calls: int) -> Graph:
    """A cell with state, called ``calls`` times on new features."""
    p = Program()
    into, again = p.weight(8, 4), p.weight(8, 8)
    state = p.op("zeros", shape=(1, 8))
    for _ in range(calls):
        x = p.linear(p.input((1, 4), origin="input"), into)
        h = p.linear(state, again)
        state = p.op("tanh", Ref(p.op("add", Ref(x), Ref(h), 1, shape=(1, 8))), shape=(1, 8))
    return p.graph(state)
