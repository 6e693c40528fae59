"""The same numbers in memory in another order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

Layout = Callable[[Tensor], Tensor]


def swapped(tensor: Tensor) -> Tensor:
    """Channels last where there are channels, else the last two dimensions swapped."""
    if tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if tensor.dim() == 5:
        return tensor.contiguous(memory_format=torch.channels_last_3d)
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def reversed_(tensor: Tensor) -> Tensor:
    """The first dimension varies fastest."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def repeated(tensor: Tensor) -> Tensor:
    """One row shown many times. Changes the numbers."""
    return tensor[:1].contiguous().expand(tensor.shape)


LAYOUTS: dict[str, Layout] = {"swapped": swapped, "reversed": reversed_, "repeated": repeated}


def arranged(tree: Any, layout: Layout) -> Any:
    """The tensors of two dimensions or more laid out so; leaves of autograd stay leaves."""

    def arrange(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.dim() < 2 or value.numel() == 0:
            return value
        return layout(value.detach()).requires_grad_(value.requires_grad)

    return tree_map(arrange, tree)


def copied(tree: Any, device: str) -> Any:
    """On the device with the same strides: the memory is moved as it is, and seen through a view there."""

    def copy(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        plain = value.detach()
        if plain.numel() == 0 or plain.is_contiguous() or plain.is_conj() or plain.is_neg():
            moved = plain.to(device)
        else:
            length = 1 + sum((size - 1) * step for size, step in zip(plain.shape, plain.stride(), strict=True))
            moved = plain.as_strided((length,), (1,)).to(device).as_strided(plain.shape, plain.stride())
        return moved.requires_grad_(value.requires_grad)

    return tree_map(copy, tree)
