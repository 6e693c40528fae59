"""Where a program of the suite runs: natively, or on the device with its calls captured one by one or all at once.

A program tells its stage where its calls begin and end and what it keeps between them. What a stage knows of a graph –
which nodes a call issued, which values are caches – comes from that alone, never from a label.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

import attrs
import torch
from torch import Tensor, nn

import genie
from genie.graph import Graph

DEVICE = "remote_accelerator:0"
Mode: TypeAlias = Literal["per call", "whole"]
Range: TypeAlias = tuple[int, int]  # node ids, half open
Kept: TypeAlias = Mapping[str, list[Tensor]]  # by residency


@attrs.define
class Region:
    """One capture."""

    calls: dict[int, Range] = attrs.field(factory=dict)  # by number of the call in the program
    parts: dict[str, list[Range]] = attrs.field(factory=dict)
    graph: Graph | None = None
    truth: dict[int, str] = attrs.field(factory=dict)  # value → residency; of a probed one
    before: float = attrs.field(factory=lambda: genie.get_stats()["total_ops"])

    def recorded(self) -> int:
        """Nodes so far."""
        return int(genie.get_stats()["total_ops"] - self.before)


class Stage:
    """The native one: programs just run."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def put(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    @contextlib.contextmanager
    def region(self) -> Iterator[None]:
        """Captured together, although it holds several calls."""
        yield

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """One call of the model."""
        yield

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Inside a call: what truths name ``@name``."""
        yield

    def keep(
        self,
        kv_cache: Iterable[Tensor] = (),
        recurrent_state: Iterable[Tensor] = (),
        undecided: Iterable[Tensor] = (),
    ) -> None:
        """What the program keeps now, for the calls to come; said at the end of a call, or before the first.
        ``undecided`` may be called a state or not: the definitions leave it open."""

    def watch(self, module: nn.Module, held: Callable[[Mapping[str, Any], Any], Kept] | None = None) -> None:
        """Each call of ``module`` is a call; ``held`` finds what is kept, in arguments and result."""


class Captured(Stage):
    """On the device, captured."""

    def __init__(self, mode: Mode) -> None:
        super().__init__()
        self.device = torch.device(DEVICE)
        self.mode = mode
        self.regions: list[Region] = []
        self._open: Region | None = None
        self._calls = 0
        self._watched = contextlib.ExitStack()  # what hooks have opened

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Around a program: captured at once in mode ``whole``. What a model that raised left open is closed."""
        with self._capture() if self.mode == "whole" else contextlib.nullcontext(), self._watched:
            yield

    @contextlib.contextmanager
    def region(self) -> Iterator[None]:
        with contextlib.nullcontext() if self._open is not None else self._capture():
            yield

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        with self.region():
            region = self._region()
            start = region.recorded()
            self._calling()
            yield
            region.calls[self._calls] = (start, region.recorded())
            self._calls += 1

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        region = self._region()
        start = region.recorded()
        yield
        region.parts.setdefault(f"@{name}", []).append((start, region.recorded()))

    def watch(self, module: nn.Module, held: Callable[[Mapping[str, Any], Any], Kept] | None = None) -> None:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._watched.enter_context(self.call())

        def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if held is not None:
                self.keep(**held(kwargs, output))
            self._watched.close()

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after, with_kwargs=True)

    @contextlib.contextmanager
    def _capture(self) -> Iterator[None]:
        region = self._open = Region()
        try:
            with genie.capture():
                yield
                nodes = region.recorded()
                self._closing(region)
            if region.graph is None:
                region.graph = genie.get_graph()
            if nodes != len(region.graph.steps):
                raise RuntimeError(f"{nodes} operators were counted, and {len(region.graph.steps)} are in the graph")
            self.regions.append(region)
            self._closed(region)
        finally:
            self._open = None

    def _region(self) -> Region:
        if self._open is None:
            raise RuntimeError("there is no call here: a part was told of outside of one")
        return self._open

    def _calling(self) -> None:
        """A call begins."""

    def _closing(self, region: Region) -> None:
        """The capture is about to end."""

    def _closed(self, region: Region) -> None:
        """It ended."""


class Judged(Captured):
    """As a user would run it: nothing is held, nothing but the program is recorded. Each graph is annotated as soon as
    it is there, before the program goes on."""

    def __init__(self, mode: Mode, read: Callable[[Region], None]) -> None:
        super().__init__(mode)
        self._read = read

    def _closed(self, region: Region) -> None:
        self._read(region)


class Probed(Captured):
    """The same run once more, to learn which values its tensors are: all that is kept is held on to, and at the end of
    a capture a copy of each such tensor is recorded, whose operand is the value."""

    def __init__(self, mode: Mode) -> None:
        super().__init__(mode)
        self.weights: list[Tensor] = []  # of the program
        self._before: Kept = {}
        self._held: list[tuple[str, Tensor]] = []

    def keep(
        self,
        kv_cache: Iterable[Tensor] = (),
        recurrent_state: Iterable[Tensor] = (),
        undecided: Iterable[Tensor] = (),
    ) -> None:
        self._before = {
            "kv_cache": list(kv_cache),
            "recurrent_state": list(recurrent_state),
            "undecided": list(undecided),
        }
        if self._open is not None:
            self._hold(self._before)

    def _calling(self) -> None:
        self._hold(self._before)

    def _hold(self, kept: Kept) -> None:
        self._held += [(residency, tensor) for residency, tensors in kept.items() for tensor in tensors]

    def _closing(self, region: Region) -> None:
        graph = region.graph = genie.get_graph()
        known = [*self._held, *(("weight", tensor) for tensor in self.weights)]
        with torch.no_grad():
            for _, tensor in known:
                tensor.clone()
        marked = genie.get_graph()
        # The two number the same values differently: the second has inputs that the program did not use.
        same: dict[int, int] = {}
        for ours, theirs in zip(graph.steps, marked.steps, strict=False):
            same |= zip((*theirs.operands(), *theirs.outputs), (*ours.operands(), *ours.outputs), strict=True)
        copies = marked.steps[len(graph.steps) :]
        for (residency, _), copy in zip(known, copies, strict=True):
            if copy.operation != "aten::clone":
                raise RuntimeError(f"a copy was recorded as {copy.target}: the probe can't tell its operand")
            (value,) = copy.operands()
            if value in same:
                region.truth.setdefault(same[value], residency)
        self._held.clear()
