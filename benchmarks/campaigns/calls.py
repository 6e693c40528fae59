"""The clients' side of a campaign's programs, without PyTorch: plans and bytes from files, results compared."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from genie import codec
from genie.bindings import Prediction, parameters
from genie.graph import TensorSpec
from genie.loops import Loop
from genie.plan import ExecutionPlan
from genie.remote import RemoteSession

Kind: TypeAlias = Literal["llm", "bert", "vision"]
KINDS: tuple[Kind, ...] = ("llm", "bert", "vision")


class WrongValue(AssertionError):
    """A result that is not the native one."""


class Blob(msgspec.Struct, frozen=True):
    """Where in the file of bytes."""

    start: int
    size: int


class Fed(msgspec.Struct, frozen=True):
    """An input: a weight, if its bytes are there, or what each call is given."""

    name: str
    spec: TensorSpec
    data: Blob | None = None


class Case(msgspec.Struct, frozen=True):
    """What a call is given, and what comes of it; of a decoder the tokens of all its steps."""

    given: Mapping[str, Blob]
    due: tuple[Blob, ...]


class Prepared(msgspec.Struct, frozen=True):
    """``start`` is what a call is given where a case says nothing else; ``seconds`` is what one takes natively."""

    kind: Kind
    inputs: tuple[Fed, ...]
    start: tuple[Fed, ...]
    outputs: tuple[str, ...]
    cases: tuple[Case, ...]
    seconds: float

    def text(self) -> bytes:
        return msgspec.json.encode(self)


class Program:
    """What :func:`campaigns.programs.prepare` wrote of one kind; many clients of a process share it."""

    def __init__(self, directory: Path, kind: Kind) -> None:
        self.its = msgspec.json.decode((directory / f"{kind}.json").read_bytes(), type=Prepared)
        self._bytes = memoryview((directory / f"{kind}.bin").read_bytes())
        plan = codec.load(directory / f"{kind}.plan")
        assert isinstance(plan, ExecutionPlan)
        self.plan = plan
        self.words = parameters(plan.graph)

    def data(self, blob: Blob) -> memoryview:
        return self._bytes[blob.start : blob.start + blob.size]


class Client:
    """Runs one program in one session, call after call, and believes no result."""

    def __init__(self, session: RemoteSession, program: Program, number: int) -> None:
        self.session = session
        self._program = program
        self._handles = 0
        self._turn = number
        self._plan = session.load(program.plan)
        self._prediction = Prediction(len(program.its.inputs), program.words)
        self._weights: dict[str, int] = {}
        for fed in program.its.inputs:
            if fed.data is not None:
                self._weights[fed.name] = self._upload(fed.spec, program.data(fed.data), shared=True)
        session.synchronize()

    def _take(self, count: int = 1) -> int:
        first = self._handles + 1
        self._handles += count
        return first

    def _upload(self, spec: TensorSpec, data: memoryview, *, shared: bool = False) -> int:
        handle = self._take()
        self.session.upload(handle, spec, data, shared=shared)
        return handle

    def _words(self, given: Mapping[str, int], first: int) -> list[int]:
        handles = [given.get(fed.name) or self._weights[fed.name] for fed in self._program.its.inputs]
        return [first, *handles, *self._program.words]

    def _execute(self, given: Mapping[str, int]) -> dict[str, int]:
        outputs = self._program.its.outputs
        first = self._take(len(outputs))
        self.session.execute(self._plan, self._prediction.encode(self._words(given, first)), more=True)
        return {name: first + place for place, name in enumerate(outputs)}

    def _give(self, case: Case) -> dict[str, int]:
        given = {}
        for fed in self._program.its.start:
            assert fed.data is not None
            given[fed.name] = self._upload(fed.spec, self._program.data(case.given.get(fed.name, fed.data)))
        return given

    def calls(self) -> Iterator[float]:
        """For ever: the seconds a call took, once its result has been compared. Of a decoder a call is a token, by
        turns asked for one by one and made by the node's loop. Raises :class:`WrongValue`."""
        its = self._program.its
        while True:
            case = its.cases[self._turn % len(its.cases)]
            self._turn += 1
            if its.kind != "llm":
                yield self._call(case)
            elif self._turn % 2:
                yield from self._steps(case)
            else:
                yield from self._loop(case)

    def _check(self, got: bytes | bytearray | memoryview, due: Blob) -> None:
        if got != self._program.data(due):
            raise WrongValue(f"{self._program.its.kind}: {len(got)} bytes differ from the native ones")

    def _call(self, case: Case) -> float:
        began = time.perf_counter()
        given = self._give(case)
        made = self._execute(given)
        value = self.session.fetch(made["y"])
        self.session.free((*given.values(), *made.values()))
        took = time.perf_counter() - began
        self._check(value.data, case.due[0])
        return took

    def _steps(self, case: Case) -> Iterator[float]:
        state = self._give(case)
        for due in case.due:
            began = time.perf_counter()
            made = self._execute(state)
            value = self.session.fetch(made["token"])
            self.session.free(tuple(state.values()))
            took = time.perf_counter() - began
            state = made
            self._check(value.data, due)
            yield took
        self.session.free(tuple(state.values()))

    def _loop(self, case: Case) -> Iterator[float]:
        its = self._program.its
        place = {name: number for number, name in enumerate(its.outputs)}
        carries = tuple((number, place[fed.name]) for number, fed in enumerate(its.inputs) if fed.name in place)
        loop = Loop(carries=carries, emit=(place["token"],))
        state = self._give(case)
        first = self._take(len(its.outputs))
        bindings = self._prediction.encode(self._words(state, first))
        began = time.perf_counter()
        due = iter(case.due)
        for (token,) in self.session.loop(self._plan, bindings, loop, len(case.due)):
            now = time.perf_counter()
            self._check(token, next(due))
            yield now - began
            began = now
        self.session.free((*state.values(), *range(first, first + len(its.outputs))))
