"""Attention in all its shapes, found in recordings of PyTorch programs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from patterns.recording import DEVICE, annotated, attends, labelled, numbers
from torch import Tensor, nn

from genie.graph import Graph
from genie.match import Attention, attentions

BATCH, LENGTH, HEADS, SIZE = 2, 6, 4, 8
WIDTH = HEADS * SIZE


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def written(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v


def flattened(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Heads beside the batch, as fairseq and early diffusers have it."""
    batch, heads = q.shape[:2]
    q, k, v = (each.reshape(batch * heads, *each.shape[2:]) for each in (q, k, v))
    scores = torch.bmm(q, k.transpose(1, 2)) * q.shape[-1] ** -0.5
    if causal:
        scores = scores + torch.full(scores.shape[1:], -torch.inf, device=scores.device).triu(1)
    if mask is not None:
        scores = scores + mask
    return torch.bmm(F.softmax(scores, -1), v).view(batch, heads, -1, v.shape[-1])


KERNELS = {"fused": fused, "written": written, "flattened": flattened}


class Quux(nn.Module):
    """Attention; nothing in it is named like it."""

    def __init__(self, kernel: str = "fused", kv_heads: int = HEADS, rotary: bool = False, packed: bool = False):
        super().__init__()
        self.kernel, self.kv_heads, self.rotary, self.packed = KERNELS[kernel], kv_heads, rotary, packed
        narrow = kv_heads * SIZE
        self.a = nn.Linear(WIDTH, WIDTH + 2 * narrow if packed else WIDTH)
        self.b, self.c = nn.Linear(WIDTH, narrow), nn.Linear(WIDTH, narrow)
        self.d = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, other: Tensor | None = None, **options) -> Tensor:
        other = x if other is None else other
        if self.packed:
            q, k, v = self.a(x).split([WIDTH, self.kv_heads * SIZE, self.kv_heads * SIZE], -1)
        else:
            q, k, v = self.a(x), self.b(other), self.c(other)
        q, k, v = (each.view(*each.shape[:2], -1, SIZE).transpose(1, 2) for each in (q, k, v))
        if self.rotary:
            q, k = turn(q), turn(k)
        if self.kv_heads < HEADS:
            k, v = (each.repeat_interleave(HEADS // self.kv_heads, 1) for each in (k, v))
        y = self.kernel(q, k, v, **options)
        return self.d(y.transpose(1, 2).reshape(*x.shape[:2], WIDTH))


def turn(x: Tensor) -> Tensor:
    rate = 1e4 ** (-torch.arange(0, SIZE, 2, device=x.device) / SIZE)
    angle = torch.arange(x.shape[2], device=x.device)[:, None] * rate
    angle = torch.cat([angle, angle], -1)
    left, right = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-right, left], -1) * angle.sin()


def graph_of(module: nn.Module, *inputs: Tensor, **options) -> Graph:
    module = module.eval().to(DEVICE)
    return annotated(lambda: module(*inputs, **options))


def only(graph: Graph) -> Attention:
    [found] = attentions(graph)
    return found


def kind(graph: Graph) -> str:
    """How the attention is described."""
    [node] = attends(graph)
    return next(why.reason for why in node.semantics.evidence if why.label == "role")


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("packed", [False, True])
def test_heads_and_lengths(kernel, packed):
    graph = graph_of(Quux(kernel, packed=packed), numbers(BATCH, LENGTH, WIDTH))
    found = only(graph)
    assert (found.queries, found.keys, found.causal) == (LENGTH, LENGTH, False)
    if kernel != "flattened":
        assert (found.heads, found.kv_heads) == (HEADS, HEADS)
    roles = labelled(graph)
    assert (len(attends(graph)), roles["attention_projection"]) == (1, 1)
    if not packed:
        assert roles["attention_query"] == roles["attention_key"] == roles["attention_value"] == 1
    if kernel != "fused":
        assert roles["attention_softmax"] == 1
        assert roles["attention_scores"] >= 1


@pytest.mark.parametrize(("kv_heads", "word"), [(1, "multi-query"), (2, "grouped-query")])
def test_queries_that_share_keys(kernel, kv_heads, word):
    graph = graph_of(Quux(kernel, kv_heads), numbers(BATCH, LENGTH, WIDTH))
    if kernel == "flattened":  # what was shared can't be told any more
        assert only(graph).queries == LENGTH
        return
    assert (only(graph).heads, only(graph).kv_heads) == (HEADS, kv_heads)
    assert word in kind(graph)


def test_queries_that_share_keys_by_expanding(kernel):
    class Expands(Quux):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (each(x).view(BATCH, LENGTH, -1, SIZE).transpose(1, 2) for each in (self.a, self.b, self.c))
            k, v = (e[:, :, None].expand(-1, -1, 2, -1, -1).reshape(BATCH, HEADS, LENGTH, SIZE) for e in (k, v))
            return self.d(self.kernel(q, k, v).transpose(1, 2).reshape(BATCH, LENGTH, WIDTH))

    found = only(graph_of(Expands(kernel, 2), numbers(BATCH, LENGTH, WIDTH)))
    assert (found.queries, found.keys) == (LENGTH, LENGTH)
    if kernel != "flattened":
        assert (found.heads, found.kv_heads) == (HEADS, 2)


