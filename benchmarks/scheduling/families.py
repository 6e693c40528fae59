"""Graphs to place: models as recorders see them, from shapes alone, and random layered graphs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genie.annotate import annotate
from genie.device import Device
from genie.graph import Graph, Input, Many, Module, Node, Ref, TensorSpec
from genie.schedule import RooflineCostModel


@dataclass(frozen=True)
class Case:
    """``model`` is a cost model; ``family`` is one of ``llm``, ``branching``, ``random``."""

    name: str
    family: str
    graph: Graph
    devices: tuple[Device, ...]
    model: Any


class Program:
    """A graph being written down."""

    def __init__(self) -> None:
        self.values: list[TensorSpec] = []
        self.inputs: list[Input] = []
        self.steps: list[Node] = []
        self.modules: list[Module] = []
        self.module = -1

    def inside(self, path: str) -> None:
        self.modules.append(Module(path, "Block"))
        self.module = len(self.modules) - 1

    def input(self, shape: Sequence[int], origin: Any = "input") -> int:
        self.values.append(TensorSpec(tuple(shape), "bfloat16"))
        self.inputs.append(Input(len(self.values) - 1, "", origin))
        return len(self.values) - 1

    def weight(self, *shape: int) -> int:
        return self.input(shape, "parameter")

    def op(self, name: str, *args: Any, shape: Sequence[int], view: bool = False) -> int:
        self.values.append(TensorSpec(tuple(shape), "bfloat16"))
        made = len(self.values) - 1
        first = next((arg.value for arg in args if isinstance(arg, Ref)), -1)
        aliases = ((made, first),) if view else ()
        self.steps.append(
            Node(len(self.steps), f"aten::{name}", "", args, (made,), aliases=aliases, module=self.module)
        )
        return made

    def shape(self, value: int) -> tuple[int, ...]:
        return self.values[value].shape

    def linear(self, x: int, wide: int) -> int:
        *batch, width = self.shape(x)
        weight = self.weight(wide, width)
        return self.op("linear", Ref(x), Ref(weight), None, shape=(*batch, wide))

    def unary(self, name: str, x: int) -> int:
        return self.op(name, Ref(x), shape=self.shape(x))

    def binary(self, name: str, x: int, y: int) -> int:
        return self.op(name, Ref(x), Ref(y), shape=self.shape(x))

    def view(self, x: int, shape: Sequence[int]) -> int:
        return self.op("view", Ref(x), Many(tuple(shape)), shape=shape, view=True)

    def norm(self, x: int) -> int:
        squared = self.unary("pow", x)
        mean = self.op("mean", Ref(squared), shape=(*self.shape(x)[:-1], 1))
        scaled = self.op("mul", Ref(x), Ref(mean), shape=self.shape(x))
        return self.op("mul", Ref(scaled), Ref(self.weight(self.shape(x)[-1])), shape=self.shape(x))

    def graph(self, *outputs: int, name: str) -> Graph:
        return annotate(
            Graph(tuple(self.values), tuple(self.inputs), tuple(self.steps), outputs, tuple(self.modules), name=name)
        )


# --- models ------------------------------------------------------------------------------------


def attention(p: Program, x: int, heads: int, past: int, outputs: list[int]) -> int:
    batch, new, width = p.shape(x)
    head = width // heads
    q, k, v = (p.linear(x, width) for _ in range(3))
    q, k, v = (p.view(each, (batch, new, heads, head)) for each in (q, k, v))
    q, k, v = (p.op("transpose", Ref(each), 1, 2, shape=(batch, heads, new, head), view=True) for each in (q, k, v))
    q, k = (p.binary("mul", each, each) for each in (q, k))  # rotary positions, in brief
    if past:
        keys, values = (p.input((batch, heads, past, head), "state") for _ in range(2))
        k = p.op("cat", Many((Ref(keys), Ref(k))), -2, shape=(batch, heads, past + new, head))
        v = p.op("cat", Many((Ref(values), Ref(v))), -2, shape=(batch, heads, past + new, head))
        outputs += [k, v]
    seen = p.op(
        "scaled_dot_product_attention", Ref(q), Ref(k), Ref(v), None, 0.0, not past, shape=(batch, heads, new, head)
    )
    flat = p.op("reshape", Ref(seen), Many((batch, new, width)), shape=(batch, new, width))
    return p.linear(flat, width)


def mlp(p: Program, x: int, wide: int) -> int:
    gate, up = p.linear(x, wide), p.linear(x, wide)
    return p.linear(p.binary("mul", p.unary("silu", gate), up), p.shape(x)[-1])


def decoder(layers: int, width: int, new: int, past: int, batch: int = 1, vocabulary: int = 32000) -> Graph:
    """A causal language model: ``new`` positions against ``past`` ones in the caches."""
    p = Program()
    p.inside("embed")
    ids = p.input((batch, new))
    x = p.op("embedding", Ref(p.weight(vocabulary, width)), Ref(ids), shape=(batch, new, width))
    outputs: list[int] = []
    for layer in range(layers):
        p.inside(f"layers.{layer}")
        x = p.binary("add", x, attention(p, p.norm(x), max(1, width // 128), past, outputs))
        x = p.binary("add", x, mlp(p, p.norm(x), width * 7 // 2))
    p.inside("head")
    logits = p.linear(p.norm(x), vocabulary)
    return p.graph(logits, *outputs, name=f"decoder {layers}x{width} new {new} past {past}")


def experts(layers: int, width: int, count: int, tokens: int) -> Graph:
    """A mixture of experts: each layer's experts run on their share of the tokens."""
    p = Program()
    x = p.input((1, tokens, width))
    for layer in range(layers):
        p.inside(f"layers.{layer}")
        x = p.binary("add", x, attention(p, p.norm(x), max(1, width // 128), 0, []))
        normed = p.norm(x)
        route = p.op("softmax", Ref(p.linear(normed, count)), -1, shape=(1, tokens, count))
        share = max(1, 2 * tokens // count)
        total = -1
        for expert in range(count):
            p.inside(f"layers.{layer}.experts.{expert}")
            mine = p.op("index_select", Ref(normed), 1, Ref(route), shape=(1, share, width))
            done = mlp(p, mine, width * 7 // 2)
            p.inside(f"layers.{layer}")
            spread = p.op("index_add", Ref(done), Ref(route), shape=(1, tokens, width))
            total = spread if total < 0 else p.binary("add", total, spread)
        x = p.binary("add", x, total)
    return p.graph(x, name=f"experts {layers}x{count}")


def inception(blocks: int, branches: int, batch: int, channels: int = 192, side: int = 28) -> Graph:
    p = Program()
    x = p.input((batch, channels, side, side))

    def conv(value: int, out: int, kernel: int) -> int:
        weight = p.weight(out, p.shape(value)[1], kernel, kernel)
        made = p.op(
            "convolution", Ref(value), Ref(weight), None, Many((1, 1)), Many((kernel // 2,) * 2), Many((1, 1)), False,
            Many((0, 0)), 1, shape=(batch, out, side, side),
        )  # fmt: skip
        return p.unary("relu", p.unary("native_batch_norm", made))

    for block in range(blocks):
        ends = []
        for branch in range(branches):
            p.inside(f"blocks.{block}.branches.{branch}")
            y = conv(x, channels // 2, 1)
            for _ in range(branch):
                y = conv(y, channels // 2, 3)
            ends.append(conv(y, channels // branches, 3))
        p.inside(f"blocks.{block}")
        x = p.op("cat", Many(tuple(map(Ref, ends))), 1, shape=(batch, channels, side, side))
    return p.graph(x, name=f"inception {blocks}x{branches}")


def tower(p: Program, x: int, layers: int, name: str) -> int:
    for layer in range(layers):
        p.inside(f"{name}.layers.{layer}")
        x = p.binary("add", x, attention(p, p.norm(x), max(1, p.shape(x)[-1] // 64), 0, []))
        x = p.binary("add", x, mlp(p, p.norm(x), 4 * p.shape(x)[-1]))
    return x


def multimodal(layers: int, width: int) -> Graph:
    """Towers for pictures, sound and text, and a decoder over what they give."""
    p = Program()
    ends = [
        tower(p, p.input((1, positions, width)), count, name)
        for name, positions, count in (("vision", 576, layers), ("audio", 300, layers), ("text", 64, layers // 2))
    ]
    p.inside("fusion")
    together = p.op("cat", Many(tuple(map(Ref, ends))), 1, shape=(1, 940, width))
    x = tower(p, together, layers, "decoder")
    return p.graph(x, name=f"multimodal {layers}x{width}")


def recommendation(tables: int, width: int, batch: int) -> Graph:
    p = Program()
    found = []
    for table in range(tables):
        p.inside(f"tables.{table}")
        rows = p.op("embedding", Ref(p.weight(1_000_000, width)), Ref(p.input((batch, 20))), shape=(batch, 20, width))
        pooled = p.op("sum", Ref(rows), shape=(batch, width))
        found.append(p.unary("relu", p.linear(p.unary("relu", p.linear(pooled, 4 * width)), width)))
    p.inside("dense")
    dense = p.input((batch, 512))
    for wide in (1024, 1024, width):
        dense = p.unary("relu", p.linear(dense, wide))
    p.inside("interaction")
    x = p.op("cat", Many(tuple(map(Ref, [*found, dense]))), 1, shape=(batch, width * (tables + 1)))
    for wide in (2048, 1024, 1):
        x = p.linear(x, wide)
    return p.graph(x, name=f"recommendation {tables}")


# --- random layered graphs -----------------------------------------------------------------------


class Table:
    """Seconds by node and device, one link for all pairs."""

    name = "table"

    def __init__(self, seconds: Mapping[tuple[int, str], float], latency: float, bandwidth: float) -> None:
        self._seconds, self._latency, self._bandwidth = seconds, latency, bandwidth

    def estimate_compute(self, node: Node, device: Device) -> float:
        return self._seconds[node.id, device.id]

    def estimate_transfer(self, src: Device, dst: Device, bytes: int) -> float:
        return self._latency + bytes / self._bandwidth


def layered(nodes: int, devices: Sequence[Device], ratio: float, seed: int, wide: int = 0) -> Case:
    """A random layered graph; ``ratio`` is the mean transfer's time to the mean node's."""
    rng = random.Random(seed)
    bandwidth = 1e9
    values = [TensorSpec((1024,), "uint8")]
    steps: list[Node] = []
    seconds: dict[tuple[int, str], float] = {}
    layer: list[int] = []
    before: list[int] = [0]
    per_layer = wide or max(2, round(nodes**0.5))
    speed = {device.id: device.compute_tflops for device in devices}
    for node in range(nodes):
        if len(layer) >= rng.randint(1, 2 * per_layer - 1):
            before, layer = [0, *layer, *rng.sample(before, min(2, len(before)))], []
        taken = rng.sample(before, min(len(before), rng.randint(1, 3)))
        values.append(TensorSpec((round(rng.uniform(0.2, 1.8) * ratio * 1e-3 * bandwidth),), "uint8"))
        args = tuple(map(Ref, taken)) if len(taken) == 1 else (Many(tuple(map(Ref, taken))),)
        steps.append(Node(node, "aten::cat" if len(taken) > 1 else "aten::relu", "", args, (len(values) - 1,)))
        work = rng.uniform(0.2, 1.8) * 1e-3
        for name, its in speed.items():
            seconds[node, name] = work / its * rng.uniform(0.8, 1.25)
        layer.append(len(values) - 1)
    used = {value for step in steps for value in step.operands()}
    outputs = tuple(value for value in range(1, len(values)) if value not in used)
    graph = Graph(tuple(values), (Input(0, "x", "input"),), tuple(steps), outputs, name=f"layered {nodes}")
    name = f"layered {nodes} ratio {ratio:g} on {len(devices)}"
    return Case(name, "random", graph, tuple(devices), Table(seconds, 1e-6, bandwidth))


# --- all of them -----------------------------------------------------------------------------------


def gpus(
    count: int, memory: float = 80.0, tflops: Sequence[float] = (300.0,), gbps: float = 100.0
) -> tuple[Device, ...]:
    return tuple(
        Device(
            id=f"gpu{n}",
            type="GPU",
            memory_gb=memory,
            compute_tflops=tflops[n % len(tflops)],
            network_gbps=gbps,
            address=f"10.0.0.{n}:8888",
            memory_bandwidth_gb_s=2000.0 * tflops[n % len(tflops)] / 300.0,
        )
        for n in range(count)
    )


def cases(small: bool = False) -> Iterator[Case]:
    """The families that quality is judged on; ``small`` keeps each but shrinks it."""
    k = 4 if small else 1
    roofline = RooflineCostModel()
    mixed = (300.0, 120.0)
    plain: list[tuple[str, Graph, tuple[Device, ...]]] = [
        ("llm", decoder(32 // k, 4096, 512, 0), gpus(4)),
        ("llm", decoder(32 // k, 4096, 1, 512), gpus(4)),
        ("llm", decoder(32 // k, 4096, 512, 0), gpus(4, memory=16.0 / k / 2)),
        ("llm", decoder(32 // k, 4096, 1, 2048, batch=8), gpus(4, memory=24.0 / k / 2, tflops=mixed)),
        ("llm", decoder(24 // k, 2048, 128, 0), gpus(8, tflops=mixed, gbps=25.0)),
        ("branching", experts(8 // k, 2048, 8, 2048), gpus(4)),
        ("branching", experts(4 // k, 4096, 8, 4096), gpus(8, memory=6.0, gbps=400.0)),
        ("branching", inception(9 // k + 1, 4, 32), gpus(4, gbps=400.0)),
        ("branching", inception(9 // k + 1, 4, 128), gpus(4, tflops=mixed, gbps=400.0)),
        ("branching", multimodal(12 // k, 1024), gpus(4)),
        ("branching", multimodal(24 // k, 1024), gpus(3, tflops=mixed)),
        ("branching", recommendation(26 // k, 64, 16384), gpus(4, tflops=(50.0,))),
    ]
    for family, graph, devices in plain:
        yield Case(f"{graph.name} on {len(devices)}", family, graph, devices, roofline)
    sizes = (40, 60) if small else (60, 250, 1000)
    for seed, nodes in enumerate(sizes):
        for ratio in (0.1, 1.0, 5.0):
            yield layered(nodes, gpus(4, tflops=(1.0,)), ratio, seed)
        yield layered(nodes, gpus(8, tflops=(1.0, 2.0, 0.5)), 1.0, seed + 10)
