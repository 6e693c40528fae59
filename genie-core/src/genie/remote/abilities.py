"""What a session of a backend may be able to do besides, when a node serves it: for values that need not be copied."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from genie.graph import TensorSpec
from genie.snapshots import MemoryState


class Allocation(Protocol):
    """Memory for a value to come; dropped without :meth:`commit`, it is gone."""

    @property
    def data(self) -> memoryview: ...

    def commit(self, handle: int) -> None: ...


@runtime_checkable
class Allocating(Protocol):
    """A local session may let values be received where they will live."""

    def allocate(self, spec: TensorSpec) -> Allocation: ...


@runtime_checkable
class Sharing(Protocol):
    """A local session may use one memory with the others on its device, copied by the first that writes into it.

    Memory that ``fetch`` gave is not written either as long as it is held.
    """

    def share(self, handle: int) -> object: ...

    def adopt(self, handle: int, value: object) -> None: ...


@runtime_checkable
class Placing(Protocol):
    """A local session may say which memory a value lies in."""

    def memory_of(self, handle: int) -> MemoryState: ...
