"""A model on the device must be the model on the CPU: the same kernels run, so the bits are the same."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import genie_pytorch  # noqa: F401  (makes the device)

DEVICE = "remote_accelerator:0"


def remote(model: nn.Module) -> nn.Module:
    """A copy of the model, on the device."""
    return copy.deepcopy(model).to(DEVICE)


def moved(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in values.items()}


def tensors(value: Any, path: str = "") -> dict[str, Tensor]:
    """All tensors of an output, by their path."""
    if isinstance(value, Tensor):
        return {path: value}
    if isinstance(value, Mapping):
        return {name: part for key in value for name, part in tensors(value[key], f"{path}.{key}").items()}
    if isinstance(value, (list, tuple)):
        return {name: part for i, item in enumerate(value) for name, part in tensors(item, f"{path}[{i}]").items()}
    return {}


def assert_equal(native: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Bit for bit, with NaN equal to itself; all differences are told at once."""
    assert native.keys() == other.keys()
    wrong = []
    for name, expected in native.items():
        found = other[name]
        assert found.device.type == "remote_accelerator", f"{name} is on {found.device}"
        found = found.cpu()
        if expected.shape != found.shape or expected.dtype != found.dtype:
            wrong.append(f"{name}: {expected.dtype} {tuple(expected.shape)}, {found.dtype} {tuple(found.shape)}")
        elif not torch.equal(expected, found) and not torch.equal(expected.nan_to_num(), found.nan_to_num()):
            difference = (expected.double() - found.double()).abs().max()
            wrong.append(f"{name}: differs by up to {difference:.3g}")
    assert not wrong, "\n".join(wrong)
