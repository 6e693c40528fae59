"""Recorded segments → graphs. Runs once per plan, never per operator executed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from genie.bindings import bits_float
from genie.graph import (
    Arg,
    Const,
    Evidence,
    Graph,
    Input,
    Many,
    Module,
    Node,
    Ref,
    ScalarTensor,
    Semantics,
    TensorSpec,
)
from genie_pytorch import modules, scopes
from genie_pytorch.dtypes import NAME_OF_CODE, layout_name, memory_format_name
from genie_pytorch.native import source_text

Description: TypeAlias = dict[str, Any]
Kind: TypeAlias = Literal["fx", "lazy_dag"]
Handle: TypeAlias = tuple[int, int]  # device and handle

_BACKWARD = Semantics(
    phase="backward", evidence=(Evidence("phase", "framework", "recorded during autograd's backward pass"),)
)
_OPTIMIZER = Semantics(phase="optimizer", evidence=(Evidence("phase", "framework", "recorded inside Optimizer.step"),))

# How a value came to the device, as the recorder says it.
_UPLOADED, _MADE = 1, 2


def to_graph(segment: Description, device: int, kind: Kind = "lazy_dag") -> Graph:
    """The graph of one segment as the recorder describes it (see ``describe.h``)."""
    origins = modules.origins(device) if segment["inputs"] else {}
    sources: dict[int, int] = {}
    paths: dict[int, int] = {}
    marks = _Marks()
    steps = tuple(
        Node(
            id=position,
            operation=operation,
            overload=overload,
            args=tuple(_arg(arg) for arg in args),
            outputs=tuple(outputs),
            mutates=tuple(mutates),
            aliases=tuple(aliases),
            module=_index(paths, module),
            source=_index(sources, source),
            semantics=_fact(module, scope),
            mark=marks.of_number(scope >> 1),
        )
        for position, (operation, overload, args, outputs, mutates, aliases, module, source, scope) in enumerate(
            segment["nodes"]
        )
    )
    value_marks = tuple((value, marks.of_number(number)) for value, number in segment["marks"])
    return Graph(
        values=tuple(_spec(NAME_OF_CODE[dtype], shape, stride) for dtype, shape, stride in segment["values"]),
        inputs=tuple(
            Input(value, *known_of(origins.get(handle), whence), donated)
            for value, donated, handle, whence in segment["inputs"]
        ),
        steps=steps,
        outputs=tuple(segment["outputs"]),
        modules=tuple(Module(*modules.describe(each)) for each in paths),
        sources=tuple(source_text(each) for each in sources),
        backend_type=kind,
        marks=tuple(marks.known),
        value_marks=value_marks,
    )


class Execution(NamedTuple):
    """A plan's graph, the words it ran with, and the geometry of values that is not the graph's: index, rank, sizes,
    strides, and so on."""

    graph: Graph
    words: Sequence[int]
    reshaped: Sequence[int] = ()

    def values(self) -> Sequence[TensorSpec]:
        """The values as they were then: a plan has one structure and may have many shapes."""
        if not self.reshaped:
            return self.graph.values
        values, words = list(self.graph.values), iter(self.reshaped)
        for index in words:
            rank = next(words)
            shape, stride = (tuple(next(words) for _ in range(rank)) for _ in range(2))
            values[index] = _spec(values[index].dtype, shape, stride)
        return values


class Recorded(NamedTuple):
    """What a thread recorded on one device: executions in a row, and what is recorded and not sent."""

    device: int
    sent: Sequence[Execution]
    pending: Description


def join(recorded: Iterable[Recorded]) -> Joined:
    """One graph of all that: values are joined where one leaves with the handle another enters with."""
    joined = Joined()
    for device, sent, pending in recorded:
        for each in sent:
            entered, words = len(each.graph.inputs), each.words
            joined.add(each.graph, each.values(), device, words[1 : 1 + entered], words[0], words[1 + entered :])
        if pending["nodes"]:
            graph = to_graph(pending, device)
            handles = [handle for _, _, handle, _ in pending["inputs"]]
            joined.add(graph, graph.values, device, handles, None, None)
    return joined


class Joined:
    """A graph in the making, and which handles its values have on which device."""

    def __init__(self) -> None:
        self.values: list[TensorSpec] = []
        self.inputs: list[Input] = []
        self.entered: list[Handle] = []  # by input
        self.steps: list[Node] = []
        self.outputs: dict[int, None] = {}
        self.modules: dict[Module, int] = {}
        self.sources: dict[str, int] = {}
        self.kinds: set[Kind] = set()
        self.value_of_handle: dict[Handle, int] = {}
        self.marks = _Marks()
        self.value_marks: dict[int, int] = {}

    def add(
        self,
        graph: Graph,
        values: Sequence[TensorSpec],
        device: int,
        handles: Sequence[int],
        first: int | None,
        words: Sequence[int] | None,
    ) -> None:
        self.kinds.add(graph.backend_type)
        renumbered: dict[int, int] = {-1: -1}
        for entered, handle in zip(graph.inputs, handles, strict=True):
            known = self.value_of_handle.get((device, handle))
            if known is None:
                known = self._value(values[entered.value])
                self.value_of_handle[device, handle] = known
                self.inputs.append(
                    Input(known, entered.name, entered.origin, lineage=entered.lineage, axis=entered.axis)
                )
                self.entered.append((device, handle))
            if entered.donated:
                self.outputs.pop(known, None)
            renumbered[entered.value] = known
        parameters = iter(words) if words is not None else None
        marks = [self.marks.of(each) for each in graph.marks]
        for node in graph.steps:
            for value in node.outputs:
                if value >= 0:
                    renumbered[value] = self._value(values[value])
            self.steps.append(
                Node(
                    id=len(self.steps),
                    operation=node.operation,
                    overload=node.overload,
                    args=tuple(_rebound(arg, renumbered, parameters) for arg in node.args),
                    outputs=tuple(renumbered[value] for value in node.outputs),
                    mutates=tuple(renumbered[value] for value in node.mutates),
                    aliases=tuple((renumbered[a], renumbered[b]) for a, b in node.aliases),
                    module=_index(self.modules, graph.modules[node.module]) if node.module >= 0 else -1,
                    source=_index(self.sources, graph.sources[node.source]) if node.source >= 0 else -1,
                    semantics=node.semantics,
                    mark=marks[node.mark] if node.mark >= 0 else -1,
                )
            )
        for value, mark in graph.value_marks:
            self.value_marks[renumbered[value]] = marks[mark]
        for position, value in enumerate(graph.outputs):
            self.outputs[renumbered[value]] = None
            if first is not None:
                self.value_of_handle[device, first + position] = renumbered[value]

    def mark(self, handle: Handle, said: Semantics) -> None:
        """What the user said of a value since, if it is one of the graph's."""
        value = self.value_of_handle.get(handle)
        if value is not None:
            self.value_marks[value] = self.marks.of(said)

    def drop(self, is_alive: Callable[[int, int], bool]) -> None:
        """What nobody holds any more is no output, though it left its segment."""
        for (device, handle), value in self.value_of_handle.items():
            if value in self.outputs and not is_alive(device, handle):
                del self.outputs[value]

    def graph(self) -> Graph:
        return Graph(
            values=tuple(self.values),
            inputs=tuple(self.inputs),
            steps=tuple(self.steps),
            outputs=tuple(self.outputs),
            modules=tuple(self.modules),
            sources=tuple(self.sources),
            backend_type="fx" if self.kinds == {"fx"} else "lazy_dag",
            marks=tuple(self.marks.known),
            value_marks=tuple(sorted(self.value_marks.items())),
        )

    def _value(self, spec: TensorSpec) -> int:
        self.values.append(spec)
        return len(self.values) - 1