def test_rotary_positions_between(kernel):
    graph = graph_of(Quux(kernel, rotary=True), numbers(BATCH, LENGTH, WIDTH))
    assert only(graph).queries == LENGTH
    roles = labelled(graph)
    assert roles["attention_query"] == roles["attention_key"] == roles["attention_value"] == 1
    assert roles["rotary"] >= 4


def test_causal_attention(kernel):
    graph = graph_of(Quux(kernel), numbers(BATCH, LENGTH, WIDTH), causal=True)
    assert only(graph).causal
    assert "causal" in kind(graph)


def test_a_window_that_slides(kernel):
    def program() -> Tensor:
        position = torch.arange(LENGTH, device=DEVICE)
        far = position[:, None] - position
        seen = (far >= 0) & (far < 3)
        mask = torch.zeros(LENGTH, LENGTH, device=DEVICE).masked_fill(~seen, -torch.inf)
        return module(x, mask=mask)

    module, x = Quux(kernel).eval().to(DEVICE), numbers(BATCH, LENGTH, WIDTH)
    graph = annotated(program)
    assert only(graph).causal


def test_masks_that_are_added_and_given(kernel):
    mask = torch.zeros(LENGTH, LENGTH)
    mask[:, -2:] = -1e9
    found = only(graph_of(Quux(kernel), numbers(BATCH, LENGTH, WIDTH), mask=mask.to(DEVICE)))
    assert not found.causal  # a mask of padding says nothing of order
    assert (found.queries, found.keys) == (LENGTH, LENGTH)


def test_biases_by_distance(kernel):
    """ALiBi: the farther, the less."""

    def program() -> Tensor:
        position = torch.arange(LENGTH, device=DEVICE)
        slope = 2.0 ** -torch.arange(1, HEADS + 1, device=DEVICE)
        bias = slope[:, None, None] * (position[None, :] - position[:, None])
        if kernel == "flattened":
            bias = bias.repeat(BATCH, 1, 1)
        return module(x, mask=bias)

    module, x = Quux(kernel).eval().to(DEVICE), numbers(BATCH, LENGTH, WIDTH)
    assert only(annotated(program)).keys == LENGTH


def test_cross_attention(kernel):
    graph = graph_of(Quux(kernel), numbers(BATCH, LENGTH, WIDTH), numbers(BATCH, 9, WIDTH))
    assert (only(graph).queries, only(graph).keys) == (LENGTH, 9)
    assert "cross" in kind(graph)


def test_cross_attention_of_equal_lengths(kernel):
    graph = graph_of(Quux(kernel), numbers(BATCH, LENGTH, WIDTH), numbers(BATCH, LENGTH, WIDTH))
    assert "cross" in kind(graph)


@pytest.mark.parametrize("weights", [False, True])
def test_multihead_attention_of_torch(weights):
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval().to(DEVICE)
    x = numbers(BATCH, LENGTH, WIDTH)
    graph = annotated(lambda: module(x, x, x, need_weights=weights))
    assert (only(graph).queries, only(graph).keys) == (LENGTH, LENGTH)
    assert len(attends(graph)) == 1


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_layers_of_torch(norm_first):
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 48, batch_first=True, norm_first=norm_first)
    graph = graph_of(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), numbers(BATCH, LENGTH, WIDTH))
    assert len(attentions(graph)) == 3
    assert {each.queries for each in attentions(graph)} == {LENGTH}


def test_decoder_layers_of_torch():
    layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 48, batch_first=True)
    graph = graph_of(layer, numbers(BATCH, LENGTH, WIDTH), numbers(BATCH, 9, WIDTH))
    assert [(each.queries, each.keys) for each in attentions(graph)] == [(LENGTH, LENGTH), (LENGTH, 9)]


def test_scores_that_are_capped():
    class Capped(Quux):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (each(x).view(BATCH, LENGTH, -1, SIZE).transpose(1, 2) for each in (self.a, self.b, self.c))
            scores = torch.tanh(q @ k.transpose(-1, -2) / 50) * 50
            y = F.dropout(scores.float().softmax(-1).to(q.dtype), 0.0) @ v
            return self.d(y.transpose(1, 2).reshape(BATCH, LENGTH, WIDTH))

    assert only(graph_of(Capped(), numbers(BATCH, LENGTH, WIDTH))).heads == HEADS


def test_a_softmax_that_is_none():
    """A classifier's probabilities, a mixture's weights, a temperature: no queries, no keys."""

    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.out = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 5)

        def forward(self, x: Tensor) -> Tensor:
            return (self.out(x) * self.gate(x).softmax(-1)[..., :1]).softmax(-1)

    graph = graph_of(Mixes(), numbers(BATCH, WIDTH))
    assert attentions(graph) == ()
    assert attends(graph) == []
