"""The native module, found by the torch it was built with."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

import torch

from genie.errors import TorchMismatch
from genie.graph import Graph
from genie.interfaces import Buffer

_PREFIX = "_native_torch_"


class NativeShared(Protocol):
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


class NativeSession(Protocol):
    def load(self, plan: int, graph: Graph) -> None: ...
    def execute(self, plan: int, bindings: Buffer) -> None: ...
    def upload(self, handle: int, shape: Sequence[int], dtype: str, data: Buffer) -> None: ...
    def allocate(self, shape: Sequence[int], dtype: str) -> Buffer: ...
    def commit(self, handle: int, allocation: Buffer) -> None: ...
    def describe(self, handle: int) -> tuple[tuple[int, ...], str, tuple[int, ...]]: ...
    def fetch(self, handle: int) -> tuple[tuple[int, ...], str, memoryview]: ...
    def fetch_into(self, handle: int, out: Buffer) -> tuple[tuple[int, ...], str]: ...
    def free(self, handles: Sequence[int]) -> None: ...
    def share(self, handle: int) -> NativeShared: ...
    def adopt(self, handle: int, value: NativeShared) -> None: ...
    def seed(self, generator: int, seed: int) -> None: ...
    def generator_state(self, generator: int) -> bytes: ...
    def set_generator_state(self, generator: int, state: Buffer) -> None: ...
    def synchronize(self) -> None: ...
    def counters(self) -> Mapping[str, int]: ...
    def take_warnings(self) -> Sequence[str]: ...
    def close(self) -> None: ...


class NativePrediction(Protocol):
    def decode(self, data: Buffer) -> tuple[list[int], list[int]]: ...


class Native(Protocol):
    torch_version: str

    def Session(self, device: str, name: str, memory_limit: int) -> NativeSession: ...  # noqa: N802
    def Prediction(self, inputs: int, parameters: Sequence[int]) -> NativePrediction: ...  # noqa: N802
    def set_threads(self, threads: int) -> None: ...
    def threads(self) -> int: ...
    def forget_blocks(self, seconds: float) -> None: ...


def module_name(torch_version: str) -> str:
    return _PREFIX + re.sub(r"\W", "_", torch_version)


def load(torch_version: str = torch.__version__, directory: Path = Path(__file__).parent) -> Native:
    """The module built with this torch. Raises :class:`TorchMismatch` when there is none."""
    wanted = module_name(torch_version)
    hint = "build it again: pip install --no-build-isolation --force-reinstall --no-deps genie-backend-local"
    if not any(directory.glob(f"{wanted}.*")):
        others = sorted(path.name.split(".")[0].removeprefix(_PREFIX) for path in directory.glob(f"{_PREFIX}*"))
        built = f"was built with torch {', '.join(others)}" if others else "has not been built"
        raise TorchMismatch(
            f"genie-backend-local {built}; torch {torch_version} is installed", where=str(directory), hint=hint
        )
    try:
        return cast(Native, importlib.import_module(f"{__package__}.{wanted}"))
    except ImportError as error:
        raise TorchMismatch(
            f"genie-backend-local does not load with torch {torch_version}: {error}", where=str(directory), hint=hint
        ) from error
