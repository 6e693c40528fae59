"""Visual question answering: what Genie makes of a program that reads a picture and a question.

    python examples/03_multimodal.py
    GENIE_NODES=10.0.0.10:8888 python examples/03_multimodal.py

The model is plain PyTorch with random weights: a vision transformer, a text transformer, and a fusion block in which
the words of the question look at the patches of the picture. Nothing in it is written for Genie, and no name in it says
what it does. Genie tells the two encoders, the place where they meet and what each costs from the operators alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import genie


class Block(nn.Module):
    """Attention and an MLP. With ``other`` the queries look there instead of at their own sequence."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        mine = self.before(x)
        there = mine if other is None else other
        q, k, v = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for each in (self.query(mine), self.key(there), self.value(there))
        )
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.between(x))


class Answerer(nn.Module):
    """A picture (batch, 3, 64, 64) and a question (batch, words) → scores of answers (batch, 100)."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, kernel_size=8, stride=8)
        self.places = nn.Parameter(torch.randn(1, 64, width))
        self.looks = nn.ModuleList([Block(width, heads) for _ in range(2)])
        self.words = nn.Embedding(1000, width)
        self.reads = nn.ModuleList([Block(width, heads) for _ in range(2)])
        self.asks = Block(width, heads)
        self.answers = nn.Linear(width, 100)

    def forward(self, picture: Tensor, question: Tensor) -> Tensor:
        x = self.patches(picture).flatten(2).transpose(1, 2) + self.places
        for block in self.looks:
            x = block(x)
        y = self.words(question)
        for block in self.reads:
            y = block(y)
        scores: Tensor = self.answers(self.asks(y, x).mean(1))
        return scores


def main() -> None:
    torch.manual_seed(0)
    model = Answerer().eval()
    picture, question = torch.randn(1, 3, 64, 64), torch.randint(0, 1000, (1, 12))
    with torch.no_grad():
        expected = model(picture, question)
        with genie.capture():
            scores = model(picture, question)
    torch.testing.assert_close(scores.cpu(), expected)
    print("the answer, computed by Genie, equals the model's on the CPU\n")

    # 1. What is it?
    graph = genie.annotate(genie.get_graph())
    found = genie.summary(graph)
    print(f"workload: {found.workload}; encoders: {', '.join(f'{m} ({p})' for m, p in found.encoders.items())}")
    print("work by phase:")
    for phase, flops in found.phases.items():
        nodes = sum(node.metadata.get("phase") == phase for node in graph.nodes())
        print(f"  {phase:<14}{nodes:>4} operators {flops / 1e6:>9.2f} MFLOP")

    # 2. Where do the picture and the question meet, and how does Genie know?
    first = graph.get_node(found.fusion[0])
    print(f"\nthey meet at {first.target} in {first.module_path or 'the model itself'}:")
    for why in first.semantics.evidence if first.semantics is not None else ():
        print(f"  {why.label}: {why.reason} ({why.source}, {why.confidence:g})")

    # 3. The user's word is final. It changes labels, never results.
    genie.mark(model.asks, phase="fusion", colocate="answering", priority="interactive")
    with torch.no_grad(), genie.capture():
        again = model(picture, question)
    assert torch.equal(again.cpu(), scores.cpu())
    marked = genie.annotate(genie.get_graph())
    together = [node for node in marked.nodes() if node.metadata.get("colocation_group") == "answering"]
    print(f"\nmarked by the user: {len(together)} operators stay together; the answer is the same, bit for bit")
    assert found.workload == "multimodal"


if __name__ == "__main__":
    main()
