"""A small real frontend: its programs are functions of rows of numbers, its tensors are rows."""

from __future__ import annotations

import contextlib
import itertools
import threading
from array import array
from collections.abc import Callable, Iterator
from typing import Any

from genie.bindings import Prediction, parameters
from genie.graph import Graph, Input, Node, Ref, TensorSpec, verify
from genie.interfaces import Buffer, Engine


class Row:
    """Numbers, or (while a program is traced) a value that will be."""

    def __init__(self, *numbers: float, trace: Trace | None = None, value: int = -1) -> None:
        self.numbers = list(numbers)
        self.trace = trace
        self.value = value

    def __add__(self, other: Row) -> Row:
        return self._call("aten::add", "Tensor", self, other)

    def __mul__(self, other: Row | float) -> Row:
        return self._call("aten::mul", "Tensor", self, other)

    def _call(self, operation: str, overload: str, *args: Row | float) -> Row:
        if self.trace is None:
            cells = args[1].numbers if isinstance(args[1], Row) else [args[1]] * len(self.numbers)
            both = zip(self.numbers, cells, strict=True)
            return Row(*[a + b if operation == "aten::add" else a * b for a, b in both])
        return self.trace.record(operation, overload, args)


class Trace:
    def __init__(self, rows: list[Row]) -> None:
        self.specs = [TensorSpec((len(row.numbers),), "float32") for row in rows]
        self.inputs = len(rows)
        self.steps: list[Node] = []

    def record(self, operation: str, overload: str, args: tuple[Row | float, ...]) -> Row:
        first = args[0]
        assert isinstance(first, Row)
        self.specs.append(self.specs[first.value])
        made = len(self.specs) - 1
        bound = tuple(Ref(arg.value) if isinstance(arg, Row) else float(arg) for arg in args)
        self.steps.append(Node(len(self.steps), operation, overload, bound, (made,)))
        return Row(trace=self, value=made)

    def graph(self, output: Row) -> Graph:
        graph = Graph(
            values=tuple(self.specs),
            inputs=tuple(Input(index, name=f"row{index}") for index in range(self.inputs)),
            steps=tuple(self.steps),
            outputs=(output.value,),
            backend_type="fx",
        )
        verify(graph)
        return graph


class RowFrontend:
    name = "rows"

    def __init__(self) -> None:
        self._thread = threading.local()
        self.compiled = 0
        self.prepared = 0
        self._captured = 0
        # Both belong to a session, whoever uses it: handles are never reused, and a plan has one prediction.
        self._handles = itertools.count(1)
        self._predictions: dict[tuple[Engine, int], Prediction] = {}

    @contextlib.contextmanager
    def capture(self) -> Iterator[str]:
        yield "captured"

    def latest_graph(self) -> Graph | None:
        return getattr(self._thread, "graph", None)

    def captured(self) -> int:
        return self._captured

    def compile(self, program: Callable[..., Row], engine: Engine) -> Callable[..., Row]:
        self.compiled += 1
        plans: dict[str, int] = {}
        handles = self._handles

        def compiled(*rows: Row) -> Row:
            trace = Trace(list(rows))
            graph = trace.graph(program(*[Row(trace=trace, value=index) for index in range(len(rows))]))
            self._thread.graph = graph
            self._captured += 1
            if graph.fingerprint not in plans:
                self.prepared += 1
                plans[graph.fingerprint] = engine.prepare(graph)
            plan = plans[graph.fingerprint]
            prediction = self._predictions.setdefault((engine, plan), Prediction(len(rows), parameters(graph)))
            given = [next(handles) for _ in rows]
            result = next(handles)
            for handle, row in zip(given, rows, strict=True):
                engine.session.upload(handle, *self.to_host(row))
            engine.session.execute(plan, prediction.encode([result, *given, *parameters(graph)]))
            value = engine.session.fetch(result)
            engine.session.free([*given, result])
            return self.from_host(value.spec, value.data)

        return compiled

    def accepts(self, program: object) -> bool:
        return isinstance(program, Row) or callable(program)

    def to_host(self, tensor: Any) -> tuple[TensorSpec, Buffer]:
        return TensorSpec((len(tensor.numbers),), "float32"), array("f", tensor.numbers).tobytes()

    def from_host(self, spec: TensorSpec, data: Buffer) -> Row:
        return Row(*memoryview(data).cast("B").cast("f"))
