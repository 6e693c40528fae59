"""A session of a group that is recovered: what the program and the stages before it see of one device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from genie.device import Device
from genie.errors import BackendError, BackendUnavailable, GenieError, RemoteOpError
from genie.graph import TensorSpec
from genie.host import flat
from genie.interfaces import Buffer, Fetched, Recalling
from genie.lineage.group import Group
from genie.lineage.log import (
    Begin,
    End,
    Execute,
    Expect,
    Failed,
    Next,
    Receive,
    Seed,
    Send,
    SetState,
    Upload,
    checksum,
)
from genie.lineage.member import Inlet
from genie.loops import Loop
from genie.plan import ExecutionPlan
from genie.timing import Timing

_T = TypeVar("_T")


class LineageSession:
    """See :class:`genie.interfaces.Session`, and the other things a session may be. ``device`` stays what it was,
    wherever the session goes."""

    def __init__(self, group: Group, number: int) -> None:
        self._group = group
        self._number = number
        self._member = group.members[number]
        self.device: Device = self._member.device

    # --- work -----------------------------------------------------------------------------------------

    def load(self, plan: ExecutionPlan) -> int:
        with self._group.lock:
            return self._group.ask(lambda: self._member.load(plan))

    def execute(self, plan: int, bindings: Buffer, *, more: bool = False) -> None:
        with self._group.lock:
            self._group.do(Execute(self._number, plan, bytes(bindings), more))

    def loop(self, plan: int, bindings: Buffer, loop: Loop, times: int) -> Iterator[tuple[Buffer, ...]]:
        with self._group.lock:
            number = self._group.next_loop()
            self._group.do(Begin(self._number, number, plan, bytes(bindings), loop, times))
            return LineageLoop(self._group, self._number, number)

    def upload(self, handle: int, spec: TensorSpec, data: Buffer, *, shared: bool = False) -> None:
        view = flat(data)
        with self._group.lock:
            entry = Upload(self._number, handle, spec, self._group.keep(view, shared), shared)
            self._group.do(entry, lambda: self._member.session.upload(handle, spec, data, shared=shared))

    def free(self, handles: Sequence[int]) -> None:
        """Garbage collection may call this at any moment, also while this thread holds the lock."""
        self._group.free(self._number, handles)

    def seed(self, generator: int, seed: int) -> None:
        with self._group.lock:
            self._group.do(Seed(self._number, generator, seed))

    def set_generator_state(self, generator: int, state: Buffer) -> None:
        with self._group.lock:
            self._group.do(SetState(self._number, generator, bytes(state)))

    # --- values from and to other sessions --------------------------------------------------------------

    def inlet(self, source: str) -> Inlet:
        with self._group.lock:
            return self._group.ask(lambda: self._member.open(source))

    def outlet(self, inlet: Inlet) -> int:
        with self._group.lock:
            return self._group.ask(lambda: self._member.connect(self._group.members, inlet))

    def send(self, outlet: int, handle: int) -> None:
        with self._group.lock:
            self._group.do(Send(self._number, outlet, handle))
            self._group.flight.send(self._member.targets[outlet])

    def receive(self, inlet: Inlet, position: int, handle: int) -> None:
        with self._group.lock:
            self._group.do(Receive(self._number, inlet.number, position, handle))
            self._group.flight.receive(inlet, position)

    # --- looks ------------------------------------------------------------------------------------------

    def expect(self, handle: int, size: int) -> None:
        with self._group.lock:
            self._group.do(Expect(self._number, handle, size))
            self._group.flight.expect(self._number, handle)

    def fetch(self, handle: int, out: memoryview | None = None) -> Fetched:
        with self._group.lock:
            value: Fetched = self._look(handle, lambda: self._member.session.fetch(handle, out))
            self._group.looked(self._number, handle, value.data)
            return value

    def describe(self, handle: int) -> TensorSpec:
        with self._group.lock:
            return self._look(handle, lambda: self._member.session.describe(handle))

    def generator_state(self, generator: int) -> bytes:
        with self._group.lock:
            return self._look(0, lambda: self._member.session.generator_state(generator))

    def _look(self, handle: int, question: Callable[[], _T]) -> _T:
        try:
            return self._group.ask(question)
        except GenieError:
            if not self._group.over:
                self._group.flight.looked(self._number, handle)
                self._group.told(Failed(self._number, handle))
            raise

    def synchronize(self) -> None:
        with self._group.lock:
            self._group.ask(lambda: self._member.session.synchronize())

    def cancel_work(self) -> None:
        """See :class:`genie.interfaces.Recalling`. A session that is lost does nothing any more; what it was at is
        repeated elsewhere with the rest, when the program goes on."""
        with self._group.lock:
            session = self._member.session
            lost = self._group.urgent or getattr(session, "closed", False)
            if lost or not isinstance(session, Recalling):
                return
            try:
                session.cancel_work()
            except BaseException as error:
                if not isinstance(error, BackendUnavailable) or error.transient:  # else nobody was told
                    self._group.cancelled()
                raise
            self._group.cancelled()

    # --- about it ---------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._group.over

    def stats(self) -> Mapping[str, int]:
        """The session's in its present place; with those of the group's recoveries, once in a group."""
        counters = dict(self._member.session.stats())
        if self._number == 0:
            for name, number in self._group.stats().items():
                counters[name] = counters.get(name, 0) + number
        return counters

    def profile(self, share: float | None = None) -> Sequence[Timing]:
        """Of the session in its present place: one that is lost is noticed elsewhere."""
        with self._group.lock, contextlib.suppress(BackendError):
            return self._member.session.profile(share)
        return ()

    def close(self) -> None:
        """All of the group: none goes on without the others."""
        self._group.close()


class LineageLoop:
    """The iterations of a loop, wherever they run. Those told already are repeated and compared."""

    def __init__(self, group: Group, member: int, number: int) -> None:
        self._group = group
        self._at = member
        self._number = number
        self._over = False

    def __iter__(self) -> Iterator[tuple[Buffer, ...]]:
        return self

    def __next__(self) -> tuple[Buffer, ...]:
        group, member = self._group, self._group.members[self._at]
        with group.lock:
            if self._over:
                raise StopIteration
            try:
                emitted = group.ask(lambda: next(member.loop(self._number), None))
            except GenieError as error:
                if isinstance(error, RemoteOpError):
                    self._ended(ran_out=True)
                raise
            if emitted is None:
                self._ended(ran_out=True)
                raise StopIteration
            group.told(Next(self._at, self._number, checksum(emitted)))
            return emitted

    def close(self) -> None:
        with self._group.lock:
            if not self._over:
                self._ended(ran_out=False)

    def _ended(self, *, ran_out: bool) -> None:
        self._over = True
        self._group.told(End(self._at, self._number, ran_out))
        self._group.members[self._at].end(self._number)

    def __del__(self) -> None:
        if not getattr(self, "_over", True):  # at any moment: without the lock
            self._group.dropped.append((self._at, self._number))
