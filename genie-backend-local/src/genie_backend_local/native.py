"""The native module, found by the torch it was built with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from genie import native
from genie.compilers import Program
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
    held: bool
    away: bool

    def back(self, content: Buffer) -> None: ...
    def forsake(self) -> bool: ...


class NativeLoop(Protocol):
    over: bool


class NativeSession(Protocol):
    def load(self, plan: int, graph: Graph) -> None: ...
    def load_compiled(
        self,
        plan: int,
        *,
        name: str,
        program: Program,
        bytes: int,
        donated: Sequence[bool],
        takes: Sequence[int],
        operands: Sequence[tuple[tuple[int, ...], str, str]],
        results: Sequence[tuple[tuple[int, ...], str, str]],
        parameters: Sequence[int],
    ) -> None: ...
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
    def share_content(self, handle: int) -> NativeShared: ...
    def adopt(self, handle: int, value: NativeShared) -> None: ...
    def seed(self, generator: int, seed: int) -> None: ...
    def generator_state(self, generator: int) -> bytes: ...
    def set_generator_state(self, generator: int, state: Buffer) -> None: ...
    def snapshot(self) -> NativeSnapshot: ...
    def read_memory(self, id: int, version: int, offset: int, size: int) -> Buffer: ...
    def memory_of(self, handle: int) -> tuple[int, int, int, bool]: ...
    def restore(self, snapshot: NativeSnapshot, staged: dict[int, int]) -> None: ...
    def prefetch(self) -> None: ...
    def away(self) -> int: ...
    def name(self, label: str, tenant: str) -> None: ...
    def synchronize(self) -> None: ...
    def take_timings(self) -> Sequence[tuple[Any, ...]]: ...
    def set_timing(self, share: float) -> None: ...
    def cancel(self, reason: str) -> None: ...
    def resume(self) -> None: ...
    def limit_executions(self, seconds: float) -> None: ...
    def counters(self) -> Mapping[str, int]: ...
    def take_warnings(self) -> Sequence[str]: ...
    def close(self) -> None: ...


class NativeSwap(Protocol):
    """Where values go that leave their device: so many bytes of host memory, or of files in a directory."""


class NativeBudget(Protocol):
    """Bytes that several sessions may have together."""

    def reclaim(self, bytes: int) -> int:
        """Let so many bytes of idle values leave, the cheapest to bring back first. How many left."""

    def put_idle_out(self, seconds: float) -> int:
        """The same for all that nobody used for so long and that is nowhere else."""

    def stats(self) -> Mapping[str, int]: ...


class NativeAccount(Protocol):
    """Bytes that a tenant's sessions have, and may have, together; what they share counts once. ``swapped`` are in the
    swap."""

    live: int
    swapped: int

    def set_limit(self, limit: int) -> None: ...


class NativeFlow(Protocol):
    """Who takes turns, or a group of those. ``seconds`` is what they had."""

    seconds: float

    def set_weight(self, weight: float) -> None: ...


class NativeTurnstile(Protocol):
    """Whose turn it is on a device."""

    def flow(self, weight: float, parent: NativeFlow | None = None) -> NativeFlow: ...


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
        flow: NativeFlow | None = None,
        account: NativeAccount | None = None,
        label: str = "",
    ) -> NativeSession: ...
    def Account(self, tenant: str, limit: int) -> NativeAccount: ...  # noqa: N802
    def Turnstile(self, lanes: int) -> NativeTurnstile: ...  # noqa: N802
    def Batcher(self, *, exact: bool, lanes: int, fewest: int, patience: float) -> NativeBatcher:  # noqa: N802
        """``lanes`` batches of a model run at a time (0: as many as there are cores for, by the threads of each). An
        execution waits for ``fewest`` to be there, and for those that were just there, at most ``patience`` seconds."""

    def Swap(self, bytes: int, directory: str = "") -> NativeSwap: ...  # noqa: N802
    def Budget(self, bytes: int, swap: NativeSwap | None = None) -> NativeBudget: ...  # noqa: N802
    def Prediction(self, inputs: int, parameters: Sequence[int]) -> NativePrediction: ...  # noqa: N802
    def set_threads(self, threads: int) -> None: ...
    def threads(self) -> int: ...
    def forget_blocks(self, seconds: float) -> None: ...
    def allocator_stats(self, device: str) -> Mapping[str, int]: ...


def load(torch_version: str = torch.__version__, directory: Path = Path(__file__).parent) -> Native:
    """The module built with this torch; see :func:`genie.native.load`."""
    return cast(Native, native.load("genie-backend-local", __package__, _PREFIX, torch_version, directory))
