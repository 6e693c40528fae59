"""A user's programs over a link that is cut again and again: the same results, to the bit, each step done once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from typing import Any

import attrs
import pytest
import torch
from remote.proxy import Proxy
from torch import nn

import genie
from genie.remote.control import ControlClient

from . import tiny_lm
from .conftest import MakeNode, Node

DEVICE = "remote_accelerator"


@pytest.fixture
def bad_link(make_node: MakeNode, user: Callable[..., None]) -> Iterator[Callable[..., tuple[Node, Proxy]]]:
    """Connects through a proxy whose connections are cut after so many bytes."""
    made: list[Proxy] = []

    def connect(seed: int, least: int = 1_000, most: int = 100_000, **settings: Any) -> tuple[Node, Proxy]:
        node = make_node(GENIE_LEASE_SECONDS="20")
        choose = random.Random(seed)
        # The first connection only asks for the devices.
        proxy = Proxy(node.address, seed=seed, budget=chain([None], (choose.randint(least, most) for _ in repeat(0))))
        made.append(proxy)
        user(attrs.evolve(node, address=proxy.address), unix_sockets=False, **settings)
        return node, proxy

    yield connect
    genie.shutdown()
    for proxy in made:
        proxy.close()


BadLink = Callable[..., tuple[Node, Proxy]]


def _executions() -> int:
    return int(genie.get_stats()["executions"])


@pytest.mark.parametrize("seed", range(2))
def test_generation(bad_link: BadLink, seed: int) -> None:
    expected = tiny_lm.generate(tiny_lm.model(), count=48)
    node, proxy = bad_link(seed)
    model = tiny_lm.model().to(DEVICE)
    assert tiny_lm.generate(model, count=48) == expected
    assert proxy.cuts > 0
    with ControlClient(node.control) as control:
        assert len(control.sessions()) == 1


def test_a_loop_on_the_node(bad_link: BadLink) -> None:
    expected = tiny_lm.generate(tiny_lm.model(), count=64)
    _, proxy = bad_link(3, 1 << 30, 1 << 30)
    model = tiny_lm.Logits(tiny_lm.model().to(DEVICE))
    tokens = []
    for token in genie.generate(model, tiny_lm.PROMPT, max_new_tokens=64, stream=True):
        tokens.append(int(token))
        if len(tokens) % 9 == 0:
            proxy.cut()
    assert tokens == expected
    assert proxy.connections > 2


def _trained(device: str, steps: int = 12) -> tuple[list[float], list[torch.Tensor]]:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 8))
    data = [(torch.randn(96, 64), torch.randint(0, 8, (96,))) for _ in range(steps)]
    model.to(device)
    torch.manual_seed(6)  # of the dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for inputs, labels in data:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [parameter.detach().cpu() for parameter in model.parameters()]


@pytest.mark.parametrize("seed", range(2))
def test_training(bad_link: BadLink, node: Node, user: Callable[..., None], seed: int) -> None:
    user(node)
    losses, weights = _trained(DEVICE)
    executions = _executions()
    _, proxy = bad_link(seed)
    got, got_weights = _trained(DEVICE)
    assert got == losses
    assert all(torch.equal(one, other) for one, other in zip(got_weights, weights, strict=True))
    assert _executions() == executions
    assert proxy.cuts > 0
