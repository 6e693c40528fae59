"""Genie's PyTorch frontend. Importing it makes ``remote_accelerator`` a device of PyTorch."""

from __future__ import annotations

from genie import api as _api
from genie_pytorch import device as _device

_device.register()
_api.use_frontend("pytorch")

from genie_pytorch.lazy_tensor import LazyTensor  # noqa: E402  (a metaclass needs the device's name registered)

__all__ = ["LazyTensor"]
