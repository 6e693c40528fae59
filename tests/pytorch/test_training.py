"""Training: gradients, optimizers, mixed precision and checkpointing give what the CPU gives."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import genie

DEVICE = "remote_accelerator"
Tensor = torch.Tensor
Optimizer = Callable[[Any], torch.optim.Optimizer]


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 8, bias=False)
        self.dropout = dropout

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.embed(ids))
        x = self.second(F.dropout(F.gelu(self.first(x)), self.dropout, self.training))
        return x @ self.embed.weight.t()  # tied


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 11, (4, 5), generator=generator), torch.randint(0, 11, (4, 5), generator=generator)


def train(model: nn.Module, make: Optimizer, ids: Tensor, labels: Tensor, steps: int = 3) -> list[float]:
    optimizer = make(model.parameters())
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(ids).flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "adamw-default": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


def same(mine: nn.Module, native: nn.Module) -> None:
    for (name, one), (_, other) in zip(mine.state_dict().items(), native.state_dict().items(), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("how", ["device", "capture"])
def test_optimizers(name: str, how: str) -> None:
    native = Net()
    mine = copy.deepcopy(native)
    ids, labels = batch()
    expected = train(native, OPTIMIZERS[name], ids, labels)
    if how == "device":
        losses = train(mine.to(DEVICE), OPTIMIZERS[name], ids.to(DEVICE), labels.to(DEVICE))
    else:
        with genie.capture():
            losses = train(mine, OPTIMIZERS[name], ids, labels)
        assert all(p.device.type == "cpu" and p.grad.device.type == "cpu" for p in mine.parameters())
    assert losses == pytest.approx(expected, abs=1e-5)
    same(mine, native)


@pytest.mark.parametrize("how", ["device", "capture"])
def test_dropout_draws_the_same_masks(how: str) -> None:
    native = Net(dropout=0.3)
    mine = copy.deepcopy(native)
    ids, labels = batch()
    torch.manual_seed(5)
    expected = train(native, OPTIMIZERS["sgd"], ids, labels)
    torch.manual_seed(5)
    if how == "device":
        losses = train(mine.to(DEVICE), OPTIMIZERS["sgd"], ids.to(DEVICE), labels.to(DEVICE))
    else:
        with genie.capture():
            losses = train(mine, OPTIMIZERS["sgd"], ids, labels)
    assert losses == pytest.approx(expected, abs=1e-5)


def test_parameters_stay_themselves_on_the_way_to_the_device() -> None:
    model = Net()
    model.second.weight = nn.Parameter(model.first.weight.detach().t().contiguous())
    model.tied = model.embed
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = list(model.parameters())
    model.to(DEVICE)
    assert all(one is other for one, other in zip(model.parameters(), before, strict=True))
    assert model.tied.weight is model.embed.weight
    assert optimizer.param_groups[0]["params"][0].device.type == DEVICE


def test_mixed_precision_follows_the_cpus_autocast() -> None:
    native = Net()
    mine = copy.deepcopy(native).to(DEVICE)
    ids, labels = batch()
    outputs = []
    for model, device in ((native, "cpu"), (mine, DEVICE)):
        with torch.autocast(device, torch.bfloat16):
            out = model(ids.to(device))
            loss = F.cross_entropy(out.flatten(0, 1).float(), labels.flatten().to(device))
        loss.backward()
        outputs.append((out.detach().cpu(), loss.item(), model.first.weight.grad.cpu()))
    (a, la, ga), (b, lb, gb) = outputs
    assert a.dtype == b.dtype == torch.bfloat16
    assert torch.equal(a, b)
    assert la == pytest.approx(lb, rel=1e-3)
    torch.testing.assert_close(ga, gb, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("how", ["device", "capture"])
def test_checkpointing(reentrant: bool, how: str) -> None:
    native = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 2))
    mine = copy.deepcopy(native)
    x = torch.randn(3, 4)

    def step(model: nn.Module, x: Tensor) -> Tensor:
        torch.manual_seed(9)
        x = x.detach().requires_grad_()
        checkpoint(model, x, use_reentrant=reentrant).pow(2).sum().backward()
        return x.grad

    expected = step(native, x)
    if how == "device":
        got = step(mine.to(DEVICE), x.to(DEVICE))
    else:
        with genie.capture():
            got = step(mine, x)
    torch.testing.assert_close(got.cpu(), expected)
    for one, other in zip(mine.parameters(), native.parameters(), strict=True):
        torch.testing.assert_close(one.grad.cpu(), other.grad)


def test_gradients_accumulate_and_reach_the_host_in_a_capture() -> None:
    model = nn.Linear(3, 2)
    native = copy.deepcopy(model)
    x = torch.randn(4, 3)
    for _ in range(2):
        native(x).sum().backward()
    with genie.capture():
        for _ in range(2):
            model(x).sum().backward()
        assert torch.equal(model.weight.grad, native.weight.grad)
    assert torch.equal(model.bias.grad, native.bias.grad)


AUTOGRAD: dict[str, Callable[[Tensor], Tensor]] = {
    "autograd.grad": lambda x: torch.autograd.grad((x**3).sum(), x, create_graph=True)[0].sum(),
    "double": lambda x: torch.autograd.grad(torch.autograd.grad((x**4).sum(), x, create_graph=True)[0].sum(), x)[0],
    "in place": lambda x: (x * 2).add_(1).mul_(3)[1:].sin_().sum(),
    "views": lambda x: x.view(2, 2).t()[0].cumsum(0).sum() + x.expand(3, 4).select(0, 1).prod(),
    "index": lambda x: x[torch.tensor([0, 0, 2])].pow(2).sum(),
    "where": lambda x: torch.where(x > 0, x, x * 0.1).sum(),
    "norm": lambda x: F.normalize(x, dim=0).max(),
    "sort": lambda x: x.sort().values[1] + x.topk(2).values.sum(),
    "attention": lambda x: F.scaled_dot_product_attention(*[x.view(1, 1, 2, 2)] * 3, is_causal=True).sum(),
    "detach": lambda x: (x * x.detach()).sum(),
    "no grad": lambda x: x.sum() * _without_grad(x),
}


def _without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.sum()


@pytest.mark.parametrize("name", AUTOGRAD)
@pytest.mark.parametrize("how", ["device", "capture"])
def test_autograd(name: str, how: str) -> None:
    function = AUTOGRAD[name]

    def gradient(x: Tensor) -> tuple[Tensor, Tensor | None]:
        y = function(x)
        if y.requires_grad:
            y.sum().backward()
        return y.detach(), x.grad

    start = torch.tensor([0.5, -1.0, 2.0, 0.3])
    expected, wanted = gradient(start.clone().requires_grad_())
    with genie.capture() if how == "capture" else contextlib.nullcontext():
        leaf = (start.to(DEVICE) if how == "device" else start.clone()).requires_grad_()
        y, grad = gradient(leaf)
    torch.testing.assert_close(y.cpu(), expected)
    assert (grad is None) == (wanted is None)
    if grad is not None and wanted is not None:
        assert grad.device == leaf.device
        torch.testing.assert_close(grad.cpu(), wanted)


@pytest.mark.parametrize("how", ["device", "capture"])
def test_hooks_and_custom_functions(how: str) -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * 2

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return grads[0] * 2 + x * 0

    seen: list[Tensor] = []
    with genie.capture() if how == "capture" else contextlib.nullcontext():
        x = torch.ones(3, device=DEVICE if how == "device" else "cpu").requires_grad_()
        y = Double.apply(x)
        y.register_hook(lambda grad: seen.append(grad) or grad * 3)
        y.retain_grad()
        y.sum().backward()
    assert x.grad.tolist() == [6, 6, 6]
    assert seen[0].tolist() == [1, 1, 1]


def test_the_backward_pass_is_in_the_graph() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    with genie.capture():
        model(torch.ones(2, 3)).sum().backward()
    operations = [node.operation for node in genie.get_graph().nodes()]
    assert "aten::threshold_backward" in operations
    assert operations.count("aten::mm") >= 3


def test_anomalies_are_reported() -> None:
    x = torch.ones(2, device=DEVICE, requires_grad=True)
    y = x * 2
    with pytest.raises(RuntimeError, match="leaf Variable"):
        x.add_(1)
    z = y.exp()
    z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_a_backward_pass_has_the_threads_of_the_program() -> None:
    """Kernels add up in another order with another number of threads."""
    before = torch.get_num_threads()
    torch.manual_seed(0)
    blocks = (nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.GELU()) for _ in range(16))
    native = nn.Sequential(*blocks)  # so many that some of it is sent by the thread of the backward pass
    x = torch.randn(6, 8)
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            model = copy.deepcopy(native).to(DEVICE)
            native.zero_grad()
            for each, there in ((native, x), (model, x.to(DEVICE))):
                each(there).square().mean().backward()
            for one, other in zip(native.parameters(), model.parameters(), strict=True):
                assert torch.equal(one.grad, other.grad.cpu())
    finally:
        torch.set_num_threads(before)
