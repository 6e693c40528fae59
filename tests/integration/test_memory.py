"""What is deleted is gone from the node; nothing grows with use."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch

from . import tiny_lm
from .conftest import Node

DEVICE = "remote_accelerator"


@pytest.fixture(autouse=True)
def connected(node: Node, user: Callable[..., None]) -> None:
    user(node)


def allocated() -> int:
    torch.remote_accelerator.synchronize()  # type: ignore[attr-defined]
    return int(torch.remote_accelerator.memory_allocated())  # type: ignore[attr-defined]


def handles() -> int:
    import genie

    return int(genie.get_stats()["values"])


def test_deleting_frees() -> None:
    assert allocated() == 0
    x = torch.ones(1 << 18, device=DEVICE)
    assert allocated() == 1 << 20
    y = x + 1
    z = y[:10]
    assert allocated() == 2 << 20
    del y
    assert allocated() == 2 << 20  # z is a view of it
    del z
    assert allocated() == 1 << 20
    del x
    assert allocated() == 0


def test_a_cycle_is_collected() -> None:
    class Holder:
        pass

    holder = Holder()
    holder.me = holder  # type: ignore[attr-defined]
    holder.x = torch.ones(1 << 18, device=DEVICE)  # type: ignore[attr-defined]
    assert allocated() == 1 << 20
    del holder
    gc.collect()
    assert allocated() == 0


def test_a_training_loop_does_not_grow(node: Node) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 4)).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = torch.randn(8, 16).to(DEVICE), torch.randint(0, 4, (8,)).to(DEVICE)
    sizes = []
    for step in range(200):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if step % 20 == 19:
            loss.item()
            sizes.append(allocated())
            if step == 39:
                resident = node.resident
    assert len(set(sizes[1:])) == 1, sizes
    assert node.resident - resident < 4 << 20
    del model, optimizer, x, y, loss
    gc.collect()
    assert allocated() == 0


def test_generation_does_not_grow(node: Node) -> None:
    model = tiny_lm.model().to(DEVICE)
    expected = tiny_lm.generate(tiny_lm.model(), count=8)
    sizes = []
    for turn in range(60):
        assert tiny_lm.generate(model, count=8) == expected
        sizes.append(allocated())
        if turn == 20:
            resident = node.resident
    assert len(set(sizes)) == 1, sizes
    assert node.resident - resident < 4 << 20
    del model
    gc.collect()
    assert allocated() == 0


def test_failures_do_not_grow() -> None:
    table = torch.ones(3, device=DEVICE)
    far = torch.tensor([7]).to(DEVICE)
    before = allocated()
    for _ in range(50):
        with pytest.raises(IndexError):
            (table[far] + 1).tolist()
    gc.collect()
    assert allocated() == before
