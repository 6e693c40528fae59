"""Language models written by hand, whose names say nothing: classes called Zork, attributes a1 and b2, plain functions.

Each generates in a loop of its own. What a name does not say, what is done to a value does: a cache is what keys and
values are kept in, whatever holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semantics.ingredients import VOCABULARY, tokens
from semantics.stages import Stage
from semantics.truth import Model, Program, Tower, Truth, generation

WIDTH, HEADS, LAYERS, ROOM, STEPS = 32, 4, 2, 32, 5

TRUTH = Truth("language_model", generation(STEPS), (Tower("", "text"),))

Past: TypeAlias = list[tuple[Tensor, Tensor]]
Keep: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # what becomes of a layer's keys and values


def _heads(x: Tensor) -> Tensor:
    return x.view(*x.shape[:2], HEADS, WIDTH // HEADS).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], WIDTH)


class Blip7(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a1, self.b2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c3, self.d4 = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.e5, self.f6 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, kept: Keep, mask: Tensor) -> Tensor:
        q, k, v = (_heads(each) for each in self.c3(self.a1(x)).chunk(3, -1))
        k, v = kept(k, v)
        x = x + self.d4(_joined(F.scaled_dot_product_attention(q, k, v, mask)))
        return x + self.f6(F.gelu(self.e5(self.b2(x))))  # type: ignore[no-any-return]


class Zork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g7, self.h8 = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(ROOM, WIDTH)
        self.i9 = nn.ModuleList(Blip7() for _ in range(LAYERS))
        self.j10, self.k11 = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: Tensor, start: Tensor, mask: Tensor, kept: Sequence[Keep]) -> Tensor:
        x = self.g7(ids) + self.h8(start[:, None] + torch.arange(ids.shape[1], device=ids.device))
        for block, keep in zip(self.i9, kept, strict=True):
            x = block(x, keep, mask)
        return self.k11(self.j10(x))  # type: ignore[no-any-return]


def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _grown(past: list[list[Tensor]], layer: int) -> Keep:
    """A cache in lists, joined with what is new at each step."""

    def kept(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if past[layer]:
            k, v = torch.cat([past[layer][0], k], 2), torch.cat([past[layer][1], v], 2)
        past[layer] = [k, v]
        return k, v

    return kept


def _flat(past: list[list[Tensor]]) -> list[Tensor]:
    return [tensor for layer in past for tensor in layer]


def _lists(stage: Stage) -> Program:
    """Keys and values in lists of lists."""
    model = Zork().eval()

    @torch.no_grad()
    def run(stage: Stage) -> Sequence[Tensor]:
        past: list[list[Tensor]] = [[] for _ in range(LAYERS)]
        new = stage.put(tokens(8, 1))
        made: list[Tensor] = []
        for seen in (0, *range(8, 7 + STEPS)):
            with stage.call():
                start = torch.full((1,), seen, device=stage.device)
                mask = _causal(new.shape[1], seen + new.shape[1], stage.device)
                out = model(new, start, mask, [_grown(past, layer) for layer in range(LAYERS)])
                new = out[:, -1:].argmax(-1)
                stage.keep(kv_cache=_flat(past))
            made.append(new)
        return made

    return Program(run, (model,))


def _preallocated(stage: Stage) -> Program:
    """One buffer for all layers, made before the first call and written at the next place."""
    model = Zork().eval()

    @torch.no_grad()
    def run(stage: Stage) -> Sequence[Tensor]:
        store = torch.zeros(LAYERS, 2, 2, HEADS, ROOM, WIDTH // HEADS, device=stage.device)
        stage.keep(kv_cache=[store])

        def written(layer: int, at: int) -> Keep:
            def kept(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
                end = at + k.shape[2]
                store[layer, 0, :, :, at:end] = k
                store[layer, 1, :, :, at:end] = v
                return store[layer, 0, :, :, :end], store[layer, 1, :, :, :end]

            return kept

        new = stage.put(tokens(8, 2))
        made: list[Tensor] = []
        for seen in (0, *range(8, 7 + STEPS)):
            with stage.call():
                start = torch.full((2,), seen, device=stage.device)
                mask = _causal(new.shape[1], seen + new.shape[1], stage.device)
                out = model(new, start, mask, [written(layer, seen) for layer in range(LAYERS)])
                new = out[:, -1:].argmax(-1)
                stage.keep(kv_cache=[store])
            made.append(new)
        return made

    return Program(run, (model,))


def _window(stage: Stage) -> Program:
    """Only the last positions are kept, fewer than the prompt has: the cache never grows."""
    window = 6
    model = Zork().eval()

    @torch.no_grad()
    def run(stage: Stage) -> Sequence[Tensor]:
        past: list[list[Tensor]] = [[] for _ in range(LAYERS)]
        new = stage.put(tokens(8, 1))
        made: list[Tensor] = []
        for seen in (0, *range(8, 7 + STEPS)):
            with stage.call():
                keys = new.shape[1] + (window - 1 if seen else 0)
                mask = _causal(new.shape[1], keys, stage.device)
                mask = mask & ~mask.tril(keys - new.shape[1] - window)
                start = torch.full((1,), seen, device=stage.device)
                out = model(new, start, mask, [_grown(past, layer) for layer in range(LAYERS)])
                past[:] = [[each[:, :, 1 - window :].clone() for each in layer] for layer in past]
                new = out[:, -1:].argmax(-1)
                stage.keep(kv_cache=_flat(past))
            made.append(new)
        return made

    return Program(run, (model,))


def _speculative(stage: Stage) -> Program:
    """A prompt of 12, then three guesses at once are judged against the cache, and one of them is taken back."""
    model = Zork().eval()

    @torch.no_grad()
    def run(stage: Stage) -> Sequence[Tensor]:
        past: list[list[Tensor]] = [[] for _ in range(LAYERS)]
        new, seen = stage.put(tokens(12, 1)), 0
        made: list[Tensor] = []
        for step in range(STEPS):
            with stage.call():
                start = torch.full((1,), seen, device=stage.device)
                mask = _causal(new.shape[1], seen + new.shape[1], stage.device)
                out = model(new, start, mask, [_grown(past, layer) for layer in range(LAYERS)])
                made.append(out.argmax(-1))
                seen += new.shape[1]
                if step:
                    past[:] = [[each[:, :, :-1] for each in layer] for layer in past]
                    seen -= 1
                stage.keep(kv_cache=_flat(past))
            new = torch.cat([made[-1][:, -1:], stage.put(tokens(2, 1, seed=step))], 1)
        return made

    return Program(run, (model,))


def _ragged(stage: Stage) -> Program:
    """Four rows of different lengths decode together: each writes at a place of its own."""
    lengths = (8, 5, 7, 3)
    model = Zork().eval()

    @torch.no_grad()
    def run(stage: Stage) -> Sequence[Tensor]:
        shape = (len(lengths), HEADS, ROOM, WIDTH // HEADS)
        past = [[torch.zeros(shape, device=stage.device) for _ in range(2)] for _ in range(LAYERS)]
        stage.keep(kv_cache=_flat(past))
        rows = torch.arange(len(lengths), device=stage.device)
        places = torch.arange(ROOM, device=stage.device)
        length = stage.put(torch.tensor(lengths))

        def written(layer: int, at: Tensor) -> Keep:
            def kept(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
                past[layer][0][rows[:, None], :, at] = k.transpose(1, 2)
                past[layer][1][rows[:, None], :, at] = v.transpose(1, 2)
                return past[layer][0], past[layer][1]

            return kept

        new = stage.put(tokens(8, len(lengths)))
        start = torch.zeros_like(length)
        made: list[Tensor] = []
        for step in range(STEPS):
            with stage.call():
                at = start[:, None] + torch.arange(new.shape[1], device=stage.device)
                mask = (places <= at[..., None])[:, None]
                out = model(new, start, mask, [written(layer, at) for layer in range(LAYERS)])
                last = length - 1 if step == 0 else torch.zeros_like(length)
                new = out[rows, last].argmax(-1, keepdim=True)
                stage.keep(kv_cache=_flat(past))
            start = length if step == 0 else start + 1
            made.append(new)
        return made

    return Program(run, (model,))


def _functions(stage: Stage) -> Program:
    """No module at all: a dictionary of tensors, attention out of products and a softmax."""
    names = ("q", "k", "v", "o", "up", "down")
    shapes = dict.fromkeys(names, (WIDTH, WIDTH)) | {"up": (WIDTH, 2 * WIDTH), "down": (2 * WIDTH, WIDTH)}
    w = {f"{name}{layer}": torch.randn(shapes[name]) * 0.2 for layer in range(LAYERS) for name in names}
    w |= {"e": torch.randn(VOCABULARY, WIDTH), "p": torch.randn(ROOM, WIDTH)}
    w = {name: stage.put(tensor) for name, tensor in w.items()}

    def normal(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) * (x.var(-1, keepdim=True) + 1e-5).rsqrt()

    def thing(ids: Tensor, past: Past, seen: int) -> tuple[Tensor, Past]:
        x = w["e"][ids] + w["p"][seen : seen + ids.shape[1]]
        now: Past = []
        for n in range(LAYERS):
            y = normal(x)
            q, k, v = (_heads(y @ w[f"{name}{n}"]) for name in "qkv")
            if past:
                k, v = torch.cat((past[n][0], k), 2), torch.cat((past[n][1], v), 2)
            now.append((k, v))
            scores = q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1 + seen)
            x = x + _joined(torch.softmax(scores.masked_fill(future, -1e9), -1) @ v) @ w[f"o{n}"]
            x = x + torch.relu(normal(x) @ w[f"up{n}"]) @ w[f"down{n}"]
        return normal(x) @ w["e"].T, now

    @torch.no_grad()
    def run(stage: Stage) -> Sequence[Tensor]:
        past: Past = []
        new = stage.put(tokens(8, 2))
        made: list[Tensor] = []
        for seen in (0, *range(8, 7 + STEPS)):
            with stage.call():
                out, past = thing(new, past, seen)
                new = out[:, -1:].argmax(-1)
                stage.keep(kv_cache=[tensor for layer in past for tensor in layer])
            made.append(new)
        return made

    return Program(run, tensors=w)


MODELS = (
    Model("zork-lists", _lists, TRUTH),
    Model("zork-preallocated", _preallocated, TRUTH),
    Model("zork-window", _window, TRUTH),
    # Few positions against a longer cache are decode, however many guesses there are.
    Model("zork-speculative", _speculative, TRUTH),
    Model("zork-ragged-batch", _ragged, TRUTH),
    Model("functions-gpt", _functions, TRUTH),
)
