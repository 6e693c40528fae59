"""Programs run by the native executor and by the reference, compared bit by bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from genie.bindings import Prediction, parameters
from genie.errors import RemoteOpError
from genie.graph import Arg, Graph, Input, Node, Ref, TensorSpec
from genie.host import HostValue
from genie.schedule import Scheduler
from genie_backend_local import LocalSession
from genie_backend_local.reference import Poison, Reference

_WORD = (1 << 64) - 1


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), name(tensor.dtype))


def data_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.clone(memory_format=torch.contiguous_format).reshape(-1) if tensor.numel() else torch.empty(0)
    return flat.view(torch.uint8).numpy().data


def tensor_of(value: HostValue) -> torch.Tensor:
    dtype = getattr(torch, value.spec.dtype)
    if not value.data.nbytes:
        return torch.empty(value.spec.shape, dtype=dtype)
    return torch.frombuffer(bytearray(value.data), dtype=dtype).reshape(value.spec.shape)


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(data_of(tensor))


class Program:
    """Builds a graph. Shapes of what nodes make are left to the executor: the graph says (0,)."""

    def __init__(self) -> None:
        self.values: list[TensorSpec] = []
        self.inputs: list[Input] = []
        self.given: list[torch.Tensor] = []
        self.steps: list[Node] = []

    def input(self, tensor: torch.Tensor, donated: bool = False) -> Ref:
        self.values.append(spec_of(tensor))
        self.inputs.append(Input(len(self.values) - 1, donated=donated))
        self.given.append(tensor)
        return Ref(len(self.values) - 1)

    def fresh(self) -> int:
        self.values.append(TensorSpec((0,), "float32"))
        return len(self.values) - 1

    def call(self, target: str, *args: Arg, source: int = -1) -> Ref:
        """A node with one result."""
        return self.calls(target, 1, *args, source=source)[0]

    def calls(self, target: str, outputs: int | Sequence[bool], *args: Arg, source: int = -1) -> list[Ref]:
        kept = [True] * outputs if isinstance(outputs, int) else outputs
        numbers = tuple(self.fresh() if keep else -1 for keep in kept)
        self._add(target, args, numbers, (), source)
        return [Ref(number) for number in numbers if number >= 0]

    def write(self, target: str, *args: Arg, to: Sequence[Ref], results: int = 1) -> None:
        """A node that writes in place and returns what it was passed."""
        self._add(target, args, (-1,) * results, tuple(ref.value for ref in to), -1)

    def _add(
        self, target: str, args: Sequence[Arg], outputs: tuple[int, ...], mutates: tuple[int, ...], source: int
    ) -> None:
        operation, _, overload = target.partition(".")
        step = len(self.steps)
        self.steps.append(Node(step, operation, overload, tuple(args), outputs, mutates=mutates, source=source))

    def graph(self, *outputs: Ref, sources: tuple[str, ...] = ()) -> Graph:
        return Graph(
            values=tuple(self.values),
            inputs=tuple(self.inputs),
            steps=tuple(self.steps),
            outputs=tuple(ref.value for ref in outputs),
            sources=sources,
        )


class Both:
    """One native session and one reference, given the same work."""

    def __init__(self, session: LocalSession) -> None:
        self.session = session
        self.reference = Reference()
        self._next = 0
        self._predictions: dict[int, Prediction] = {}

    def handles(self, count: int = 1) -> int:
        self._next += max(count, 1)
        return self._next - max(count, 1) + 1

    def put(self, tensor: torch.Tensor) -> int:
        handle = self.handles()
        self.session.upload(handle, spec_of(tensor), data_of(tensor))
        self.reference.values[handle] = tensor.clone(memory_format=torch.contiguous_format)
        return handle

    def load(self, graph: Graph) -> int:
        plan = self.session.load(Scheduler(devices=[self.session.device]).schedule(graph))
        self._predictions.setdefault(plan, Prediction(len(graph.inputs), parameters(graph)))
        return plan

    def execute(self, graph: Graph, inputs: Sequence[int], words: Sequence[int] | None = None) -> list[int]:
        """Runs a graph in both; the handles of its outputs."""
        plan = self.load(graph)
        first = self.handles(len(graph.outputs))
        vector = [first, *inputs, *(word & _WORD for word in (parameters(graph) if words is None else words))]
        self.session.execute(plan, self._predictions[plan].encode(vector))
        self.reference.execute(graph, vector)
        return list(range(first, first + len(graph.outputs)))

    def execute_native(self, graph: Graph, inputs: Sequence[int]) -> list[int]:
        plan = self.load(graph)
        first = self.handles(len(graph.outputs))
        self.session.execute(plan, self._predictions[plan].encode([first, *inputs, *parameters(graph)]))
        return list(range(first, first + len(graph.outputs)))

    def check(self, *handles: int) -> list[torch.Tensor]:
        """The values, equal in both to the last bit and stride, failures included."""
        return [tensor for handle in handles for tensor in self._check(handle)]

    def _check(self, handle: int) -> Iterator[torch.Tensor]:
        expected = self.reference.values[handle]
        if isinstance(expected, Poison):
            try:
                self.session.fetch(handle)
            except RemoteOpError as error:
                assert (error.kind, error.message, error.step) == (expected.kind, expected.message, expected.step)
                return
            raise AssertionError(f"handle {handle} is a value natively, and a failure of the reference")
        expected = expected.resolve_conj().resolve_neg() if expected.is_conj() or expected.is_neg() else expected
        described = self.session.describe(handle)
        assert described.shape == tuple(expected.shape)
        assert described.dtype == name(expected.dtype)
        fetched = tensor_of(self.session.fetch(handle))
        assert bits(fetched) == bits(expected), f"\n{fetched}\nis not\n{expected}"
        out = memoryview(bytearray(expected.nbytes))
        assert bytes(self.session.fetch(handle, out).data) == bits(expected)
        yield fetched

    def run(self, program: Program, *outputs: Ref, words: Sequence[int] | None = None) -> list[torch.Tensor]:
        """Uploads the program's inputs, runs it in both, and checks every output and every surviving input."""
        handles = [self.put(tensor) for tensor in program.given]
        made = self.execute(program.graph(*outputs), handles, words)
        kept = [handle for handle, entry in zip(handles, program.inputs, strict=True) if not entry.donated]
        self.check(*kept)
        return self.check(*made)

    def strides(self, handle: int) -> None:
        expected = self.reference.values[handle]
        assert isinstance(expected, torch.Tensor)
        described = self.session.describe(handle)
        stride = described.stride
        if stride is None:
            assert expected.is_contiguous()
        else:
            assert stride == expected.stride()
