"""The native module, found by the torch it was built with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from genie import native
from genie.graph import Graph
from genie.interfaces import Buffer

_PREFIX = "_native_torch_"

# Memories, values, generators, seeds, failures: see csrc/snapshot_module.h.
NativeSnapshot = tuple[
    list[tuple[Any, ...]], list[tuple[Any, ...]], list[tuple[Any, ...]], dict[int, int], list[tuple[Any, ...]]
]


class NativeShared(Protocol):
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


class NativeLoop(Protocol):
    over: bool


class NativeSession(Protocol):
    def load(self, plan: int, graph: Graph) -> None: ...
    def execute(self, plan: int, bindings: Buffer) -> None: ...
    def upload(
        self, handle: int, shape: Sequence[int], dtype: str, data: Buffer, stride: Sequence[int] = ()
    ) -> None: ...
    def loop(
        self,
        plan: int,
        bindings: Buffer,
        carries: Sequence[tuple[int, int]],
        strides: Sequence[tuple[int, int]],
        emit: Sequence[int],
        stop: int,
        times: int,
    ) -> NativeLoop: ...
    def iterate(self, loop: NativeLoop) -> tuple[Buffer, ...] | None: ...
    def allocate(self, shape: Sequence[int], dtype: str) -> Buffer: ...
    def commit(self, handle: int, allocation: Buffer) -> None: ...
    def poison(
        self, handle: int, *, kind: str, message: str, op: str, source: str, device: str, plan: int, step: int
    ) -> None: ...
    def describe(self, handle: int) -> tuple[tuple[int, ...], str, tuple[int, ...]]: ...
    def fetch(self, handle: int) -> tuple[tuple[int, ...], str, memoryview]: ...
    def fetch_into(self, handle: int, out: Buffer) -> tuple[tuple[int, ...], str]: ...
    def free(self, handles: Sequence[int]) -> None: ...
    def share(self, handle: int) -> NativeShared: ...
    def adopt(self, handle: int, value: NativeShared) -> None: ...
    def seed(self, generator: int, seed: int) -> None: ...
    def generator_state(self, generator: int) -> bytes: ...
    def set_generator_state(self, generator: int, state: Buffer) -> None: ...
    def snapshot(self) -> NativeSnapshot: ...
    def read_memory(self, id: int, version: int, offset: int, size: int) -> Buffer: ...
    def memory_of(self, handle: int) -> tuple[int, int, int, bool]: ...
    def restore(self, snapshot: NativeSnapshot, staged: dict[int, int]) -> None: ...
    def synchronize(self) -> None: ...
    def take_timings(self) -> Sequence[tuple[Any, ...]]: ...
    def set_timing(self, share: float) -> None: ...
    def counters(self) -> Mapping[str, int]: ...
    def take_warnings(self) -> Sequence[str]: ...
    def close(self) -> None: ...


class NativeBudget(Protocol):
    """Bytes that several sessions may have together."""


class NativeBatcher(Protocol):
    """Where executions of several sessions meet to run in lockstep."""


class NativePrediction(Protocol):
    def decode(self, data: Buffer) -> tuple[list[int], list[int]]: ...


class Native(Protocol):
    torch_version: str

    def Session(  # noqa: N802
        self,
        device: str,
        name: str,
        memory_limit: int,
        budget: NativeBudget | None = None,
        batcher: NativeBatcher | None = None,
    ) -> NativeSession: ...
    def Batcher(self, *, exact: bool, lanes: int, fewest: int, patience: float) -> NativeBatcher:  # noqa: N802
        """``lanes`` batches of a model run at a time (0: as many as there are cores for, by the threads of each). An
        execution waits for ``fewest`` to be there, and for those that were just there, at most ``patience`` seconds."""

    def Budget(self, bytes: int) -> NativeBudget: ...  # noqa: N802
    def Prediction(self, inputs: int, parameters: Sequence[int]) -> NativePrediction: ...  # noqa: N802
    def set_threads(self, threads: int) -> None: ...
    def threads(self) -> int: ...
    def forget_blocks(self, seconds: float) -> None: ...


def load(torch_version: str = torch.__version__, directory: Path = Path(__file__).parent) -> Native:
    """The module built with this torch; see :func:`genie.native.load`."""
    return cast(Native, native.load("genie-backend-local", __package__, _PREFIX, torch_version, directory))
