"""A module of the host, on the device: the same structure around counterparts of its tensors."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import nn

from genie_pytorch import modules
from genie_pytorch.lift import Lifts, can_lift

Tensor = torch.Tensor

_SHARED = ("config", "generation_config")  # what is set on the one holds for the other


@attrs.define
class _Twin:
    module: nn.Module
    lifts: Lifts
    there: list[Tensor]  # counterparts, in the order of the module's tensors


_twins: weakref.WeakKeyDictionary[nn.Module, dict[int, _Twin]] = weakref.WeakKeyDictionary()


def on(module: nn.Module, device: torch.device) -> nn.Module:
    """``module`` on ``device``. Its weights go up once, and again when they were changed."""
    known = _twins.setdefault(module, {})
    found = known.get(device.index or 0)
    lifts = Lifts() if found is None else found.lifts
    with torch.no_grad():
        there = [lifts.lift(tensor, device) for tensor in _tensors(module)]
    if found is None or len(there) != len(found.there) or any(map(_differ, there, found.there)):
        modules.know(module)
        found = known[device.index or 0] = _Twin(_copy(module, there), lifts, there)
    for name in _SHARED:
        if hasattr(module, name):
            setattr(found.module, name, getattr(module, name))
    if found.module.training != module.training:
        found.module.train(module.training)
    return found.module


def forget() -> None:
    """The sessions end, and the counterparts with them."""
    _twins.clear()


def _differ(one: Tensor, other: Tensor) -> bool:
    return one is not other


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    for tensor in (*module.parameters(), *module.buffers()):
        if can_lift(tensor):
            yield tensor


def _copy(module: nn.Module, there: list[Tensor]) -> nn.Module:
    memo: dict[int, Any] = {}
    for mine, its in zip(_tensors(module), there, strict=True):
        memo[id(mine)] = nn.Parameter(its, requires_grad=mine.requires_grad) if isinstance(mine, nn.Parameter) else its
    for name in _SHARED:
        if hasattr(module, name):
            memo[id(getattr(module, name))] = getattr(module, name)
    return copy.deepcopy(module, memo)
