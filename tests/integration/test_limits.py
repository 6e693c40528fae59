"""More than a node has, or gives one session."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

import genie
from genie.errors import GenieError, OutOfMemory

from .conftest import Node, Nursery, start_node

DEVICE = "remote_accelerator"
_MB = 1 << 20


@pytest.fixture(scope="module")
def limited(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = start_node(nursery, tmp_path_factory.mktemp("limited") / "log", GENIE_MEMORY_LIMIT_GB=str(64 / 1024))
    yield node
    node.stop()


@pytest.fixture(autouse=True)
def connected(limited: Node, user: Callable[..., None]) -> None:
    user(limited)


def allocated() -> int:
    return int(torch.remote_accelerator.memory_allocated())  # type: ignore[attr-defined]


def works() -> None:
    assert (torch.ones(3, device=DEVICE) + 1).tolist() == [2.0] * 3


def test_an_upload_too_large(limited: Node) -> None:
    before = limited.resident
    with pytest.raises(MemoryError) as caught:
        torch.ones(100 * _MB // 4).to(DEVICE).sum().cpu()
    error = caught.value
    assert isinstance(error, OutOfMemory)
    text = str(error)
    assert str(100 * _MB) in text or "100" in text, text  # what it needs
    assert str(64 * _MB) in text or "64" in text, text  # what there is
    assert __file__ in text
    assert limited.resident - before < 16 * _MB
    works()
    assert allocated() < 4096


def test_a_model_too_large(limited: Node) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048, bias=False) for _ in range(6)))  # 6 × 16 MB
    with pytest.raises(MemoryError) as caught:
        model.to(DEVICE)
        torch.remote_accelerator.synchronize()  # type: ignore[attr-defined]
        model(torch.ones(1, 2048, device=DEVICE)).cpu()
    assert isinstance(caught.value, GenieError)
    del model
    works()


def test_an_operator_that_needs_too_much() -> None:
    x = torch.ones(2 * _MB, device=DEVICE)  # 8 MB
    with pytest.raises(MemoryError) as caught:
        big = torch.cat([x] * 20)
        big.sum().item()
    assert isinstance(caught.value, OutOfMemory)
    assert __file__ in caught.value.source
    assert "64" in str(caught.value)
    assert x[0].item() == 1.0
    works()


def test_all_at_once_fits_when_the_first_is_gone() -> None:
    for _ in range(8):  # 8 × 40 MB, one after the other
        assert torch.ones(10 * _MB, device=DEVICE).sum().item() == 10 * _MB
    held = torch.ones(10 * _MB, device=DEVICE)
    with pytest.raises(MemoryError):
        torch.ones(10 * _MB, device=DEVICE).sum().item()
    assert held[-1].item() == 1.0
    del held
    assert torch.ones(10 * _MB, device=DEVICE).sum().item() == 10 * _MB
    assert allocated() < 4096


def test_more_than_any_device_has() -> None:
    huge = torch.empty(1 << 42, device=DEVICE)
    other = torch.ones(2, device=DEVICE)
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        huge.sum().item()
    assert isinstance(caught.value, GenieError)
    assert "GiB" in str(caught.value)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="GiB"):
            other.tolist()
    works()
    assert genie.get_stats()["memory_bytes"] < 4096
