"""What a session of a backend may be able to do besides, when a node serves it: for values that need not be copied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from genie.graph import TensorSpec
from genie.interfaces import Buffer
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


@runtime_checkable
class Weight(Protocol):
    """A shared value that may leave its device while nobody uses it, and is made again of its content."""

    @property
    def held(self) -> bool:
        """Whether a session has it."""

    @property
    def off_device(self) -> bool: ...

    def back(self, content: Buffer) -> None:
        """``content`` is what it can be made of."""

    def forsake(self) -> bool:
        """Forget the content, which is wanted elsewhere. False: a session needs it."""


@runtime_checkable
class SharingContents(Protocol):
    """What is known by its content the device's memory counts once, whoever has it."""

    def share_content(self, handle: int) -> object: ...


@runtime_checkable
class Swapping(Protocol):
    """Values of a local session may leave its device while nobody uses them. They come back by themselves;
    :meth:`prefetch`, from any thread, brings back what the last execution used."""

    @property
    def off_device_bytes(self) -> int: ...

    def prefetch(self) -> None: ...

    def name(self, label: str, tenant: str) -> None:
        """Who it works for: where memory is short, sessions of one tenant are told each other's names."""


@runtime_checkable
class Accounting(Protocol):
    """A backend that says of each device's memory, by the device's id, in bytes: ``limit``, ``live``, ``peak``,
    ``contents`` (of the live ones: weights, counted once), ``swap_used``, ``swap_limit``; where the device has an
    allocator of its own ``allocated`` and ``reserved`` with their ``_peak``; and of ``evicted``, ``restored``,
    ``swapped_out`` and ``swapped_in`` how often, ``_bytes`` and ``_ns``. May be called from any thread."""

    def memory(self) -> Mapping[str, Mapping[str, int]]: ...
