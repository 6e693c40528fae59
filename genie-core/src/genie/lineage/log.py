"""What was asked of the sessions of one group, in order: enough to ask it again.

Each entry can be applied to a member, the first time and every time after that alike.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec

from genie.errors import ConnectionLost, GenieError, RemoteOpError, SessionClosed
from genie.graph import TensorSpec
from genie.interfaces import Buffer
from genie.lineage.contents import Content
from genie.loops import Loop

CHECKED = 1 << 16  # looks up to so many bytes are compared when they are repeated
_ENTRY_BYTES = 160  # of an entry itself, about


class Inner(Protocol):
    """What entries are applied to: see :class:`genie.lineage.member.Member`."""

    session: Any

    def bound(self, plan: int, bindings: bytes) -> bytes: ...

    def outlet_to(self, outlet: int) -> int: ...

    def arrival(self, inlet: int, position: int) -> tuple[Any, int]: ...

    def begin(self, number: int, iterations: Iterator[tuple[Buffer, ...]]) -> None: ...

    def loop(self, number: int) -> Iterator[tuple[Buffer, ...]]: ...

    def end(self, number: int) -> None: ...


class Diverged(Exception):
    """Repeated, the same calls gave something else."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    member: int

    @property
    def held(self) -> int:
        """Bytes it holds, besides itself."""
        return 0

    def apply(self, to: Inner) -> None:
        raise NotImplementedError

    def repeat(self, to: Inner) -> None:
        self.apply(to)


class Execute(Entry, frozen=True, gc=False):
    plan: int
    bindings: bytes
    more: bool

    @property
    def held(self) -> int:
        return len(self.bindings)

    def apply(self, to: Inner) -> None:
        to.session.execute(self.plan, to.bound(self.plan, self.bindings), more=self.more)


class Upload(Entry, frozen=True, gc=False):
    handle: int
    spec: TensorSpec
    data: bytes | Content
    shared: bool

    @property
    def held(self) -> int:
        return len(self.data) if isinstance(self.data, bytes) else 0

    def apply(self, to: Inner) -> None:
        data = self.data.view() if isinstance(self.data, Content) else self.data
        to.session.upload(self.handle, self.spec, data, shared=self.shared)


class Free(Entry, frozen=True, gc=False):
    handles: bytes

    @classmethod
    def of(cls, member: int, handles: Sequence[int]) -> Free:
        return cls(member, array("Q", handles).tobytes())

    @property
    def held(self) -> int:
        return len(self.handles)

    def apply(self, to: Inner) -> None:
        handles = array("Q")
        handles.frombytes(self.handles)
        to.session.free(handles.tolist())


class Seed(Entry, frozen=True, gc=False):
    generator: int
    seed: int

    def apply(self, to: Inner) -> None:
        to.session.seed(self.generator, self.seed)


class SetState(Entry, frozen=True, gc=False):
    generator: int
    state: bytes

    @property
    def held(self) -> int:
        return len(self.state)

    def apply(self, to: Inner) -> None:
        to.session.set_generator_state(self.generator, self.state)


class Send(Entry, frozen=True, gc=False):
    outlet: int
    handle: int

    def apply(self, to: Inner) -> None:
        to.session.send(to.outlet_to(self.outlet), self.handle)


class Receive(Entry, frozen=True, gc=False):
    inlet: int
    position: int
    handle: int

    def apply(self, to: Inner) -> None:
        inlet, position = to.arrival(self.inlet, self.position)
        to.session.receive(inlet, position, self.handle)


class Expect(Entry, frozen=True, gc=False):
    handle: int
    size: int

    def apply(self, to: Inner) -> None:
        to.session.expect(self.handle, self.size)


class Look(Entry, frozen=True, gc=False):
    """The program was told this. It is compared when it is repeated."""

    handle: int
    check: int

    def repeat(self, to: Inner) -> None:
        told = memoryview(to.session.fetch(self.handle).data)
        if checksum((told,)) != self.check:
            raise Diverged(f"value {self.handle}")


class Failed(Entry, frozen=True, gc=False):
    """The program was told an error where it looked for this value. Some errors are told once."""

    handle: int

    def repeat(self, to: Inner) -> None:
        try:
            to.session.fetch(self.handle)
        except (ConnectionLost, SessionClosed):
            raise
        except GenieError:
            pass


class Begin(Entry, frozen=True, gc=False):
    number: int
    plan: int
    bindings: bytes
    loop: Loop
    times: int

    @property
    def held(self) -> int:
        return len(self.bindings)

    def apply(self, to: Inner) -> None:
        bindings = to.bound(self.plan, self.bindings)
        to.begin(self.number, to.session.loop(self.plan, bindings, self.loop, self.times))


class Next(Entry, frozen=True, gc=False):
    """An iteration that the program was told of."""

    number: int
    check: int

    def repeat(self, to: Inner) -> None:
        try:
            emitted = next(to.loop(self.number))
        except StopIteration:
            raise Diverged("a loop, which ended earlier") from None
        if checksum(emitted) != self.check:
            raise Diverged("an iteration of a loop")


class End(Entry, frozen=True, gc=False):
    """A loop was over: by itself if ``ran_out``, or by an error; else its caller had enough of it."""

    number: int
    ran_out: bool

    def repeat(self, to: Inner) -> None:
        if self.ran_out:
            try:
                next(to.loop(self.number))
            except (StopIteration, RemoteOpError):
                pass
            else:
                raise Diverged("a loop, which went on")
        to.end(self.number)


def checksum(parts: Sequence[Buffer]) -> int:
    """Of what was told; -1 for what is too large to be compared."""
    if sum(memoryview(part).nbytes for part in parts) > CHECKED:
        return -1
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return value


class Log:
    """Entries since the last checkpoint, or the beginning."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.bytes = 0

    def append(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.bytes += _ENTRY_BYTES + entry.held

    def pop(self) -> None:
        """The last one, which was not carried out."""
        entry = self.entries.pop()
        self.bytes -= _ENTRY_BYTES + entry.held

    def clear(self) -> None:
        self.entries = []
        self.bytes = 0
