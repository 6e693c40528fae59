"""What the clients of a campaign run: captured here once, with PyTorch, for clients that have none.

A program is a module. Its parameters are the weights; its buffers are what a call is given, and what one call hands to
the next. That way the graph names them. What the calls must give is computed here, natively, with one thread.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import genie
from campaigns.calls import Blob, Case, Fed, Kind, Prepared
from genie import codec
from genie.graph import TensorSpec
from genie.schedule import Scheduler

DEVICE = "remote_accelerator"
Tensor = torch.Tensor


class Block(nn.Module):
    """One layer of a transformer, over keys and values that are given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        length = x.shape[0]
        parts = self.qkv(self.norms[0](x)).view(length, 3, self.heads, -1)
        q, k, v = parts.permute(1, 2, 0, 3).unbind(0)  # heads, length, width of a head
        return q, k, v

    def finish(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(attended.transpose(0, 1).reshape(x.shape))
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


class Decoder(nn.Module):
    """One step of greedy decoding, with a cache of ``room`` positions."""

    def __init__(self, layers: int, width: int, room: int, vocabulary: int) -> None:
        super().__init__()
        heads = width // 16
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)
        self.register_buffer("token", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("position", torch.zeros(1, 1, dtype=torch.int64))
        self.register_buffer("cache", torch.zeros(layers, 2, heads, room, width // heads))
        self.register_buffer("places", torch.arange(room).view(1, room))

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        x = self.embed(self.token)
        here = (self.places == self.position).view(1, -1, 1)
        seen = self.places <= self.position
        kept = []
        for layer, block in enumerate(self.blocks):
            q, k, v = block.split(x)
            keys = torch.where(here, k, self.cache[layer, 0])
            values = torch.where(here, v, self.cache[layer, 1])
            kept.append(torch.stack((keys, values)))
            x = block.finish(x, q, keys, values, seen)
        token = self.head(self.norm(x)).argmax(-1)
        return token, self.position + 1, torch.stack(kept)


class Encoder(nn.Module):
    """As BERT: a sequence, all of it at once."""

    def __init__(self, layers: int, width: int, length: int, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, width // 16) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("x", torch.zeros(length, dtype=torch.int64))

    def forward(self) -> Tensor:
        x = self.embed(self.x)
        for block in self.blocks:
            x = block.finish(x, *block.split(x), None)
        return self.norm(x)


class Vision(nn.Module):
    """A small convolutional net, one picture."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        sizes = (3, width, 2 * width, 2 * width)
        pairs = itertools.pairwise(sizes)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairs)
        self.head = nn.Linear(2 * width, 10)
        self.register_buffer("x", torch.zeros(1, 3, size, size))

    def forward(self) -> Tensor:
        x = self.x
        for each in self.convolutions:
            x = functional.relu(each(x))
        return self.head(x.mean((2, 3)))


def prepare(directory: Path, *, tiny: bool = False) -> None:
    """Write what :func:`campaigns.calls.read` reads."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    genie.init(backend="local", threads=1)
    layers, scale = (2, 1) if tiny else (4, 4)
    models: dict[Kind, nn.Module] = {
        "llm": Decoder(layers, 32 * scale, 16 * scale, 97),
        "bert": Encoder(layers, 32 * scale, 8 * scale, 97),
        "vision": Vision(8 * scale, 16 * scale),
    }
    try:
        with torch.no_grad():
            for kind, model in models.items():
                _write(directory, kind, model.eval())
    finally:
        genie.shutdown()


def _write(directory: Path, kind: Kind, model: nn.Module) -> None:
    cases = [_case(kind, model, number) for number in range(4)]
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    host = {name: tensor.detach().clone() for name, tensor in named.items()}
    given = {"llm": ("token", "position", "cache")}.get(kind, ("x",))
    seconds = _native(model)
    there = model.to(DEVICE)
    made = there()
    graph = genie.get_graph()
    outputs = _outputs(graph.values[value] for value in graph.outputs)
    plan = Scheduler(devices=genie.devices()).schedule(graph)
    for each in made if isinstance(made, tuple) else (made,):
        each.cpu()  # a look: the next graph begins here
    codec.save(plan, directory / f"{kind}.plan")
    blob = bytearray()
    inputs = []
    for entry, value in ((entry, graph.values[entry.value]) for entry in graph.inputs):
        if entry.name in given:
            inputs.append(Fed(entry.name, value))
        else:
            inputs.append(Fed(entry.name, value, _put(blob, host[entry.name])))
    start = tuple(Fed(name, _spec(host[name]), _put(blob, torch.zeros_like(host[name]))) for name in given)
    written = [
        Case({name: _put(blob, tensor) for name, tensor in fed.items()}, tuple(_put(blob, each) for each in due))
        for fed, due in cases
    ]
    prepared = Prepared(kind, tuple(inputs), start, outputs, tuple(written), seconds)
    (directory / f"{kind}.bin").write_bytes(blob)
    (directory / f"{kind}.json").write_bytes(prepared.text())


def _case(kind: Kind, model: nn.Module, number: int) -> tuple[Mapping[str, Tensor], list[Tensor]]:
    """What a call is given, and what it must give; of a decoder all its steps."""
    generator = torch.Generator().manual_seed(number)
    if kind != "llm":
        shape = model.get_buffer("x").shape
        x = (
            torch.randint(0, 97, shape, generator=generator)
            if kind == "bert"
            else torch.randn(shape, generator=generator)
        )
        model.get_buffer("x").copy_(x)
        return {"x": x}, [model()]
    assert isinstance(model, Decoder)
    first = torch.tensor([number + 1])
    token, position, cache = first, torch.zeros_like(model.position), torch.zeros_like(model.cache)
    tokens = []
    for _ in range(model.places.shape[1]):
        model.token, model.position, model.cache = token, position, cache
        token, position, cache = model()
        tokens.append(token)
    return {"token": first}, tokens


def _native(model: nn.Module) -> float:
    times = []
    for _ in range(30):
        began = time.perf_counter()
        model()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _outputs(values: Iterable[TensorSpec]) -> tuple[str, ...]:
    """Which of a program's outputs each is, by its shape: they differ."""
    return tuple(
        {("int64", 1): "token", ("int64", 2): "position", ("float32", 5): "cache"}.get(
            (value.dtype, len(value.shape)), "y"
        )
        for value in values
    )


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _put(blob: bytearray, tensor: Tensor) -> Blob:
    data = tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else b""
    blob += data
    return Blob(len(blob) - len(data), len(data))


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), tiny="tiny" in sys.argv[2:])
