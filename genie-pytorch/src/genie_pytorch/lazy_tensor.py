"""``LazyTensor``: what ``isinstance`` calls a tensor on the device, and constructors for one."""

from __future__ import annotations

from typing import Any

import torch

from genie_pytorch.device import NAME


class _LazyTensorMeta(type(torch.Tensor)):  # type: ignore[misc]
    """A tensor's class can't tell where it lives; its device can."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch.Tensor) and instance.device.type == NAME


class LazyTensor(torch.Tensor, metaclass=_LazyTensorMeta):
    """A tensor whose elements are on a node, or not computed yet. Nothing runs before somebody looks.

    >>> x = LazyTensor.randn(2, 3)          # the same as torch.randn(2, 3, device="remote_accelerator")
    >>> isinstance(x + x, LazyTensor)
    True
    """

    @staticmethod
    def operation(tensor: torch.Tensor) -> str:
        """The operator that made a tensor that nobody has looked at yet: ``"aten::add"``; ``""`` if not known."""
        from genie_pytorch.frontend import operation_of

        return operation_of(tensor)


def _constructor(name: str) -> Any:
    function = getattr(torch, name)

    def construct(*args: Any, **kwargs: Any) -> torch.Tensor:
        kwargs.setdefault("device", NAME)
        result: torch.Tensor = function(*args, **kwargs)
        return result

    construct.__name__ = name
    construct.__doc__ = f"``torch.{name}`` on the device."
    return staticmethod(construct)


for _name in ("empty", "zeros", "ones", "full", "rand", "randn", "randint", "arange", "linspace", "eye", "tensor"):
    setattr(LazyTensor, _name, _constructor(_name))
