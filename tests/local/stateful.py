"""Random programs that views, writes in place, random draws and failures run through, over any session."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import torch
from local.both import Program, data_of, spec_of

from genie.bindings import Prediction, parameters
from genie.errors import RemoteOpError
from genie.graph import Const, Graph, Many, Ref
from genie.interfaces import Buffer, Session, Snapshotting
from genie.schedule import Scheduler
from genie.snapshots import MemoryState, Snapshot

State = tuple[Mapping[int, object], object, object]


class Player:
    """Plays what it is told in one session, relying on nothing that was said there before."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def put(self, handle: int, tensor: torch.Tensor) -> None:
        self.session.upload(handle, spec_of(tensor), data_of(tensor))

    def execute(self, graph: Graph, first: int, inputs: Sequence[int]) -> None:
        plan = self.session.load(Scheduler(devices=[self.session.device]).schedule(graph))
        words = [first, *inputs, *parameters(graph)]
        self.session.execute(plan, Prediction(len(graph.inputs), parameters(graph)).encode(words, anew=True))


def told(session: Session) -> Snapshot:
    assert isinstance(session, Snapshotting)
    return session.snapshot()


def bytes_of(session: Session, snapshot: Snapshot) -> dict[int, bytes]:
    assert isinstance(session, Snapshotting)
    return {each.id: bytes(session.read_memory(each.id, version=each.version)) for each in snapshot.memories}


def move(source: Session, target: Session) -> Snapshot:
    """Make ``target`` what ``source`` is."""
    assert isinstance(target, Snapshotting)
    snapshot = told(source)
    data = bytes_of(source, snapshot)

    def memories(memory: MemoryState) -> Buffer | None:
        return data[memory.id]

    target.restore(snapshot, memories)
    return snapshot


def state(session: Session) -> State:
    """All there is to know, with memories called by their order: equal for sessions that nobody can tell apart."""
    snapshot = told(session)
    data = bytes_of(session, snapshot)
    number = {0: 0, **{each.id: place + 1 for place, each in enumerate(snapshot.memories)}}
    values: dict[int, object] = {
        each.handle: (number[each.memory], each.spec, each.offset, each.conj, each.neg, each.wrapped)
        for each in snapshot.values
    }
    failed = {each.handle: each.failure for each in snapshot.failures}  # plans are numbered by each session
    values |= {handle: (each.error, each.message, each.kind, each.op) for handle, each in failed.items()}
    return values, [data[each.id] for each in snapshot.memories], (snapshot.generators, dict(snapshot.seeds))


def looks(session: Session, handles: Sequence[int]) -> list[object]:
    """What a program sees."""
    seen: list[object] = []
    for handle in handles:
        try:
            seen.append((session.describe(handle), bytes(session.fetch(handle).data)))
        except RemoteOpError as error:
            seen.append((type(error), error.message, error.kind))
    return seen


_Step = Callable[[Program, Sequence[Ref]], Sequence[Ref]]


def _made(target: str, *args: object) -> _Step:
    return lambda program, refs: [program.call(target, refs[0], *args)]  # type: ignore[arg-type]


def _written(target: str, *args: object) -> _Step:
    def step(program: Program, refs: Sequence[Ref]) -> Sequence[Ref]:
        program.write(target, refs[0], *args, to=[refs[0]])  # type: ignore[arg-type]
        return []

    return step


def _copied(program: Program, refs: Sequence[Ref]) -> Sequence[Ref]:
    program.write("aten::copy_", refs[0], refs[1], to=[refs[0]])
    return []


def _each_added(program: Program, refs: Sequence[Ref]) -> Sequence[Ref]:
    program.write("aten::_foreach_add_.Scalar", Many(tuple(refs[:2])), 0.25, to=refs[:2], results=0)
    return []


def _out(program: Program, refs: Sequence[Ref]) -> Sequence[Ref]:
    program.write("aten::add.out", refs[0], refs[1], 1, refs[2], to=[refs[2]])
    return []


def _given(program: Program, refs: Sequence[Ref]) -> Sequence[Ref]:
    program.write("aten::set_.source_Tensor", refs[0], refs[1], to=[refs[0]])
    return []


def _normalised(program: Program, refs: Sequence[Ref]) -> Sequence[Ref]:
    """Running statistics are written though no schema says so. Copies keep them apart from each other and from what is
    normalised: where they overlap, the order of the kernel's reads and writes depends on how memory is aligned."""
    mean, var = (program.call("aten::select.int", ref, 0, 1) for ref in refs[1:3])
    given, var = (program.call("aten::clone", ref, None) for ref in (refs[0], var))
    return program.calls("aten::native_batch_norm", 3, given, None, None, mean, var, True, 0.1, 1e-5)


