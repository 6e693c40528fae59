"""One session of a group, in whichever place it is now, and what its next one needs before calls are repeated."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from genie.bindings import Prediction, parameters
from genie.device import Device
from genie.errors import ConnectionLost, GenieError, LocalProtocolError, ProtocolError, SessionClosed
from genie.interfaces import Buffer, Expecting, Linked, Looping, Profiling, Session
from genie.lineage.log import Begin, Entry, Execute
from genie.plan import ExecutionPlan

_NO_HANDLE = (1 << 63) - 1


@runtime_checkable
class Recoverable(Session, Looping, Linked, Expecting, Profiling, Protocol):
    """What a session must be to be recovered."""


class Inlet(NamedTuple):
    """Of a member, by number, whichever session is behind it."""

    member: int
    number: int


class _Renewed:
    """A plan's bindings for a session that has seen none of the earlier ones: from the second on, both sides remember
    the same."""

    def __init__(self, told: Prediction, plan: ExecutionPlan) -> None:
        self._told = told  # what the caller remembers
        self._heard = _prediction(plan)  # what the session does
        self._whole = False

    def bound(self, bindings: bytes) -> tuple[bytes, bool]:
        """For the session; and whether what follows needs no change."""
        words = self._told.decode(bindings)
        if not self._whole:
            self._whole = True
            return self._heard.encode(words, anew=True), False
        again = self._heard.encode(words)
        return (again, True) if self._told == self._heard else (bindings, True)


class Member:
    """``number`` is its place in the group; ``device`` what it goes by."""

    def __init__(self, number: int, session: Recoverable, device: Device) -> None:
        self.number = number
        self.session = session
        self.device = device
        self.place: Device = session.device  # where it is now
        self.plans: list[ExecutionPlan] = []
        self._loading: list[ExecutionPlan] = []
        self.sources: list[str] = []  # of the inlets
        self.targets: list[Inlet] = []  # of the outlets
        self._inlets: list[Any] = []
        self._outlets: list[int] = []
        self._received: list[int] = []  # positions before the checkpoint, by inlet
        self._loops: dict[int, Iterator[tuple[Buffer, ...]]] = {}
        self._seen: dict[int, Prediction] = {}  # at the checkpoint, by plan
        self._renewed: dict[int, _Renewed] = {}

    # --- plans and their bindings -------------------------------------------------------------------

    def load(self, plan: ExecutionPlan) -> int:
        self._loading.append(plan)
        while True:  # one that was interrupted may have a number already
            asked = self._loading[0]
            try:
                number = self.session.load(asked)
            except GenieError:
                self._loading.clear()
                raise
            if number == len(self.plans):
                self.plans.append(asked)
            del self._loading[0]
            if not self._loading:
                return number

    def bound(self, plan: int, bindings: bytes) -> bytes:
        """As the session understands them."""
        renewed = self._renewed.get(plan)
        if renewed is None:
            return bindings
        data, same = renewed.bound(bindings)
        if same:
            del self._renewed[plan]
        return data

    def follow(self, entries: Iterable[Entry]) -> None:
        """These are behind a checkpoint now."""
        for entry in entries:
            if not isinstance(entry, Execute | Begin) or entry.member != self.number:
                continue
            if entry.plan < len(self.plans):
                seen = self._seen.get(entry.plan)
                if seen is None:
                    seen = self._seen[entry.plan] = _prediction(self.plans[entry.plan])
                with contextlib.suppress(ProtocolError):  # the node refused it, too
                    seen.decode(entry.bindings)

    # --- channels -----------------------------------------------------------------------------------

    def open(self, source: str) -> Inlet:
        self._inlets.append(self.session.inlet(source))
        self.sources.append(source)
        self._received.append(0)
        return Inlet(self.number, len(self.sources) - 1)

    def connect(self, members: Sequence[Member], inlet: Inlet) -> int:
        if not isinstance(inlet, Inlet) or not 0 <= inlet.member < len(members):
            raise LocalProtocolError("a session that is recovered sends to sessions of its own engine only")
        self._outlets.append(self.session.outlet(members[inlet.member]._inlets[inlet.number]))
        self.targets.append(inlet)
        return len(self.targets) - 1

    def outlet_to(self, outlet: int) -> int:
        return self._outlets[outlet]

    def arrival(self, inlet: int, position: int) -> tuple[Any, int]:
        behind = self._received[inlet]
        if position < behind:
            raise LocalProtocolError(
                f"a value that {self.sources[inlet]} had sent before the last checkpoint was not received by then",
                where=self.device.id,
            )
        return self._inlets[inlet], position - behind

    # --- loops --------------------------------------------------------------------------------------

    def begin(self, number: int, iterations: Iterator[tuple[Buffer, ...]]) -> None:
        self._loops[number] = iterations

    def loop(self, number: int) -> Iterator[tuple[Buffer, ...]]:
        if number not in self._loops:
            raise SessionClosed("the session was closed", where=self.device.id)
        return self._loops[number]

    def end(self, number: int) -> None:
        iterations = self._loops.pop(number, None)
        close = getattr(iterations, "close", None)
        if close is not None:
            close()

    @property
    def looping(self) -> bool:
        return bool(self._loops)

    # --- from one session to the next ---------------------------------------------------------------

    def leave(self) -> None:
        """Close the session it has."""
        for number in list(self._loops):
            self.end(number)
        with contextlib.suppress(GenieError):
            self.session.close()

    def move(self, session: Recoverable, place: Device) -> None:
        """From now on ``session`` does its work. It has plans and inlets then, but no values."""
        self.session, self.place = session, place
        self._loops = {}
        self._renewed = {
            number: _Renewed(copy.deepcopy(seen), self.plans[number]) for number, seen in self._seen.items()
        }
        for number, plan in enumerate(self.plans):
            if session.load(plan) != number:
                raise LocalProtocolError(f"plan {number} has another number in its next session")
        if self.plans:
            _hear(session)
        self._inlets = [session.inlet(source) for source in self.sources]

    def join(self, members: Sequence[Member], received: Sequence[int]) -> None:
        """When all have moved: its outlets, and how many values its inlets had had at the checkpoint."""
        self._outlets = [self.session.outlet(members[to.member]._inlets[to.number]) for to in self.targets]
        self._received = [*received, *[0] * (len(self.sources) - len(received))]


def _hear(session: Session) -> None:
    """What a node has against one of the plans, it has said before."""
    try:
        session.describe(_NO_HANDLE)
    except (ConnectionLost, SessionClosed):
        raise
    except GenieError:
        pass


def _prediction(plan: ExecutionPlan) -> Prediction:
    return Prediction(len(plan.graph.inputs), parameters(plan.graph))
