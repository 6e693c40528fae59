"""Module paths: found by the recorder, paid by nobody."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import nn

import genie
from genie_pytorch import modules

DEVICE = "remote_accelerator"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x).relu()
        return x


def paths(model: nn.Module) -> list[tuple[str, str]]:
    x = torch.ones(2, 4, device=DEVICE)
    x.cpu()
    with torch.no_grad():
        model(x)
    return [
        (node.operation.removeprefix("aten::"), node.metadata.get("module_path", "-"))
        for node in genie.get_graph().nodes()
    ]


def test_operators_know_their_module() -> None:
    model = nn.Sequential(Block(), nn.Tanh()).to(DEVICE)
    assert paths(model) == [
        ("native_layer_norm", "0.norm"),
        ("linear", "0.layers.0"),
        ("relu", "0"),
        ("linear", "0.layers.1"),
        ("relu", "0"),
        ("tanh", "1"),
    ]
    x = torch.ones(2, device=DEVICE)
    x.cpu()
    x + 1
    (node,) = genie.get_graph().nodes()
    assert "module_path" not in node.metadata


def test_an_exception_leaves_no_module_behind() -> None:
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError

    x = torch.ones(2, device=DEVICE)
    x.cpu()
    try:
        nn.Sequential(Fails())(x)
    except ValueError:
        x + 1
    (node,) = genie.get_graph().nodes()
    assert "module_path" not in node.metadata


def test_parameters_and_buffers_are_facts() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).to(DEVICE).eval()
    paths(model)
    known = {entry.name: entry.origin for entry in genie.get_graph().inputs if entry.name}
    assert known == {
        "0.weight": "parameter",
        "0.bias": "parameter",
        "1.weight": "parameter",
        "1.bias": "parameter",
        "1.running_mean": "buffer",
        "1.running_var": "buffer",
    }


def test_what_is_known_goes_with_the_module() -> None:
    model = Block().to(DEVICE)
    paths(model)
    gc.collect()  # what tests before left
    before = len(modules._seen)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert len(modules._seen) == before - 5  # the list, too, which is never called
    assert paths(nn.Sequential(nn.Tanh()))[-1] == ("tanh", "0")
