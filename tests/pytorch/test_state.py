"""State that programs keep: saved, loaded, copied, fed by loaders."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import nn

DEVICE = "remote_accelerator"


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(a.cpu(), b.cpu())
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_state_dict_both_ways() -> None:
    native, mine = model(), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(DEVICE)
    assert not equal(native, mine)
    mine.load_state_dict(native.state_dict())
    assert mine[0].weight.device.type == DEVICE
    assert equal(native, mine)
    with torch.no_grad():
        mine[0].weight.mul_(2)
    native.load_state_dict(mine.state_dict())
    assert native[0].weight.device.type == "cpu"
    assert equal(native, mine)
    fresh = model().to(DEVICE)
    fresh.load_state_dict(native.state_dict(), assign=True)
    assert equal(fresh, native)


@pytest.mark.parametrize("legacy", [False, True])
def test_save_and_load(tmp_path: Path, legacy: bool) -> None:
    mine = model().to(DEVICE)
    shared = mine[0].weight
    file = tmp_path / "state.pt"
    content = {"state": mine.state_dict(), "view": shared[1:], "whole": shared, "n": 3}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    for location, where in ((None, DEVICE), ("cpu", "cpu"), (DEVICE, DEVICE), ("remote_accelerator:0", DEVICE)):
        loaded = torch.load(file, map_location=location)
        assert loaded["whole"].device.type == where
        assert torch.equal(loaded["whole"].cpu(), shared.cpu())
        assert torch.equal(loaded["view"].cpu(), shared[1:].cpu())
        fresh = model().to(DEVICE)
        fresh.load_state_dict(loaded["state"])
        assert equal(fresh, mine)


def test_what_the_cpu_saved_loads_on_the_device() -> None:
    native = model()
    buffer = io.BytesIO()
    torch.save(native.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, map_location=DEVICE)
    assert all(value.device.type == DEVICE for value in state.values())
    mine = model().to(DEVICE)
    mine.load_state_dict(state)
    assert equal(mine, native)


def test_deepcopy_is_a_copy() -> None:
    mine = model().to(DEVICE)
    other = copy.deepcopy(mine)
    assert equal(mine, other)
    with torch.no_grad():
        other[0].weight.zero_()
    assert not equal(mine, other)
    x = torch.ones(3, device=DEVICE)
    y = copy.deepcopy({"x": x, "again": x})
    assert y["x"] is y["again"]
    y["x"].add_(1)
    assert (x.tolist(), y["x"].tolist()) == ([1, 1, 1], [2, 2, 2])


def test_optimizer_state() -> None:
    mine = model().to(DEVICE)
    optimizer = torch.optim.AdamW(mine.parameters(), lr=0.1)
    mine(torch.ones(4, 3, device=DEVICE)).sum().backward()
    optimizer.step()
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    other = torch.optim.AdamW(copy.deepcopy(mine).parameters(), lr=0.1)
    other.load_state_dict(torch.load(buffer))
    one, two = optimizer.state[mine[0].weight], next(iter(other.state.values()))
    assert torch.equal(one["exp_avg"].cpu(), two["exp_avg"].cpu())
    assert two["exp_avg"].device.type == DEVICE


def test_loaders_feed_the_device() -> None:
    data = torch.utils.data.TensorDataset(torch.arange(8.0).view(8, 1), torch.arange(8))
    total = torch.zeros((), device=DEVICE)
    for x, y in torch.utils.data.DataLoader(data, batch_size=4, num_workers=1):
        total += (x.to(DEVICE, non_blocking=True).squeeze(1) * y.to(DEVICE)).sum()
    assert total.item() == sum(i * i for i in range(8))


def test_moving_there_and_back_keeps_layout() -> None:
    for host in (
        torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.randn(4, 6).t(),
        torch.randn(4, 6)[::2, 1:4],
        torch.empty(0, 3),
        torch.tensor(3),
        torch.randn(3).to(torch.bfloat16),
        torch.tensor([True, False]),
        torch.randn(2, dtype=torch.complex64),
    ):
        there = host.to(DEVICE)
        assert torch.equal(there.cpu(), host)
        if host.is_contiguous(memory_format=torch.preserve_format) and host.dim() == 4:
            assert there.is_contiguous(memory_format=torch.channels_last)
    assert torch.ones(2, device=DEVICE).double().dtype == torch.float64
    module = model().to(DEVICE).to(torch.bfloat16).cpu()
    assert module[0].weight.dtype == torch.bfloat16
    assert module[0].weight.device.type == "cpu"
