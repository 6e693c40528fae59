"""Genie's PyTorch frontend. Importing it makes ``remote_accelerator`` a device of PyTorch."""

from __future__ import annotations

from genie import api as _api
from genie_pytorch import device as _device

_device.register()
_api.use_frontend("pytorch")

# What follows needs the device's name registered.
from genie_pytorch import generation as _generation  # noqa: E402
from genie_pytorch.decode import decode_loop  # noqa: E402
from genie_pytorch.lazy_tensor import LazyTensor  # noqa: E402

_api.on_shutdown(_generation.forget)

__all__ = ["LazyTensor", "decode_loop"]
