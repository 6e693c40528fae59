"""Plans in a spread session: what they are made of there, and the placing of each that fits where values live."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from genie import codec
from genie.bindings import Prediction, parameters
from genie.device import Device
from genie.errors import LocalProtocolError, PlanError, UnsupportedOperation
from genie.graph import Graph
from genie.graph.random import drawing, generators
from genie.interfaces import Session
from genie.plan import ExecutionPlan, bare
from genie.spread.parts import Part, Split, gathered, sparing, split
from genie.spread.values import Values


class Residency(NamedTuple):
    """What a scheduler should know of the values there are. Devices by their ids."""

    homes: Mapping[int, str]  # input value of the graph → where it lives
    movable: frozenset[int]  # those that can be moved: no other value shares their memory
    held: Mapping[str, int]  # bytes that other values take


class Used(NamedTuple):
    """A plan in use."""

    number: int
    plan: ExecutionPlan
    runs: int
    known: Residency


NOWHERE = Residency({}, frozenset(), {})

Planner = Callable[[Graph, Residency], ExecutionPlan]


class Loaded:
    """A part's plan in its member's session, and what both sides remember of its last execution."""

    __slots__ = ("doubtful", "number", "prediction")

    def __init__(self, number: int, prediction: Prediction) -> None:
        self.number = number
        self.prediction = prediction
        self.doubtful = False  # an execution broke off: the member may or may not have seen it


class Placing(NamedTuple):
    """A plan as it runs here."""

    split: Split
    members: tuple[int, ...]  # by device of the plan
    loaded: tuple[Loaded, ...]  # by part
    whole: bool  # one part makes all there is to make
    drawing: tuple[int, tuple[int, ...]] = (0, ())  # a member, not the first, that draws from these generators


class Placings:
    """The plans of a session over ``members``, loaded there part by part.

    ``planner`` places a graph anew when what it writes to lives elsewhere. Without it, such a plan is refused.
    """

    def __init__(
        self, members: Sequence[Session], devices: Sequence[Device], values: Values, planner: Planner | None
    ) -> None:
        self._members = members
        self._devices = devices
        self._values = values
        self._planner = planner
        self._number = {each.id: number for number, each in enumerate(devices)}
        self._plans: list[ExecutionPlan] = []
        self._sparing: list[tuple[int, ...]] = []  # by plan: see parts.sparing
        self._numbers: dict[str, int] = {}  # by content
        self._placings: dict[tuple[int, tuple[int | None, ...]], Placing] = {}
        self._loaded: dict[tuple[int, int], Loaded] = {}  # by member and number there

    def plan(self, number: int) -> ExecutionPlan:
        if not 0 <= number < len(self._plans):
            raise LocalProtocolError(f"plan {number} was never loaded in this session")
        return self._plans[number]

    def residency(self, handle_of: Mapping[int, int]) -> Residency:
        """Copies are not among what is held: they go when room is needed."""
        values = self._values
        held, homes, movable = values.ledger.values(), {}, set()
        for value, handle in handle_of.items():
            home = values.home(handle)
            if home is not None:
                homes[value] = self._devices[home].id
                if values.directory.alone(handle):
                    movable.add(value)
                member, size = values.ledger.place(handle) or (home, 0)
                held[member] -= size
        others = {each.id: max(size, 0) for each, size in zip(self._devices, held, strict=True)}
        return Residency(homes, frozenset(movable), others)

    def load(self, plan: ExecutionPlan) -> int:
        content = codec.digest(codec.encode(bare(plan)))
        known = self._numbers.get(content)
        if known is None:
            known = len(self._plans)
            self._place(known, (), plan)
            self._plans.append(plan)
            self._sparing.append(sparing(plan.graph))
            self._numbers[content] = known
        return known

    def replace(self, number: int, plan: ExecutionPlan) -> None:
        """From the next execution on, a plan is this one: the same graph, placed otherwise."""
        self._placings = {key: placing for key, placing in self._placings.items() if key[0] != number}
        self._plans[number] = plan
        self._place(number, (), plan)

    def _place(self, number: int, homes: tuple[int | None, ...], plan: ExecutionPlan) -> Placing:
        members = []
        for device in plan.devices:
            if device.id not in self._number:
                raise PlanError(
                    f"the plan wants device {device.id!r}, which is none of {', '.join(self._number)}",
                    hint="schedule it for the devices there are",
                )
            members.append(self._number[device.id])
        parts = split(plan)
        loaded = tuple(self._load(members[part.device], part) for part in parts.parts)
        whole = len(loaded) == 1 and parts.parts[0].outputs == plan.graph.outputs
        placing = self._placings[number, homes] = Placing(parts, tuple(members), loaded, whole)
        return placing

    def _load(self, member: int, part: Part) -> Loaded:
        number = self._members[member].load(part.plan)
        known = self._loaded.get((member, number))  # parts of different plans may be one plan there
        if known is None:
            made = Prediction(len(part.inputs), parameters(part.plan.graph))
            known = self._loaded[member, number] = Loaded(number, made)
        return known

    def placing(self, number: int, handle_of: Mapping[int, int], scalars: Sequence[int]) -> Placing:
        """The plan placed so that what it writes to is where it lives, and what draws is where that is done."""
        placing = self._placings[number, ()]
        bound = placing.split.bound
        draws = any(scalars[at] for at in self._sparing[number])
        if not (bound or draws):
            return placing
        shared = self._written_twice(placing, handle_of)
        if draws and shared is None:  # the plan was placed as one that does not
            shared = 0
        homes = tuple(self._values.home(handle_of[value]) for value in bound)
        if shared is not None:
            found = self._gathered(number, shared)
        else:
            found = self._placings.get((number, homes)) or self._fitting(number, homes, handle_of)
        if shared is None and self._stuck(found, handle_of) >= 0:  # it fitted once, when less shared its memory
            found = self._fitting(number, homes, handle_of)
        if (stuck := self._stuck(found, handle_of)) >= 0:
            raise UnsupportedOperation(
                f"input %{stuck} is written to together with a value on another device, and both share their memory "
                "with other values",
                hint="copy one of them first (`.clone()`), or keep the program on one device",
            )
        for value in found.split.bound:
            handle, member = handle_of[value], found.members[found.split.home[value]]
            if self._values.home(handle) not in (None, member):
                self._values.move(handle, member)
        return found

    def _fitting(self, number: int, homes: tuple[int | None, ...], handle_of: Mapping[int, int]) -> Placing:
        """The plan's placing if what it writes to is there or can be moved there, or another one for which that
        holds."""
        placing = self._placings[number, ()]
        stuck = self._stuck(placing, handle_of)
        if stuck < 0:
            self._placings[number, homes] = placing
            return placing
        lives = self._devices[self._values.directory.home(handle_of[stuck])[0]].id
        if self._planner is None:
            raise PlanError(
                f"input %{stuck} is written to, shares its memory with other values, and lives on {lives}; "
                "the plan uses it elsewhere",
                hint="schedule the graph with homes= as they are",
            )
        return self._place(number, homes, self._planner(self._plans[number].graph, self.residency(handle_of)))

    def _stuck(self, placing: Placing, handle_of: Mapping[int, int]) -> int:
        """A value that is not where the placing needs it and can't be moved, or -1."""
        for value in placing.split.bound:
            member = placing.members[placing.split.home[value]]
            if self._values.home(handle_of[value]) not in (None, member) and not self._values.directory.alone(
                handle_of[value]
            ):
                return value
        return -1

    def _written_twice(self, placing: Placing, handle_of: Mapping[int, int]) -> int | None:
        """Where the plan writes memory that it knows under a second name, too, which the plan can't tell: the device
        of that memory."""
        if len(placing.split.parts) < 2:
            return None
        written = {self._values.directory.storage(handle_of[value]): value for value in placing.split.written}
        for value, handle in handle_of.items():
            if written.get(self._values.directory.storage(handle), value) != value:
                return self._values.directory.home(handle)[0]
        return None

    def _gathered(self, number: int, member: int) -> Placing:
        """The plan on one member."""
        key = (number, (-1, member))
        known = self._placings.get(key)
        if known is None:
            plan = self._plans[number]
            ids = [device.id for device in plan.devices]
            known = self._place(*key, gathered(plan, ids.index(self._devices[member].id)))
            if member and drawing(plan.graph):
                known = self._placings[key] = known._replace(drawing=(member, generators(plan.graph)))
        return known
