"""One session over several: a program's single device, spread over the members' devices by its plans."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from genie import codec
from genie.bindings import Prediction, parameters
from genie.device import Device
from genie.errors import BackendError, LocalProtocolError, PlanError, RemoteOpError, UnsupportedOperation
from genie.graph import Graph, TensorSpec
from genie.graph.random import drawing, generators
from genie.host import HostValue, flat
from genie.interfaces import Buffer, Expecting, Fetched, Looping, Session
from genie.loops import Loop
from genie.plan import ExecutionPlan, bare
from genie.spread.directory import Directory
from genie.spread.moves import Moves
from genie.spread.parts import Part, Split, gathered, sparing, split

_OWN_HANDLES = 1 << 62  # from here on: names this session gives to what the program does not see
_WAITING_BYTES = 256 << 20  # of uploads that wait for the plan which says where they are used
_FREED_AT_ONCE = 1 << 12


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


class _Loaded:
    """A part's plan in its member's session, and what both sides remember of its last execution."""

    __slots__ = ("doubtful", "number", "prediction")

    def __init__(self, number: int, prediction: Prediction) -> None:
        self.number = number
        self.prediction = prediction
        self.doubtful = False  # an execution broke off: the member may or may not have seen it


class _Placing(NamedTuple):
    """A plan as it runs here."""

    split: Split
    members: tuple[int, ...]  # by device of the plan
    loaded: tuple[_Loaded, ...]  # by part
    whole: bool  # one part makes all there is to make
    drawing: tuple[int, tuple[int, ...]] = (0, ())  # a member, not the first, that draws from these generators


class SpreadSession:
    """See :class:`genie.interfaces.Session`. ``members`` are sessions on one device each; the first is where random
    numbers are drawn.

    ``planner`` places a graph anew when what it writes to lives elsewhere. Without it, such a plan is refused.
    ``devices`` are the members' as plans name them. Without ``prefetch`` a value that lives elsewhere sets out when
    the stage that needs it is about to run, not when the plan begins.
    """

    def __init__(
        self,
        device: Device,
        members: Sequence[Session],
        planner: Planner | None = None,
        devices: Sequence[Device] = (),
        *,
        prefetch: bool = True,
    ) -> None:
        self.device = device
        self._prefetch = prefetch
        self.members = tuple(members)
        self.devices = tuple(devices) or tuple(member.device for member in members)
        self._planner = planner
        self._number = {each.id: number for number, each in enumerate(self.devices)}
        self._lock = threading.Lock()
        self._directory = Directory()
        self._moves = Moves(self.members)
        self._plans: list[ExecutionPlan] = []
        self._sparing: list[tuple[int, ...]] = []  # by plan: see parts.sparing
        self._numbers: dict[str, int] = {}  # by content
        self._placings: dict[tuple[int, tuple[int | None, ...]], _Placing] = {}
        self._loaded: dict[tuple[int, int], _Loaded] = {}  # by member and number there
        self._predictions: dict[int, Prediction] = {}
        self._waiting: dict[int, tuple[TensorSpec, bytes, bool]] = {}
        self._waiting_bytes = 0
        self._sizes: dict[int, tuple[int, int]] = {}  # handle → member, bytes
        self._held = [0] * len(self.members)
        self._freed: deque[int] = deque()
        self._next = _OWN_HANDLES
        self._executions = 0
        self._broken_off = False  # the last execution
        self._last: dict[int, tuple[int, Mapping[int, int]]] = {}  # plan → executions, handles of the last one's inputs

    # --- where values are ---------------------------------------------------------------------------

    def residency(self, graph: Graph, handles: Sequence[int]) -> Residency:
        """``handles`` are of the graph's inputs. What still waits here lives nowhere."""
        with self._lock:
            return self._residency({entry.value: each for entry, each in zip(graph.inputs, handles, strict=True)})

    def _residency(self, handle_of: Mapping[int, int]) -> Residency:
        held, homes, movable = list(self._held), {}, set()
        for value, handle in handle_of.items():
            home = self._home_of(handle)
            if home is not None:
                homes[value] = self.devices[home].id
                if self._directory.alone(handle):
                    movable.add(value)
                member, size = self._sizes.get(handle, (home, 0))
                held[member] -= size
        others = {each.id: max(size, 0) for each, size in zip(self.devices, held, strict=True)}
        return Residency(homes, frozenset(movable), others)

    def _home_of(self, handle: int) -> int | None:
        return None if handle in self._waiting else self._directory.home(handle)[0]

    # --- plans --------------------------------------------------------------------------------------

    def load(self, plan: ExecutionPlan) -> int:
        with self._lock:
            content = codec.digest(codec.encode(bare(plan)))
            known = self._numbers.get(content)
            if known is None:
                known = len(self._plans)
                self._place(known, (), plan)
                self._plans.append(plan)
                self._sparing.append(sparing(plan.graph))
                self._numbers[content] = known
            return known

    def used(self) -> list[Used]:
        """The plans that are executed, and what is known of their inputs now."""
        with self._lock:
            self._sweep()
            return [
                Used(number, self._plans[number], runs, self._residency(handle_of))
                for number, (runs, handle_of) in self._last.items()
            ]

    def replace(self, number: int, plan: ExecutionPlan) -> None:
        """From the next execution on, a plan is this one: the same graph, placed otherwise."""
        with self._lock:
            self._placings = {key: placing for key, placing in self._placings.items() if key[0] != number}
            self._plans[number] = plan
            self._place(number, (), plan)

    def _place(self, number: int, homes: tuple[int | None, ...], plan: ExecutionPlan) -> _Placing:
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
        placing = self._placings[number, homes] = _Placing(parts, tuple(members), loaded, whole)
        return placing

    def _load(self, member: int, part: Part) -> _Loaded:
        number = self.members[member].load(part.plan)
        known = self._loaded.get((member, number))  # parts of different plans may be one plan there
        if known is None:
            made = Prediction(len(part.inputs), parameters(part.plan.graph))
            known = self._loaded[member, number] = _Loaded(number, made)
        return known

    def _placing(self, number: int, handle_of: Mapping[int, int], scalars: Sequence[int]) -> _Placing:
        """The plan placed so that what it writes to is where it lives, and what draws is where that is done."""
        placing = self._placings[number, ()]
        bound = placing.split.bound
        draws = any(scalars[at] for at in self._sparing[number])
        if not (bound or draws):
            return placing
        shared = self._written_twice(placing, handle_of)
        if draws and shared is None:  # the plan was placed as one that does not
            shared = 0
        homes = tuple(self._home_of(handle_of[value]) for value in bound)
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
            if self._home_of(handle) not in (None, member):
                self._move(handle, member)
        return found

    def _fitting(self, number: int, homes: tuple[int | None, ...], handle_of: Mapping[int, int]) -> _Placing:
        """The plan's placing if what it writes to is there or can be moved there, or another one for which that
        holds."""
        placing = self._placings[number, ()]
        stuck = self._stuck(placing, handle_of)
        if stuck < 0:
            self._placings[number, homes] = placing
            return placing
        lives = self.devices[self._directory.home(handle_of[stuck])[0]].id
        if self._planner is None:
            raise PlanError(
                f"input %{stuck} is written to, shares its memory with other values, and lives on {lives}; "
                "the plan uses it elsewhere",
                hint="schedule the graph with homes= as they are",
            )
        return self._place(number, homes, self._planner(self._plans[number].graph, self._residency(handle_of)))

    def _stuck(self, placing: _Placing, handle_of: Mapping[int, int]) -> int:
        """A value that is not where the placing needs it and can't be moved, or -1."""
        for value in placing.split.bound:
            member = placing.members[placing.split.home[value]]
            if self._home_of(handle_of[value]) not in (None, member) and not self._directory.alone(handle_of[value]):
                return value
        return -1

    def _written_twice(self, placing: _Placing, handle_of: Mapping[int, int]) -> int | None:
        """Where the plan writes memory that it knows under a second name, too, which the plan can't tell: the device
        of that memory."""
        if len(placing.split.parts) < 2:
            return None
        written = {self._directory.storage(handle_of[value]): value for value in placing.split.written}
        for value, handle in handle_of.items():
            if written.get(self._directory.storage(handle), value) != value:
                return self._directory.home(handle)[0]
        return None

    def _gathered(self, number: int, member: int) -> _Placing:
        """The plan on one member."""
        key = (number, (-1, member))
        known = self._placings.get(key)
        if known is None:
            plan = self._plans[number]
            ids = [device.id for device in plan.devices]
            known = self._place(*key, gathered(plan, ids.index(self.devices[member].id)))
            if member and drawing(plan.graph):
                known = self._placings[key] = known._replace(drawing=(member, generators(plan.graph)))
        return known

    def _lend(self, source: int, target: int, numbers: Sequence[int]) -> None:
        """Have ``target`` draw where ``source`` left off."""
        for number in numbers:
            self.members[target].set_generator_state(number, self.members[source].generator_state(number))

    # --- work ---------------------------------------------------------------------------------------

    def execute(self, plan: int, bindings: Buffer, *, more: bool = False) -> None:
        with self._lock:
            graph = self._known(plan).graph
            prediction = self._predictions.get(plan)
            if prediction is None:
                prediction = self._predictions[plan] = Prediction(len(graph.inputs), parameters(graph))
            self._execute(plan, prediction.decode(bytes(bindings)), more)

    def execute_words(self, plan: int, words: Sequence[int], *, more: bool = False) -> None:
        """:meth:`execute`, with the words of the binding as they are (see :mod:`genie.bindings`)."""
        with self._lock:
            self._known(plan)
            self._execute(plan, words, more)

    def loop_words(
        self, plan: int, words: Sequence[int], loop: Loop, times: int
    ) -> Iterator[tuple[Buffer, ...]] | None:
        """The plan repeated by the member that runs it; ``None`` for a plan that several run."""
        with self._lock:
            self._sweep()
            graph = self._known(plan).graph
            first, handle_of, scalars = _bound(graph, words)
            placing = self._placing(plan, handle_of, scalars)
            part, loaded = placing.split.parts[0], placing.loaded[0]
            number = placing.members[part.device]
            member: object = self.members[number]
            if not (placing.whole and isinstance(member, Looping)):
                return None
            for value in part.brings:
                self._send(handle_of[value], number, wait=True)
            there = {value: self._bring(handle_of[value], number) for value in part.brings}
            vector = [first, *(there[value] for value in part.inputs), *scalars]
            bindings = loaded.prediction.encode(vector, anew=loaded.doubtful)
            loaded.doubtful = True
            iterations = member.loop(loaded.number, bindings, loop, times)
            loaded.doubtful = False
            made = {value: deque([first + offset]) for offset, value in enumerate(graph.outputs)}
            self._settle(graph, placing, first, handle_of, made)
            return _iterated(iterations)

    def _known(self, plan: int) -> ExecutionPlan:
        if not 0 <= plan < len(self._plans):
            raise LocalProtocolError(f"plan {plan} was never loaded in this session")
        return self._plans[plan]

    def _execute(self, number: int, words: Sequence[int], more: bool) -> None:
        self._sweep()
        if self._broken_off:  # what had set out then may have been written to since
            self._moves.forget()
        self._broken_off = True
        graph = self._plans[number].graph
        first, handle_of, scalars = _bound(graph, words)
        placing = self._placing(number, handle_of, scalars)
        split, members = placing.split, placing.members
        drawer, numbers = placing.drawing
        self._lend(0, drawer, numbers)
        there: dict[tuple[int, int], int] = {}  # (value, device of the plan) → handle
        # What is elsewhere sets out now, and is received by the part that needs it: it travels while others compute.
        for value, device in split.brought:
            if self._prefetch or value in split.scattered:
                self._send(handle_of[value], members[device], wait=value not in split.scattered)
        made: dict[int, deque[int]] = {}  # output of the plan → what it is called
        for part, loaded in zip(split.parts, placing.loaded, strict=True):
            device, member = part.device, members[part.device]
            for value in part.brings:
                there[value, device] = self._bring(handle_of[value], member)
            for value in part.arrives:
                source = split.home[value]
                there[value, device] = self._take(1)
                self._moves.receive(members[source], there[value, source], member, there[value, device])
            start = first if placing.whole else self._take(len(part.outputs))
            vector = [start, *(there[value, device] for value in part.inputs)]
            vector += scalars if placing.whole else (scalars[position] for position in part.words)
            for offset, value in enumerate(part.outputs):
                if split.home[value] == device:  # not what is made once more
                    made.setdefault(value, deque()).append(start + offset)
                there.setdefault((value, device), start + offset)
            bindings = loaded.prediction.encode(vector, anew=loaded.doubtful)
            loaded.doubtful = True
            self.members[member].execute(loaded.number, bindings, more=more or bool(part.departs))
            loaded.doubtful = False
            for value, target in part.departs:
                self._moves.send(member, there[value, device], members[target])
            if part.frees:
                self.members[member].free([there[value, device] for value in part.frees])
        self._lend(drawer, 0, numbers)
        self._executions += 1
        self._last[number] = (self._last.get(number, (0,))[0] + 1, handle_of)
        self._settle(graph, placing, first, handle_of, made)
        self._broken_off = False

    def _settle(
        self,
        graph: Graph,
        placing: _Placing,
        first: int,
        handle_of: Mapping[int, int],
        made: Mapping[int, deque[int]],
    ) -> None:
        """After an execution: new values have a place, copies of what was written are gone, as is what was donated."""
        split, members, directory = placing.split, placing.members, self._directory
        for value in split.written:
            for member, handle in directory.wrote(handle_of[value]):
                self.members[member].free((handle,))
        named: dict[int, int] = {}
        outputs = zip(graph.outputs, split.roots, split.sizes, strict=True)
        for handle, (value, root, size) in enumerate(outputs, first):
            member = members[split.home[value]]
            directory.add(handle, member, made[value].popleft(), handle_of.get(root, named.get(root)))
            named.setdefault(root, handle)
            if size:
                self._count(handle, member, size)
        for value, devices in split.donated:
            self._remove(handle_of[value], {members[device] for device in devices})

    # --- values -------------------------------------------------------------------------------------

    def upload(self, handle: int, spec: TensorSpec, data: Buffer, *, shared: bool = False) -> None:
        """The value waits here, as long as there is room, until a plan says where it is used."""
        view = flat(data)
        spec = TensorSpec(tuple(spec.shape), spec.dtype)
        with self._lock:
            self._sweep()
            if self._waiting_bytes + len(view) > _WAITING_BYTES:
                for waiting in list(self._waiting):
                    self._let_go(waiting, self._roomiest(len(self._waiting[waiting][1])))
            if len(view) > _WAITING_BYTES:
                self._put(handle, spec, view, shared, self._roomiest(len(view)))
            else:
                self._waiting[handle] = (spec, bytes(view), shared)
                self._waiting_bytes += len(view)

    def _let_go(self, handle: int, member: int) -> None:
        spec, data, shared = self._waiting[handle]
        self._put(handle, spec, memoryview(data), shared, member)
        self._forget(handle)

    def _forget(self, handle: int) -> None:
        self._waiting_bytes -= len(self._waiting.pop(handle)[1])

    def _put(self, handle: int, spec: TensorSpec, data: memoryview, shared: bool, member: int) -> None:
        self.members[member].upload(handle, spec, data, shared=shared)
        self._directory.add(handle, member, handle)
        self._count(handle, member, len(data))

    def _roomiest(self, size: int) -> int:
        """The first member with room for so many bytes besides what it holds, or the one with most room."""
        room = [each.memory_bytes - held for each, held in zip(self.devices, self._held, strict=True)]
        # A tenth is left for what programs compute.
        fits = [
            number for number, each in enumerate(self.members) if size <= room[number] - each.device.memory_bytes // 10
        ]
        return fits[0] if fits else max(range(len(room)), key=room.__getitem__)

    def _send(self, handle: int, member: int, wait: bool) -> None:
        """Have the value set out for ``member``, if it lives elsewhere; :meth:`_bring` must follow. What is not
        uploaded yet may ``wait`` until then, if no other member needs it."""
        if handle in self._waiting:
            if not wait:
                self._let_go(handle, member)
        elif self._directory.at(handle, member) is None:
            home, there = self._directory.home(handle)
            if not self._moves.under_way(home, there, member):
                self._moves.send(home, there, member)

    def _bring(self, handle: int, member: int) -> int:
        """The value's handle on ``member``, which gets a copy if it lives elsewhere."""
        if handle in self._waiting:
            self._let_go(handle, member)
            return handle
        found = self._directory.at(handle, member)
        if found is None:
            home, there = self._directory.home(handle)
            if not self._moves.under_way(home, there, member):
                self._moves.send(home, there, member)
            found = self._take(1)
            self._moves.receive(home, there, member, found)
            self._directory.add_copy(handle, member, found)
        return found

    def _move(self, handle: int, member: int) -> None:
        """Have the value live on ``member``."""
        there = self._bring(handle, member)
        for before, name in self._directory.move(handle, member, there):
            if name != there or before != member:
                self.members[before].free((name,))
        size = self._sizes.get(handle, (member, 0))[1]
        self._held[self._sizes.get(handle, (member, 0))[0]] -= size
        self._count(handle, member, size)

    def _take(self, count: int) -> int:
        first = self._next
        self._next += count
        return first

    def free(self, handles: Sequence[int]) -> None:
        """Garbage collection may call this at any moment, also while this thread holds the lock."""
        self._freed.extend(handles)
        if len(self._freed) >= _FREED_AT_ONCE and not self._lock.locked():
            with self._lock:
                self._sweep()

    def _sweep(self) -> None:
        while self._freed:
            handle = self._freed.popleft()
            if handle in self._waiting:
                self._forget(handle)
            else:
                self._remove(handle)

    def _remove(self, handle: int, consumed: set[int] | frozenset[int] = frozenset()) -> None:
        """Forget a value, and free it on the members that have not used it up."""
        for member, there in self._directory.remove(handle):
            if member not in consumed:
                self.members[member].free((there,))
        member, size = self._sizes.pop(handle, (0, 0))
        self._held[member] -= size

    def _count(self, handle: int, member: int, size: int) -> None:
        self._sizes[handle] = (member, size)
        self._held[member] += size

    # --- looks --------------------------------------------------------------------------------------

    def expect(self, handle: int, size: int) -> None:
        """See :class:`genie.interfaces.Expecting`."""
        with self._lock:
            if handle not in self._waiting:
                number, there = self._directory.home(handle)
                member: object = self.members[number]
                if isinstance(member, Expecting):
                    member.expect(there, size)

    def fetch(self, handle: int, out: memoryview | None = None) -> Fetched:
        with self._lock:
            self._sweep()
            if handle in self._waiting:
                spec, data, _ = self._waiting[handle]
                if out is None:
                    return HostValue(spec, memoryview(data))
                flat(out)[:] = data
                return HostValue(spec, out)
            member, there = self._directory.home(handle)
            with _told_here():
                return self.members[member].fetch(there, out)

    def describe(self, handle: int) -> TensorSpec:
        with self._lock:
            self._sweep()
            if handle in self._waiting:
                return self._waiting[handle][0]
            member, there = self._directory.home(handle)
            with _told_here():
                return self.members[member].describe(there)

    def synchronize(self) -> None:
        with self._lock:
            self._sweep()
            for member in self.members:
                member.synchronize()

    # --- random numbers: of the first member --------------------------------------------------------

    def seed(self, generator: int, seed: int) -> None:
        with self._lock:
            self.members[0].seed(generator, seed)

    def generator_state(self, generator: int) -> bytes:
        with self._lock:
            return self.members[0].generator_state(generator)

    def set_generator_state(self, generator: int, state: Buffer) -> None:
        with self._lock:
            self.members[0].set_generator_state(generator, state)

    # --- about it -----------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """One of the members ended, and with it what depended on it."""
        return any(getattr(member, "closed", False) for member in self.members)

    def stats(self) -> Mapping[str, int]:
        """The members' counters, added up; and how many values went from one to another."""
        total: dict[str, int] = {}
        with self._lock:
            self._sweep()
        for member in self.members:
            with contextlib.suppress(BackendError):
                for name, number in member.stats().items():
                    total[name] = total.get(name, 0) + number
        own = {"values_moved": self._moves.direct, "values_carried": self._moves.carried}
        return {**total, **own, "spread_executions": self._executions}

    def close(self) -> None:
        for member in self.members:
            member.close()


def _bound(graph: Graph, words: Sequence[int]) -> tuple[int, dict[int, int], Sequence[int]]:
    """What a binding's words say: the first output's handle, the handles of inputs, the parameters."""
    entered = 1 + len(graph.inputs)
    handles = {entry.value: handle for entry, handle in zip(graph.inputs, words[1:entered], strict=True)}
    return words[0], handles, words[entered:]


def _iterated(iterations: Iterator[tuple[Buffer, ...]]) -> Iterator[tuple[Buffer, ...]]:
    with _told_here():
        yield from iterations


@contextlib.contextmanager
def _told_here() -> Iterator[None]:
    """Plans and steps are numbered otherwise here than in the member that raises; the user's line says enough."""
    try:
        yield
    except RemoteOpError as error:
        error.plan = error.step = -1
        raise