class _Marks:
    """A graph's marks, each once."""

    def __init__(self) -> None:
        self.known: dict[Semantics, int] = {}
        self._numbered: dict[int, int] = {0: -1}

    def of(self, said: Semantics) -> int:
        return self.known.setdefault(said, len(self.known))

    def of_number(self, number: int) -> int:
        """By the recorder's number."""
        known = self._numbered.get(number)
        if known is None:
            known = self._numbered[number] = self.of(scopes.word(number))
        return known


def known_of(
    known: modules.Origin | None, whence: int
) -> tuple[str, Literal["", "parameter", "buffer", "input", "state"]]:
    """An input's name and origin."""
    if known is not None:
        return known[1], known[0]
    return "", "input" if whence == _UPLOADED else "state" if whence == _MADE else ""


def _fact(module: int, scope: int) -> Semantics | None:
    """What the framework says an operator is for."""
    if modules.is_optimizer(module):
        return _OPTIMIZER
    return _BACKWARD if scope & 1 else None


def _index(table: dict[Any, int], key: Any) -> int:
    """The key's position in its table; the recorder's 0 is none."""
    return -1 if key == 0 else table.setdefault(key, len(table))


def _spec(dtype: str, shape: tuple[int, ...], stride: tuple[int, ...]) -> TensorSpec:
    expected, contiguous = 1, True
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        contiguous = contiguous and (size == 1 or step == expected)
        expected *= size
    return TensorSpec(shape, dtype, None if contiguous or 0 in shape else stride)


def _arg(arg: Any) -> Arg:
    if not isinstance(arg, tuple):
        return arg  # type: ignore[no-any-return]
    match arg:
        case ("value", index):
            return Ref(index)
        case ("list", items):
            return Many(tuple(_arg(item) for item in items))
        case ("scalar", dtype, number, wrapped):
            return ScalarTensor(NAME_OF_CODE[dtype], number, wrapped)
        case ("const", "complex", (real, imaginary)):
            return Const("complex", str(complex(real, imaginary)))
        case ("const", "dtype", code):
            return Const("dtype", NAME_OF_CODE[code])
        case ("const", "layout", code):
            return Const("layout", layout_name(code))
        case ("const", "memory_format", code):
            return Const("memory_format", memory_format_name(code))
        case ("const", "device", own):
            return Const("device", "self" if own else "cpu")
        case ("const", "generator", number):
            return Const("generator", str(number))
    raise AssertionError(f"the recorder described an argument as {arg!r}")


def _rebound(arg: Arg, values: dict[int, int], words: Any) -> Arg:
    if isinstance(arg, Ref):
        return Ref(values[arg.value])
    if isinstance(arg, Many):
        return Many(tuple(_rebound(item, values, words) for item in arg.items))
    if words is None or isinstance(arg, bool):
        return arg
    if isinstance(arg, int | float):
        return _number(next(words), arg)
    if isinstance(arg, ScalarTensor) and not isinstance(arg.number, bool):
        return ScalarTensor(arg.dtype, _number(next(words), arg.number), arg.wrapped)
    return arg


def _number(word: int, like: int | float) -> int | float:
    if isinstance(like, float):
        return bits_float(word)
    return word - (1 << 64) if word >> 63 else word