def _resized(program: Program, refs: Sequence[Ref]) -> Sequence[Ref]:
    """What it grows by is nobody's bytes: zeroed, so that all players have the same."""
    program.write("aten::resize_", refs[0], Many((5, 4)), None, to=[refs[0]])
    program.write("aten::zero_", refs[0], to=[refs[0]])
    return []


def _failed(program: Program, refs: Sequence[Ref]) -> Sequence[Ref]:
    row = program.call("aten::select.int", refs[0], 0, 0)
    return [program.call("aten::mm", refs[0], row)]


def _imaginary(program: Program, refs: Sequence[Ref]) -> Sequence[Ref]:
    made = program.call("aten::complex", refs[0], refs[1])
    turned = program.call("aten::_conj", made)
    parts = program.call("aten::view_as_real", made)
    return [made, turned, program.call("aten::_neg_view", parts)]


# Of 4 x 4 matrices; each takes three.
_STEPS: Sequence[tuple[int, _Step]] = (
    (3, _made("aten::transpose.int", 0, 1)),
    (2, _made("aten::slice.Tensor", 0, 1, 3, 1)),
    (2, _made("aten::as_strided", Many((2, 2)), Many((4, 2)), 3)),
    (1, _made("aten::as_strided", Many((4, 4)), Many((0, 1)), 2)),
    (1, _made("aten::as_strided", Many((0, 4)), Many((4, 1)), 5)),
    (2, _made("aten::view.dtype", Const("dtype", "int32"))),
    (2, _made("aten::detach")),
    (3, _made("aten::mul.Tensor", Ref(1))),
    (2, _made("aten::rand_like", None, None, None, None, None)),
    (2, _made("aten::dropout", 0.5, True)),
    (4, _written("aten::add_.Scalar", 1.5, 1)),
    (3, _written("aten::mul_.Scalar", -0.75)),
    (3, _written("aten::normal_", 0.0, 1.0, None)),
    (1, _written("aten::zero_")),
    (1, _resized),
    (3, _copied),
    (2, _each_added),
    (2, _out),
    (1, _given),
    (2, _normalised),
    (1, _failed),
    (1, _imaginary),
)


class Play:
    """A random program. Every player plays the same; :meth:`step` does one thing."""

    def __init__(self, seed: int, *players: Player) -> None:
        self.players = list(players)
        self.handles: list[int] = []
        self._draw = random.Random(seed)
        self._next = 1
        for _ in range(3):
            self._bring()

    def _named(self, count: int) -> int:
        first, self._next = self._next, self._next + count
        self.handles.extend(range(first, first + count))
        return first

    def _bring(self) -> None:
        handle = self._named(1)
        tensor = torch.rand(4, 4, generator=torch.Generator().manual_seed(self._draw.randrange(1 << 30)))
        for player in self.players:
            player.put(handle, tensor)

    def step(self) -> None:
        kind = self._draw.random()
        matrices = [handle for handle in self.handles if self._is_matrix(handle)]
        if kind < 0.1 or len(matrices) < 3:
            self._bring()
        elif kind < 0.25 and len(self.handles) > 6:
            gone = self._draw.sample(self.handles, 2)
            self.handles = [handle for handle in self.handles if handle not in gone]
            for player in self.players:
                player.session.free(gone)
        elif kind < 0.28:
            seed = self._draw.randrange(1 << 30)
            for player in self.players:
                player.session.seed(self._draw.randrange(1), seed)
        else:
            self._work(self._draw.sample(matrices, 3))

    def _work(self, handles: Sequence[int]) -> None:
        weights = [weight for weight, _ in _STEPS]
        (chosen,) = self._draw.choices([step for _, step in _STEPS], weights)
        program = Program()
        refs = [program.input(torch.empty(4, 4)) for _ in range(3)]
        outputs = chosen(program, refs)
        first = self._named(len(outputs))
        for player in self.players:
            player.execute(program.graph(*outputs), first, handles)

    def _is_matrix(self, handle: int) -> bool:
        try:
            spec = self.players[0].session.describe(handle)
        except RemoteOpError:
            return False
        return (tuple(spec.shape), spec.dtype) == ((4, 4), "float32")
