"""A small causal language model with a growing cache, and a loop that looks at each token, as people write them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

Cache = list[tuple[torch.Tensor, torch.Tensor]]


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self, x: torch.Tensor, past: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, dim=-1)
        )
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(x), (k, v)


class TinyLM(nn.Module):
    def __init__(self, vocabulary: int = 97, width: int = 32, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(512, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: torch.Tensor, cache: Cache | None = None) -> tuple[torch.Tensor, Cache]:
        start = 0 if cache is None else cache[0][0].shape[2]
        x = self.tokens(ids) + self.positions[start : start + ids.shape[1]]
        grown: Cache = []
        for index, block in enumerate(self.blocks):
            x, pair = block(x, None if cache is None else cache[index])
            grown.append(pair)
        return self.head(self.norm(x)), grown


class Logits(nn.Module):
    """Without a cache, as ``genie.generate`` takes them."""

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.lm(ids)[0]
        return logits


def model(seed: int = 0) -> TinyLM:
    torch.manual_seed(seed)
    return TinyLM().eval()


PROMPT = torch.tensor([[5, 17, 3, 88, 41, 2]])


@torch.no_grad()
def stream(lm: TinyLM, prompt: torch.Tensor = PROMPT, count: int = 16) -> Iterator[int]:
    """Tokens as they come, each one looked at."""
    device = next(lm.parameters()).device
    ids, cache = prompt.to(device), None
    for _ in range(count):
        logits, cache = lm(ids, cache)
        ids = logits[:, -1].argmax(dim=-1, keepdim=True)
        yield int(ids.item())


def generate(lm: TinyLM, prompt: torch.Tensor = PROMPT, count: int = 16) -> list[int]:
    return list(stream(lm, prompt, count))
