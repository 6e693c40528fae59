"""One session over several: a program's single device, spread over the members' devices by its plans."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from genie.bindings import Prediction, parameters
from genie.device import Device
from genie.errors import BackendError, RemoteOpError
from genie.graph import Graph, TensorSpec
from genie.interfaces import Buffer, Fetched, Looping, Recalling, Session
from genie.loops import Loop
from genie.plan import ExecutionPlan
from genie.spread.parts import Part
from genie.spread.placing import Placing, Placings, Planner, Residency, Used
from genie.spread.values import Values

_FREED_AT_ONCE = 1 << 12


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
        self._lock = threading.Lock()
        self._values = Values(self.members, self.devices)
        self._plans = Placings(self.members, self.devices, self._values, planner)
        self._predictions: dict[int, Prediction] = {}
        self._freed: deque[int] = deque()
        self._executions = 0
        self._broken_off = False  # the last execution
        self._last: dict[int, tuple[int, Mapping[int, int]]] = {}  # plan → executions, handles of the last one's inputs

    # --- plans --------------------------------------------------------------------------------------

    def residency(self, graph: Graph, handles: Sequence[int]) -> Residency:
        """``handles`` are of the graph's inputs. What still waits here lives nowhere."""
        with self._lock:
            return self._plans.residency({entry.value: each for entry, each in zip(graph.inputs, handles, strict=True)})

    def load(self, plan: ExecutionPlan) -> int:
        with self._lock:
            return self._plans.load(plan)

    def used(self) -> list[Used]:
        """The plans that are executed, and what is known of their inputs now."""
        with self._lock:
            self._sweep()
            return [
                Used(number, self._plans.plan(number), runs, self._plans.residency(handle_of))
                for number, (runs, handle_of) in self._last.items()
            ]

    def replace(self, number: int, plan: ExecutionPlan) -> None:
        """From the next execution on, a plan is this one: the same graph, placed otherwise."""
        with self._lock:
            self._plans.replace(number, plan)

    # --- work ---------------------------------------------------------------------------------------

    def execute(self, plan: int, bindings: Buffer, *, more: bool = False) -> None:
        with self._lock:
            graph = self._plans.plan(plan).graph
            prediction = self._predictions.get(plan)
            if prediction is None:
                prediction = self._predictions[plan] = Prediction(len(graph.inputs), parameters(graph))
            self._execute(plan, graph, prediction.decode(bytes(bindings)), more)

    def execute_words(self, plan: int, words: Sequence[int], *, more: bool = False) -> None:
        """:meth:`execute`, with the words of the binding as they are (see :mod:`genie.bindings`)."""
        with self._lock:
            self._execute(plan, self._plans.plan(plan).graph, words, more)

    def loop_words(
        self, plan: int, words: Sequence[int], loop: Loop, times: int
    ) -> Iterator[tuple[Buffer, ...]] | None:
        """The plan repeated by the member that runs it; ``None`` for a plan that several run."""
        with self._lock:
            self._sweep()
            graph = self._plans.plan(plan).graph
            first, handle_of, scalars = _bound(graph, words)
            placing = self._plans.placing(plan, handle_of, scalars)
            part, loaded = placing.split.parts[0], placing.loaded[0]
            number = placing.members[part.device]
            member: object = self.members[number]
            if not (placing.whole and isinstance(member, Looping)):
                return None
            there: dict[tuple[int, int], int] = {}
            for value in part.brings:
                self._values.send(handle_of[value], number, part.entered[value], wait=True)
            self._bring(part, number, handle_of, there, frozenset())
            vector = [first, *(there[value, part.device] for value in part.inputs), *scalars]
            bindings = loaded.prediction.encode(vector, anew=loaded.doubtful)
            loaded.doubtful = True
            iterations = member.loop(loaded.number, bindings, loop, times)
            loaded.doubtful = False
            made = {value: deque([first + offset]) for offset, value in enumerate(graph.outputs)}
            self._settle(graph, placing, first, handle_of, made)
            repeated = self._iterated(iterations, number)
            self._values.keep_for(repeated, handle_of.values())
            return repeated

    def _iterated(self, iterations: Iterator[tuple[Buffer, ...]], member: int) -> Iterator[tuple[Buffer, ...]]:
        try:
            with self._lock:
                self._values.moves.prove()
            yield from iterations
        except RemoteOpError as error:
            with self._lock:
                told = self._values.told(error, member)
            raise told from None

    def _execute(self, number: int, graph: Graph, words: Sequence[int], more: bool) -> None:
        self._sweep()
        values = self._values
        if self._broken_off:  # what had set out then may have been written to since
            values.forget_ahead()
        self._broken_off = True
        first, handle_of, scalars = _bound(graph, words)
        placing = self._plans.placing(number, handle_of, scalars)
        split, members = placing.split, placing.members
        drawer, numbers = placing.drawing
        self._lend(0, drawer, numbers)
        there: dict[tuple[int, int], int] = {}  # (value, device of the plan) → handle
        # A copy of what an earlier part uses up could not be made once more.
        keep = frozenset(handle_of[value] for value, _ in split.donated)
        # What is elsewhere sets out now, and is received by the part that needs it: it travels while others compute.
        for value, device in split.brought:
            if self._prefetch or value in split.scattered:
                values.send(handle_of[value], members[device], split.entered[value], wait=value not in split.scattered)
            else:
                values.use(handle_of[value], members[device])
        made: dict[int, deque[int]] = {}  # output of the plan → what it is called
        for part, loaded in zip(split.parts, placing.loaded, strict=True):
            device, member = part.device, members[part.device]
            self._bring(part, member, handle_of, there, keep)
            for value in part.arrives:
                source = split.home[value]
                there[value, device] = values.take(1)
                values.moves.receive(members[source], there[value, source], member, there[value, device])
            start = first if placing.whole else values.take(len(part.outputs))
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
                values.moves.send(member, there[value, device], members[target])
            if part.frees:
                self.members[member].free([there[value, device] for value in part.frees])
        self._lend(drawer, 0, numbers)
        self._executions += 1
        self._last[number] = (self._last.get(number, (0,))[0] + 1, handle_of)
        self._settle(graph, placing, first, handle_of, made)
        self._broken_off = False

    def _bring(
        self,
        part: Part,
        member: int,
        handle_of: Mapping[int, int],
        there: dict[tuple[int, int], int],
        keep: frozenset[int],
    ) -> None:
        """The program's values that the part takes come to ``member``, and there is room for what it makes."""
        values, device = self._values, part.device
        takes = part.brings
        if values.ledger.short(member, part.need) > 0:
            needed = {handle_of[value]: size for value, size in part.entered.items()}
            at = values.directory.at
            here = sum(
                size for handle, size in needed.items() if values.home(handle) is not None and at(handle, member)
            )
            keep |= needed.keys()
            values.make_room(member, part.need - here, keep)
            # A copy that an earlier part brought may have gone since.
            takes = tuple(part.entered)
        for value in takes:
            there[value, device] = values.bring(handle_of[value], member, part.entered[value], keep)

    def _lend(self, source: int, target: int, numbers: Sequence[int]) -> None:
        """Have ``target`` draw where ``source`` left off."""
        for number in numbers:
            self.members[target].set_generator_state(number, self.members[source].generator_state(number))

    def _settle(
        self,
        graph: Graph,
        placing: Placing,
        first: int,
        handle_of: Mapping[int, int],
        made: Mapping[int, deque[int]],
    ) -> None:
        """After an execution: new values have a place, copies of what was written are gone, as is what was donated."""
        split, members, values = placing.split, placing.members, self._values
        for value in split.written:
            values.wrote(handle_of[value])
        named: dict[int, int] = {}
        outputs = zip(graph.outputs, split.roots, split.sizes, strict=True)
        for handle, (value, root, size) in enumerate(outputs, first):
            member = members[split.home[value]]
            values.directory.add(handle, member, made[value].popleft(), handle_of.get(root, named.get(root)))
            named.setdefault(root, handle)
            if size:
                values.ledger.add(handle, member, size)
        for value, devices in split.donated:
            values.remove(handle_of[value], {members[device] for device in devices})

    # --- values -------------------------------------------------------------------------------------

    def upload(self, handle: int, spec: TensorSpec, data: Buffer, *, shared: bool = False) -> None:
        """The value waits here, as long as there is room, until a plan says where it is used."""
        with self._lock:
            self._sweep()
            self._values.upload(handle, spec, data, shared)

    def free(self, handles: Sequence[int]) -> None:
        """Garbage collection may call this at any moment, also while this thread holds the lock."""
        self._freed.extend(handles)
        if len(self._freed) >= _FREED_AT_ONCE and not self._lock.locked():
            with self._lock:
                self._sweep()

    def _sweep(self) -> None:
        while self._freed:
            self._values.remove(self._freed.popleft())

    def expect(self, handle: int, size: int) -> None:
        """See :class:`genie.interfaces.Expecting`."""
        with self._lock:
            self._values.expect(handle, size)

    def fetch(self, handle: int, out: memoryview | None = None) -> Fetched:
        with self._lock:
            self._sweep()
            return self._values.fetch(handle, out)

    def describe(self, handle: int) -> TensorSpec:
        with self._lock:
            self._sweep()
            return self._values.describe(handle)

    def synchronize(self) -> None:
        with self._lock:
            self._sweep()
            self._values.moves.prove()
            for member in self.members:
                member.synchronize()

    def cancel_work(self) -> None:
        """See :class:`genie.interfaces.Recalling`: of all members that can, each of which is told."""
        failure: BackendError | None = None
        for member in self.members:
            if isinstance(member, Recalling):
                try:
                    member.cancel_work()
                except BackendError as error:
                    failure = failure or error
        if failure is not None:
            raise failure

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
        """The members' counters, added up; how many values went from one to another, and copies that made room."""
        total: dict[str, int] = {}
        with self._lock:
            self._sweep()
        for member in self.members:
            with contextlib.suppress(BackendError):
                for name, number in member.stats().items():
                    total[name] = total.get(name, 0) + number
        own = {
            "values_moved": self._values.moves.direct,
            "values_carried": self._values.moves.carried,
            "copies_dropped": self._values.copies_dropped,
        }
        return {**total, **own, "spread_executions": self._executions}

    def close(self) -> None:
        for member in self.members:
            member.close()


def _bound(graph: Graph, words: Sequence[int]) -> tuple[int, dict[int, int], Sequence[int]]:
    """What a binding's words say: the first output's handle, the handles of inputs, the parameters."""
    entered = 1 + len(graph.inputs)
    handles = {entry.value: handle for entry, handle in zip(graph.inputs, words[1:entered], strict=True)}
    return words[0], handles, words[entered:]
