"""Random programs over a session, and random placements of their graphs that keep shared memory together."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from genie.bindings import Prediction, parameters
from genie.device import Device
from genie.graph import Graph, Input, Many, Node, Ref, TensorSpec
from genie.interfaces import Session
from genie.plan import ExecutionPlan
from genie.schedule import Scheduler
from genie.spread import Residency, SpreadSession
from genie.testing.plans import pack, unpack

X = TensorSpec((2, 2), "float32")
FLAT = TensorSpec((4,), "float32")


def spread(members: Sequence[Session], seed: int = 0) -> SpreadSession:
    """A session over ``members`` whose plans are placed at random."""
    devices = [member.device for member in members]
    draw = random.Random(seed)
    auto = Device(id="auto", type="null", memory_gb=1, compute_tflops=1)
    return SpreadSession(auto, members, lambda graph, known: placed(graph, devices, known, draw))


def placed(graph: Graph, devices: Sequence[Device], known: Residency, draw: random.Random) -> ExecutionPlan:
    """A plan with every node anywhere, but for what shares memory that is written or survives."""
    root = list(range(len(graph.values)))
    for node in graph.steps:
        for output, operand in node.aliases:
            root[output] = root[operand]
    place = {node.id: draw.choice(devices).id for node in graph.steps}
    scheduler = Scheduler(devices, recompute_ms=draw.choice([0.0, 5.0]))
    scheduler.set_placement_strategy(_Told(_kept_together(graph, root, place, known)))
    return scheduler.schedule(graph)


class _Told:
    name = "told"

    def __init__(self, place: Mapping[int, str]) -> None:
        self._place = place

    def place(self, graph: Graph, devices: Sequence[Device]) -> Mapping[int, str]:
        return self._place


def _kept_together(graph: Graph, root: list[int], place: dict[int, str], known: Residency) -> dict[int, str]:
    """Nodes that touch one family that is written or survives twice go where its first node is, or where it lives."""
    survives: dict[int, int] = {}
    for value in {*(entry.value for entry in graph.inputs), *graph.outputs}:
        survives[root[value]] = survives.get(root[value], 0) + 1
    bound = {root[value] for node in graph.steps for value in node.mutates}
    bound |= {family for family, count in survives.items() if count > 1}
    together = {node.id: node.id for node in graph.steps}

    def find(each: int) -> int:
        while together[each] != each:
            each = together[each]
        return each

    first: dict[int, int] = {}
    for node in graph.steps:
        touched = {root[value] for value in (*node.operands(), *(v for v in node.outputs if v >= 0))}
        for family in touched & bound:
            together[find(node.id)] = find(first.setdefault(family, node.id))
    fixed = {}
    for node in graph.steps:
        for value in node.operands():
            if root[value] in bound and root[value] in known.homes:
                fixed[find(node.id)] = known.homes[root[value]]
    return {node.id: fixed.get(find(node.id), place[find(node.id)]) for node in graph.steps}


class Program:
    """Runs random graphs over the values there are, as a frontend does; the same seed is the same program."""

    def __init__(self, session: Session, prepare: Callable[[Graph, Sequence[int]], int], seed: int) -> None:
        self.session = session
        self._prepare = prepare
        self._draw = random.Random(seed)
        self._next = 1
        self._predictions: dict[int, Prediction] = {}
        self.values: dict[int, TensorSpec] = {}

    def upload(self) -> None:
        handle = self._take(1)
        self.session.upload(handle, X, pack([float(self._draw.randrange(-3, 4)) for _ in range(4)]))
        self.values[handle] = X

    def step(self) -> None:
        """One graph of a few nodes."""
        draw = self._draw
        square = draw.choice([handle for handle in sorted(self.values) if self.values[handle] == X])
        others = [handle for handle in sorted(self.values) if handle != square]
        given = [square, *draw.sample(others, min(len(others), draw.randrange(3)))]
        values = [self.values[handle] for handle in given]
        steps: list[Node] = []
        for number in range(draw.randrange(1, 7)):
            squares = [value for value, spec in enumerate(values) if spec == X]
            flats = [value for value, spec in enumerate(values) if spec == FLAT]
            kind = draw.choice(["neg", "add", "mul", "halve", "add_", "view", "flat_add_"])
            one, other = draw.choice(squares), draw.choice(squares)
            made = len(values)
            match kind:
                case "neg":
                    steps.append(Node(number, "aten::neg", "", (Ref(one),), (made,)))
                case "halve":
                    steps.append(Node(number, "aten::mul", "Tensor", (Ref(one), 0.5), (made,)))
                case "add":
                    steps.append(Node(number, "aten::add", "Tensor", (Ref(one), Ref(other), 1), (made,)))
                case "mul":
                    steps.append(Node(number, "aten::mul", "Tensor", (Ref(one), -1.0), (made,)))
                case "add_":
                    steps.append(Node(number, "aten::add_", "Tensor", (Ref(one), Ref(other), -1), (-1,), (one,)))
                    continue
                case "view":
                    steps.append(_view(number, one, made, (4,)))
                    values.append(FLAT)
                    continue
                case "flat_add_" if flats:
                    target = draw.choice(flats)
                    steps.append(Node(number, "aten::add_", "Tensor", (Ref(target), Ref(target), 1), (-1,), (target,)))
                    continue
                case _:
                    steps.append(Node(number, "aten::neg", "", (Ref(other),), (made,)))
            values.append(X)
        fresh = range(len(given), len(values))
        outputs = tuple(value for value in fresh if draw.random() < 0.6)
        donated = [draw.random() < 0.2 for _ in given]
        graph = Graph(
            values=tuple(values),
            inputs=tuple(Input(value, donated=gone) for value, gone in enumerate(donated)),
            steps=tuple(steps),
            outputs=outputs,
        )
        self._run(graph, given, outputs, values)
        for handle, gone in zip(given, donated, strict=True):
            if gone:
                del self.values[handle]
        if not any(spec == X for spec in self.values.values()):
            self.upload()

    def _run(self, graph: Graph, given: Sequence[int], outputs: Sequence[int], values: Sequence[TensorSpec]) -> None:
        plan = self._prepare(graph, given)
        own = parameters(graph)
        prediction = self._predictions.setdefault(plan, Prediction(len(given), own))
        first = self._take(len(outputs))
        self.session.execute(plan, prediction.encode([first, *given, *own]))
        for offset, value in enumerate(outputs):
            self.values[first + offset] = values[value]

    def drop(self) -> None:
        """Some values go."""
        for handle in sorted(self.values):
            last = self.values[handle] == X and sum(spec == X for spec in self.values.values()) == 1
            if not last and self._draw.random() < 0.3:
                del self.values[handle]
                self.session.free((handle,))

    def look(self) -> dict[int, list[float]]:
        return {handle: unpack(self.session.fetch(handle).data) for handle in sorted(self.values)}

    def _take(self, count: int) -> int:
        first = self._next
        self._next += count
        return first


def _view(number: int, operand: int, made: int, shape: tuple[int, ...]) -> Node:
    return Node(number, "aten::view", "", (Ref(operand), Many(shape)), (made,), aliases=((made, operand),))
