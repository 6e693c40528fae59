"""Small graphs and the bookkeeping of running them, for tests."""

from __future__ import annotations

import array
import struct
from collections.abc import Sequence

from genie.bindings import Prediction, parameters
from genie.graph import DTYPES, Arg, Graph, Input, Node, Ref, TensorSpec
from genie.interfaces import Buffer, Session
from genie.schedule import Scheduler

FORMATS = {"float32": "f", "float64": "d", "int64": "q", "int32": "i", "uint8": "B", "int16": "h", "int8": "b"}


def spec(*shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(shape, dtype)


def pack(numbers: Sequence[float], dtype: str = "float32") -> bytes:
    return array.array(FORMATS[dtype], numbers).tobytes()


def unpack(data: Buffer, dtype: str = "float32") -> list[float]:
    return [number for (number,) in struct.iter_unpack(f"<{FORMATS[dtype]}", data)]


def node(
    id: int,
    target: str,
    args: Sequence[Arg],
    outputs: Sequence[int],
    *,
    mutates: Sequence[int] = (),
    aliases: Sequence[tuple[int, int]] = (),
) -> Node:
    name, _, overload = target.partition(".")
    return Node(id, name, overload, tuple(args), tuple(outputs), mutates=tuple(mutates), aliases=tuple(aliases))


def single(target: str, inputs: Sequence[TensorSpec], output: TensorSpec, *extra: Arg) -> Graph:
    """One operator over ``inputs``, then ``extra`` arguments."""
    made = len(inputs)
    return Graph(
        values=(*inputs, output),
        inputs=tuple(Input(index) for index in range(made)),
        steps=(node(0, target, (*(Ref(index) for index in range(made)), *extra), (made,)),),
        outputs=(made,),
    )


def nbytes(value: TensorSpec) -> int:
    size = DTYPES[value.dtype]
    for dim in value.shape:
        size *= dim
    return size


class Caller:
    """Drives a session as a frontend does: chooses handles, loads plans, remembers bindings."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._handle = 0
        self._predictions: dict[int, Prediction] = {}

    def handles(self, count: int = 1) -> int:
        """The first of ``count`` fresh handles."""
        first = self._handle + 1
        self._handle += count
        return first

    def put(self, numbers: Sequence[float], *shape: int, dtype: str = "float32", shared: bool = False) -> int:
        handle = self.handles()
        value = TensorSpec(shape or (len(numbers),), dtype)
        self.session.upload(handle, value, pack(numbers, dtype), shared=shared)
        return handle

    def get(self, handle: int) -> list[float]:
        value = self.session.fetch(handle)
        return unpack(value.data, value.spec.dtype)

    def load(self, graph: Graph) -> int:
        plan = Scheduler(devices=[self.session.device]).schedule(graph)
        return self.session.load(plan)

    def run(
        self, graph: Graph, inputs: Sequence[int], words: Sequence[int] | None = None, *, more: bool = False
    ) -> int:
        """Executes; ``words`` replace the graph's parameters. The handle of the first output."""
        plan = self.load(graph)
        own = parameters(graph)
        prediction = self._predictions.get(plan)
        if prediction is None:
            prediction = self._predictions[plan] = Prediction(len(graph.inputs), own)
        first = self.handles(max(len(graph.outputs), 1))
        vector = [first, *inputs, *(own if words is None else words)]
        self.session.execute(plan, prediction.encode(vector), more=more)
        return first
