"""PyTorch as a frontend of Genie."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from genie.graph import Graph, Semantics, TensorSpec
from genie.interfaces import Buffer, Engine
from genie_pytorch import generation, lift, modules, regions, scopes, whole
from genie_pytorch.capture import Capture
from genie_pytorch.dtypes import dtype_named, name_of
from genie_pytorch.lift import can_lift, on_device
from genie_pytorch.native import _C
from genie_pytorch.port import port

_T = TypeVar("_T")

_OF_TENSORS = frozenset(("residency", "modality", "colocation_group"))
_OF_MODULES = _OF_TENSORS | {"phase", "role", "priority", "device"}


class PyTorchFrontend:
    """See :class:`genie.interfaces.Frontend`."""

    name = "pytorch"

    def capture(self) -> Capture:
        return Capture()

    def latest_graph(self) -> Graph | None:
        return regions.latest_graph()

    def captured(self) -> int:
        return int(_C.captured())

    def compile(self, program: Callable[..., Any], engine: Engine) -> Callable[..., Any]:
        return whole.compile(program, port.index_of(engine))

    def launch(self, compiled: Callable[..., _T], *args: Any, **kwargs: Any) -> Callable[[], _T]:
        """See :class:`genie.interfaces.Launches`."""
        return whole.launch(compiled, *args, **kwargs)

    def generate(
        self, program: Any, ids: Any, engine: Engine, *, offload: bool, stream: bool, options: Mapping[str, Any]
    ) -> Any:
        """See :class:`genie.interfaces.Generating`."""
        return generation.generate(program, ids, port.index_of(engine), offload, stream, dict(options))

    def accepts(self, program: object) -> bool:
        return isinstance(program, torch.Tensor | torch.nn.Module) or callable(program)

    def takes_marks(self, target: object) -> frozenset[str]:
        """See :class:`genie.interfaces.TakesMarks`."""
        if isinstance(target, torch.nn.Module):
            return _OF_MODULES
        if isinstance(target, torch.Tensor) and (on_device(target) or can_lift(target)):
            return _OF_TENSORS
        return frozenset()

    def mark(self, target: torch.nn.Module | torch.Tensor, word: Semantics) -> None:
        with torch._C.DisableTorchFunction():  # a capture need not see this
            if isinstance(target, torch.nn.Module):
                modules.mark(target, word)
            elif on_device(target):
                scopes.mark_device_tensor(target, word)
            else:
                lift.mark(target, word)

    def to_host(self, tensor: torch.Tensor) -> tuple[TensorSpec, Buffer]:
        """A contiguous tensor of the CPU is not copied; it stays alive with the bytes."""
        host = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        spec = TensorSpec(tuple(host.shape), name_of(host.dtype))
        if host.numel() == 0:
            return spec, b""
        return spec, host.reshape(-1).view(torch.uint8).numpy().data

    def from_host(self, spec: TensorSpec, data: Buffer) -> torch.Tensor:
        """The tensor shares the bytes, if they may be written to."""
        if spec.nbytes == 0:
            return torch.empty(spec.shape, dtype=dtype_named(spec.dtype))
        view = memoryview(data)
        writable = bytearray(view) if view.readonly else view
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return torch.frombuffer(writable, dtype=dtype_named(spec.dtype)).reshape(spec.shape)
