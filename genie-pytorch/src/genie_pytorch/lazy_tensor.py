"""``LazyTensor``: what ``isinstance`` calls a tensor on the device, and constructors for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from genie_pytorch import regions
from genie_pytorch.device import NAME
from genie_pytorch.native import _C


class _LazyTensorMeta(type(torch.Tensor)):  # type: ignore[misc]
    """A tensor's class can't tell where it lives; its device can."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch.Tensor) and instance.device.type == NAME


class LazyTensor(torch.Tensor, metaclass=_LazyTensorMeta):
    """A tensor whose elements are on a node, or not computed yet. Nothing runs before somebody looks.

    >>> x = LazyTensor.randn(2, 3)          # the same as torch.randn(2, 3, device="remote_accelerator")
    >>> isinstance(x + x, LazyTensor)
    True
    >>> (x + x).operation
    'aten::add'
    """


def _operation(tensor: torch.Tensor) -> Any:
    """The operator that made a tensor on the device, ``"aten::add"``, as long as its thread has not looked at a value
    since; ``""`` after that. Other tensors have no such attribute, unless somebody gave them one."""
    try:
        return tensor.__dict__["operation"]
    except KeyError:
        pass
    if tensor.device.type != NAME:
        raise AttributeError(f"{type(tensor).__name__!r} object has no attribute 'operation'")
    return regions.operation_of(*_C.peek(tensor))


def _set_operation(tensor: torch.Tensor, value: Any) -> None:
    tensor.__dict__["operation"] = value


def _constructor(name: str) -> Any:
    function: Callable[..., torch.Tensor] = getattr(torch, name)

    def construct(*args: Any, **kwargs: Any) -> torch.Tensor:
        kwargs.setdefault("device", NAME)
        return function(*args, **kwargs)

    construct.__name__ = name
    construct.__doc__ = f"``torch.{name}`` on the device."
    return staticmethod(construct)


def _numpy_of(host_numpy: Callable[..., Any]) -> Callable[..., Any]:
    def numpy(self: torch.Tensor, *, force: bool = False) -> Any:
        if self.device.type == NAME:
            # PyTorch refuses what is not on the CPU, and what has a gradient: the second is as it was.
            return host_numpy(self.detach().cpu() if force or not self.requires_grad else self.cpu(), force=force)
        return host_numpy(self, force=force)

    numpy.__doc__ = host_numpy.__doc__
    return numpy


def _by_way_of_the_host() -> None:
    """PyTorch's old file format reads and writes memory by its address, which is none in this process."""
    storage: Any = torch.UntypedStorage
    host_write, host_read = storage._write_file, storage._set_from_file

    def _write_file(self: torch.UntypedStorage, *args: Any) -> Any:
        return host_write(self.cpu() if self.device.type == NAME else self, *args)

    def _set_from_file(self: torch.UntypedStorage, *args: Any) -> Any:
        if self.device.type != NAME:
            return host_read(self, *args)
        host = torch.UntypedStorage(self.nbytes())
        host_read(host, *args)
        return self.copy_(host, False)

    storage._write_file = _write_file
    storage._set_from_file = _set_from_file


def install() -> None:
    """What tensors on the device are promised beyond PyTorch's interface."""
    for name in ("empty", "zeros", "ones", "full", "rand", "randn", "randint", "arange", "linspace", "eye", "tensor"):
        setattr(LazyTensor, name, _constructor(name))
    torch.Tensor.operation = property(_operation, _set_operation)  # type: ignore[attr-defined]
    torch.Tensor.numpy = _numpy_of(torch.Tensor.numpy)  # type: ignore[method-assign]
    _by_way_of_the_host()


install()
