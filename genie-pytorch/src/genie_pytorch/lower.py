"""Recorded segments → graphs. Runs once per plan, never per operator executed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

from genie.bindings import bits_float
from genie.graph import Arg, Const, Graph, Input, Many, Module, Node, Ref, ScalarTensor, TensorSpec
from genie_pytorch import modules
from genie_pytorch.dtypes import NAME_OF_CODE, layout_name, memory_format_name
from genie_pytorch.native import source_text

Description: TypeAlias = dict[str, Any]
Kind: TypeAlias = Literal["fx", "lazy_dag"]


def to_graph(segment: Description, kind: Kind = "lazy_dag", name: str = "") -> Graph:
    """The graph of one segment as the recorder describes it (see ``describe.h``)."""
    sources: dict[int, int] = {}
    paths: dict[int, int] = {}
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
        )
        for position, (operation, overload, args, outputs, mutates, aliases, module, source) in enumerate(
            segment["nodes"]
        )
    )
    return Graph(
        values=tuple(_spec(*value) for value in segment["values"]),
        inputs=tuple(
            Input(value=value, donated=donated, **_origin(handle)) for value, donated, handle in segment["inputs"]
        ),
        steps=steps,
        outputs=tuple(segment["outputs"]),
        modules=tuple(Module(*modules.describe(each)) for each in paths),
        sources=tuple(source_text(each) for each in sources),
        backend_type=kind,
        name=name,
    )


def join(parts: Iterable[tuple[Graph, Sequence[int]]], pending: Description | None, kind: Kind) -> Graph:
    """One graph of several executions in a row, each a plan's graph and the words it ran with, and of what is
    recorded after them: values are joined where one leaves with the handle another enters with."""
    joined = _Joined()
    for graph, words in parts:
        joined.add(graph, words[1 : 1 + len(graph.inputs)], words[0], words[1 + len(graph.inputs) :])
    if pending is not None and pending["nodes"]:
        joined.add(to_graph(pending, kind), [handle for _, _, handle in pending["inputs"]], None, None)
    return joined.graph(kind)


class _Joined:
    def __init__(self) -> None:
        self.values: list[TensorSpec] = []
        self.inputs: list[Input] = []
        self.steps: list[Node] = []
        self.outputs: dict[int, None] = {}
        self.modules: dict[Module, int] = {}
        self.sources: dict[str, int] = {}
        self.value_of_handle: dict[int, int] = {}

    def add(self, graph: Graph, handles: Sequence[int], first: int | None, words: Sequence[int] | None) -> None:
        renumbered: dict[int, int] = {-1: -1}
        for entered, handle in zip(graph.inputs, handles, strict=True):
            known = self.value_of_handle.get(handle)
            if known is None:
                known = self._value(graph.values[entered.value])
                self.value_of_handle[handle] = known
                self.inputs.append(Input(known, entered.name, entered.origin))
            if entered.donated:
                self.outputs.pop(known, None)
            renumbered[entered.value] = known
        parameters = iter(words) if words is not None else None
        for node in graph.steps:
            for value in node.outputs:
                if value >= 0:
                    renumbered[value] = self._value(graph.values[value])
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
                )
            )
        for position, value in enumerate(graph.outputs):
            self.outputs[renumbered[value]] = None
            if first is not None:
                self.value_of_handle[first + position] = renumbered[value]

    def graph(self, kind: Kind) -> Graph:
        return Graph(
            values=tuple(self.values),
            inputs=tuple(self.inputs),
            steps=tuple(self.steps),
            outputs=tuple(self.outputs),
            modules=tuple(self.modules),
            sources=tuple(self.sources),
            backend_type=kind,
        )

    def _value(self, spec: TensorSpec) -> int:
        self.values.append(spec)
        return len(self.values) - 1


def _index(table: dict[Any, int], key: Any) -> int:
    """The key's position in its table; the recorder's 0 is none."""
    return -1 if key == 0 else table.setdefault(key, len(table))


def _spec(dtype: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> TensorSpec:
    expected, contiguous = 1, True
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        contiguous = contiguous and (size == 1 or step == expected)
        expected *= size
    return TensorSpec(shape, NAME_OF_CODE[dtype], None if contiguous or 0 in shape else stride)


def _origin(handle: int) -> dict[str, str]:
    known = modules.origin_of(handle)
    return {"origin": known[0], "name": known[1]} if known else {}


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
