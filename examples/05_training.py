"""Training on the device: the loop is PyTorch's, word for word.

    python examples/05_training.py
    GENIE_NODES=10.0.0.10:8888 python examples/05_training.py

Without GENIE_NODES the device is this process itself (the local backend): nothing is started, nothing listens.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import genie
import genie_pytorch  # noqa: F401  (makes "remote_accelerator" a device; with the package installed, torch does)


def spirals(count: int) -> TensorDataset:
    """Two spirals wound into each other: points and which of the two they are on."""
    label = torch.arange(count) % 2
    turn = torch.rand(count) * 3 + 0.5
    angle = turn * 2 + label * torch.pi
    points = torch.stack((turn * angle.cos(), turn * angle.sin()), dim=1) + torch.randn(count, 2) * 0.05
    return TensorDataset(points, label)


def train(model: nn.Module, data: TensorDataset, device: str, epochs: int) -> list[float]:
    """Mean loss per epoch."""
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    loader = DataLoader(data, batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(epochs):
        total = torch.zeros((), device=device)
        for points, label in loader:
            loss = nn.functional.cross_entropy(model(points.to(device)), label.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        losses.append(total.item() / len(loader))  # the only look at a value: once per epoch
    return losses


def main() -> None:
    torch.manual_seed(0)
    data = spirals(512)
    model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    twin = copy.deepcopy(model)

    here = train(twin, data, "cpu", epochs=10)
    there = train(model, data, "remote_accelerator:0", epochs=10)

    print(f"{'epoch':>6}{'loss on the CPU':>18}{'on ' + genie.devices()[0].id:>24}")
    for epoch, (a, b) in enumerate(zip(here, there, strict=True), 1):
        print(f"{epoch:>6}{a:>18.6f}{b:>24.6f}")

    torch.testing.assert_close(torch.tensor(there), torch.tensor(here), rtol=1e-4, atol=1e-5)
    model.cpu()
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter, rtol=1e-3, atol=1e-4)
    print("losses and trained weights equal those of the CPU")


if __name__ == "__main__":
    main()
