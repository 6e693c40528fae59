"""The Semantically Rich Graph: what a program asked for, in order, with what it means.

A graph is the verbatim list of operators a frontend saw — views and in-place operators included —
over numbered values. Nothing here knows a framework: operators and dtypes are names.

The rules every graph obeys are in :mod:`genie.graph.rules`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from math import prod
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from genie.errors import GraphError
from genie.graph.artifacts import MAX_ARTIFACTS, Artifact
from genie.graph.semantics import Evidence, Semantics, ValueSemantics, known_labels, node_labels

# The dtypes a value may have, with the bytes of one element. Types smaller than a byte are stored one to a byte.
DTYPES: Mapping[str, int] = MappingProxyType(
    {"bool": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex32": 4, "complex64": 8}
    | {"complex128": 16, "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1}
    | {"float8_e8m0fnu": 1, "float4_e2m1fn_x2": 1}
    | {f"{sign}int{bits}": (bits + 7) // 8 for sign in ("", "u") for bits in (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64)}
)

# Of one graph. The lengths are checked before anything is decoded: an entry may take a hundred times its bytes.
MAX_NODES: Final = 1 << 20
MAX_VALUES: Final = 1 << 22
_NODES, _VALUES = msgspec.Meta(max_length=MAX_NODES), msgspec.Meta(max_length=MAX_VALUES)

# ``gc=False`` below: trees of frozen values make no cycles, and graphs have many thousands of them.

# --- arguments ---------------------------------------------------------------------------------


class Ref(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="v"):
    """An operand: the value numbered ``value``."""

    value: int


class Many(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="l"):
    """A list argument (``int[]``, ``Tensor[]``, ``Tensor?[]``, …)."""

    items: tuple[Arg, ...]


class Const(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="c"):
    """An argument that is part of the structure, never a parameter.

    ``kind`` is one of ``dtype``, ``layout``, ``memory_format``, ``device``, ``generator``,
    ``complex``. The device ``self`` is the device the node is placed on. A generator is named by the
    decimal number the frontend gave it.
    """

    kind: Literal["dtype", "layout", "memory_format", "device", "generator", "complex"]
    text: str


class ScalarTensor(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="s"):
    """A zero-dimensional host tensor used as an operand, carried by value.

    ``wrapped`` marks a Python number that became a tensor (it yields in dtype promotion).
    """

    dtype: str
    number: bool | int | float
    wrapped: bool


class Region(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="g"):
    """A graph that the node may run, any number of times: see :mod:`genie.graph.regions`."""

    graph: Graph


# Every ``int`` and ``float`` below, in the order of nodes, arguments, list items and the nodes of regions, is a
# *parameter* of the graph: two graphs that differ in parameters alone share one plan (see ``bindings``).
Arg: TypeAlias = bool | int | float | str | Ref | Many | Const | ScalarTensor | Region | None

# --- values and nodes --------------------------------------------------------------------------


class TensorSpec(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Shape, dtype and layout of a value. ``stride=None`` means contiguous; strides are in elements."""

    shape: tuple[int, ...]
    dtype: str
    stride: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return prod(self.shape) * DTYPES[self.dtype]


class Node(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One operator call, arguments in the order of the operator's schema.

    ``outputs`` numbers the *fresh* values it makes, flattened over the schema's returns; ``-1`` stands for a
    return that is no fresh value: an undefined tensor, or the very tensor that was passed in (``add_``,
    ``out=``). ``mutates`` lists operands written in place; ``aliases`` pairs (output, operand) that share memory.
    ``module``, ``source`` and ``mark`` index :attr:`Graph.modules`, :attr:`Graph.sources` and :attr:`Graph.marks`;
    ``-1`` is none.
    """

    id: int
    operation: str  # "aten::add"
    overload: str  # "Tensor", or "" for the default overload
    args: tuple[Arg, ...]
    outputs: tuple[int, ...]
    mutates: tuple[int, ...] = ()
    aliases: tuple[tuple[int, int], ...] = ()
    module: int = -1
    source: int = -1
    semantics: Semantics | None = None
    mark: int = -1

    @property
    def target(self) -> str:
        """The operator with its overload: ``aten::add.Tensor``."""
        return f"{self.operation}.{self.overload}" if self.overload else self.operation

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What is known about the node, by public key; what is unknown is absent."""
        return MappingProxyType(node_labels(self.semantics))

    def labelled(self, semantics: Semantics | None, mark: int) -> Node:
        """The node with other labels. Spelled out: graphs have many thousands of nodes."""
        return Node(
            self.id,
            self.operation,
            self.overload,
            self.args,
            self.outputs,
            self.mutates,
            self.aliases,
            self.module,
            self.source,
            semantics,
            mark,
        )

    def operands(self) -> Iterator[int]:
        """The values the node takes, in the order of its arguments, repeats included."""
        return refs(self.args)

    @property
    def regions(self) -> tuple[Graph, ...]:
        """The graphs it may run, in the order of its arguments."""
        return tuple(region.graph for region in _regions(self.args))


class Input(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A value that enters the graph. ``origin`` is what the frontend *knows* it to be.

    A ``donated`` input is not needed after this graph: the executor releases it after its last use. ``lineage`` is
    what the frontend saw of the value in executions before this graph (see :mod:`genie.graph.lineage`), ``axis``
    the dimension it grows along or is written at, if any.
    """

    value: int
    name: str = ""
    origin: Literal["", "parameter", "buffer", "input", "state", "constant"] = ""
    donated: bool = False
    lineage: Literal["", "grown", "written", "replaced", "kept"] = ""
    axis: int = -1


class Module(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A module of the user's program: dotted path and class name."""

    path: str
    type: str


class Graph(msgspec.Struct, frozen=True, dict=True):
    """An ordered list of nodes (``steps``) over the values ``0 .. len(values) - 1``; see ``verify``."""

    values: Annotated[tuple[TensorSpec, ...], _VALUES]
    inputs: Annotated[tuple[Input, ...], _VALUES]
    steps: Annotated[tuple[Node, ...], _NODES]
    outputs: tuple[int, ...]  # values that outlive the graph, in the order their handles are numbered
    modules: Annotated[tuple[Module, ...], _NODES] = ()
    sources: Annotated[tuple[str, ...], _NODES] = ()  # "path/to/file.py:12"
    backend_type: Literal["fx", "lazy_dag"] = "lazy_dag"
    name: str = ""
    marks: Annotated[tuple[Semantics, ...], _NODES] = ()  # the user's word; nodes name theirs
    value_marks: Annotated[tuple[tuple[int, int], ...], _VALUES] = ()  # (value, mark)
    meanings: Annotated[tuple[ValueSemantics | None, ...], _VALUES] = ()  # by value, or none at all
    # Its artifacts. Not encoded where there are none: such a graph's bytes are those of releases that knew none.
    forms: Annotated[tuple[Artifact, ...], msgspec.Meta(max_length=MAX_ARTIFACTS)] | msgspec.UnsetType = msgspec.UNSET

    def nodes(self) -> tuple[BoundNode, ...]:
        """The steps, in order, each knowing its graph."""
        return self._bound

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Other forms of the whole of it: see :mod:`genie.graph.artifacts`."""
        return self.forms or ()

    @property
    def regions(self) -> tuple[Graph, ...]:
        """The graphs its nodes may run, in their order; those have regions of their own."""
        return tuple(region for node in self.steps for region in node.regions)

    def get_node(self, id: int) -> BoundNode:
        """The node numbered ``id``. Raises :class:`GraphError` when there is none."""
        try:
            return self._by_id[id]
        except KeyError:
            raise GraphError(f"the graph has no node {id!r}") from None

    def get_value(self, id: int) -> BoundValue:
        """The value numbered ``id``. Raises :class:`GraphError` when there is none."""
        if type(id) is not int or not 0 <= id < len(self.values):
            raise GraphError(f"the graph has no value {id!r}")
        return BoundValue(id, self)

    @cached_property
    def fingerprint(self) -> str:
        """Names the structure: graphs that differ in parameters, shapes, labels and origins alone share it, where
        what regions give has the same shapes."""
        values = self.values
        shape: tuple[object, ...] = (
            [(values[i.value].dtype, i.donated) for i in self.inputs],
            [
                (n.operation, n.overload, [_skeleton(a) for a in n.args], n.outputs, n.mutates, n.aliases)
                for n in self.steps
            ],
            self.outputs,
        )
        if self.artifacts:
            shape += ([each.digest for each in self.artifacts],)
        return hashlib.blake2b(msgspec.msgpack.encode(shape), digest_size=16).hexdigest()

    def text(self) -> str:
        """The graph as stable text, one line per node and one more for its labels."""
        return "\n".join(map(printable, _lines(self))) + "\n"

    def __repr__(self) -> str:
        return f"<Graph {self.name or self.fingerprint[:8]}: {len(self.steps)} nodes, {self.backend_type}>"

    def __str__(self) -> str:
        return self.text()

    @cached_property
    def _bound(self) -> tuple[BoundNode, ...]:
        names = Node.__struct_fields__
        return tuple(BoundNode(*(getattr(node, name) for name in names), graph=self) for node in self.steps)

    @cached_property
    def _by_id(self) -> dict[int, BoundNode]:
        return {node.id: node for node in self._bound}

    @cached_property
    def _depends(self) -> dict[int, tuple[int, ...]]:
        """Node id → ids of the nodes whose effect it sees: who made its operands, and who last wrote to them."""
        maker: dict[int, int] = {}
        storage: dict[int, int] = {}  # value → the first value that shares its memory
        writer: dict[int, int] = {}  # by storage
        depends: dict[int, tuple[int, ...]] = {}
        for node in self.steps:
            found: dict[int, None] = {}
            for value in node.operands():
                if value in maker:
                    found[maker[value]] = None
            for value in node.operands():
                last = writer.get(storage.get(value, value))
                if last is not None:
                    found[last] = None
            depends[node.id] = tuple(found)
            for value in node.outputs:
                maker[value] = node.id
            for output, operand in node.aliases:
                storage[output] = storage.get(operand, operand)
            for value in node.mutates:
                writer[storage.get(value, value)] = node.id
        return depends


class BoundNode(Node, frozen=True, array_like=True, eq=False, kw_only=True, gc=True):
    """A node together with its graph, as :meth:`Graph.nodes` gives them. It never crosses a wire."""

    graph: Graph

    def __repr__(self) -> str:
        return f"<{node_text(self, self.graph)}>"

    @property
    def inputs(self) -> tuple[int, ...]:
        """Ids of the nodes this one depends on: the makers of its operands, then who wrote to them since."""
        return self.graph._depends[self.id]

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Specs of the fresh values the node makes."""
        return tuple(self.graph.values[value] for value in self.outputs if value >= 0)

    @property
    def module_path(self) -> str:
        return self.graph.modules[self.module].path if self.module >= 0 else ""

    @property
    def source_line(self) -> str:
        return self.graph.sources[self.source] if self.source >= 0 else ""

    @property
    def metadata(self) -> Mapping[str, Any]:
        known = node_labels(self.semantics)
        if self.module >= 0:
            module = self.graph.modules[self.module]
            known["module_path"], known["module_type"] = module.path, module.type
        if self.source >= 0:
            known["source"] = self.source_line
        known["output_shapes"] = tuple(spec.shape for spec in self.specs)
        known["output_dtypes"] = tuple(spec.dtype for spec in self.specs)
        return MappingProxyType(known)


class BoundValue(msgspec.Struct, frozen=True, eq=False):
    """A value together with its graph, as :meth:`Graph.get_value` gives it. It never crosses a wire."""

    id: int
    graph: Graph

    def __repr__(self) -> str:
        return f"<%{self.id} {spec_text(self.spec)}>"

    @property
    def spec(self) -> TensorSpec:
        return self.graph.values[self.id]

    @property
    def semantics(self) -> ValueSemantics | None:
        return self.graph.meanings[self.id] if self.graph.meanings else None

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What is known about the value, by public key; what is unknown is absent."""
        return MappingProxyType(known_labels(self.semantics) | {"shape": self.spec.shape, "dtype": self.spec.dtype})


def refs(args: tuple[Arg, ...]) -> Iterator[int]:
    for arg in args:
        if type(arg) is Ref:
            yield arg.value
        elif type(arg) is Many:
            yield from refs(arg.items)


def _regions(args: tuple[Arg, ...]) -> Iterator[Region]:
    for arg in args:
        if type(arg) is Region:
            yield arg
        elif type(arg) is Many:
            yield from _regions(arg.items)


def _skeleton(arg: Arg) -> object:
    """What of an argument is structure. Parameters leave only their kind behind."""
    kind = type(arg)
    if kind is int:
        return "i"
    if kind is float:
        return "f"
    if kind is Many:
        return [_skeleton(item) for item in arg.items]  # type: ignore[union-attr]
    if kind is ScalarTensor:
        return ("s", arg.dtype, arg.wrapped, _skeleton(arg.number))  # type: ignore[union-attr]
    if kind is Region:
        made = [arg.graph.values[value] for value in arg.graph.outputs]  # type: ignore[union-attr]
        # Where nothing is made of what a loop takes, its empty results have the shapes the region says.
        return ("g", arg.graph.fingerprint, [(spec.shape, spec.dtype) for spec in made])  # type: ignore[union-attr]
    return ("t", arg) if kind is str else arg


# --- text --------------------------------------------------------------------------------------


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


def printable(text: str) -> str:
    """``text`` without the control characters that a file from elsewhere may aim at a terminal or a log."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def spec_text(spec: TensorSpec) -> str:
    text = f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"
    return text if spec.stride is None else f"{text} strides({', '.join(map(str, spec.stride))})"


def _arg_text(arg: Arg) -> str:
    if isinstance(arg, Ref):
        return f"%{arg.value}"
    if isinstance(arg, Many):
        return f"[{', '.join(map(_arg_text, arg.items))}]"
    if isinstance(arg, Const):
        return f"{arg.kind}:{arg.text}"
    if isinstance(arg, Region):
        return f"region {_quoted(arg.graph.name)}"
    if isinstance(arg, ScalarTensor):
        return f"scalar({arg.number!r}, {arg.dtype}{', wrapped' if arg.wrapped else ''})"
    return _quoted(arg) if isinstance(arg, str) else repr(arg)


def node_text(node: Node, graph: Graph) -> str:
    """One node as one line: what it makes, the call, what it writes to and shares, where it comes from."""
    makes = ", ".join(f"%{v} {spec_text(graph.values[v])}" if v >= 0 else "_" for v in node.outputs)
    line = f"#{node.id} {makes}{' = ' if makes else ''}{node.target}({', '.join(map(_arg_text, node.args))})"
    if node.mutates:
        line += f" writes {', '.join(f'%{value}' for value in node.mutates)}"
    if node.aliases:
        line += f" with {', '.join(f'%{output} in %{operand}' for output, operand in node.aliases)}"
    if node.module >= 0:
        module = graph.modules[node.module]
        line += f"  ; {module.path} ({module.type})"
    if node.source >= 0:
        line += f"  @ {graph.sources[node.source]}"
    return printable(line)


def _lines(graph: Graph, kind: str = "graph") -> Iterator[str]:
    yield f"{kind} {_quoted(graph.name)} {graph.backend_type}"
    for entry in graph.inputs:
        line = f"  input %{entry.value} {spec_text(graph.values[entry.value])}"
        if entry.origin:
            line += f" {entry.origin}"
        if entry.name:
            line += f" {_quoted(entry.name)}"
        if entry.lineage:
            line += f" {entry.lineage}" + (f"({entry.axis})" if entry.axis >= 0 else "")
        yield line + (" donated" if entry.donated else "")
        yield from _label_lines(_value_labels(graph, entry.value))
    for node in graph.steps:
        yield f"  {node_text(node, graph)}"
        labels = node_labels(node.semantics)
        labels.pop("arithmetic_intensity", None)
        yield from _label_lines(labels)
        for value in node.outputs:
            if value >= 0 and not _as_its_node(graph, value, node.semantics):
                yield from _label_lines(_value_labels(graph, value), f"%{value} ")
        for region in node.regions:
            yield from (f"    {line}" for line in _lines(region, "region"))
    for value in graph.outputs:
        yield f"  output %{value}"
    for each in graph.artifacts:
        yield f"  artifact {each.kind} {each.digest[:8]} {len(each.data)} bytes" + (
            " required" if each.required else ""
        )


def _as_its_node(graph: Graph, value: int, made: Semantics | None) -> bool:
    """Whether nothing is known of a value but what is known of the node that makes it."""
    known = graph.meanings[value] if graph.meanings else None
    return (
        known is not None
        and made is not None
        and all(getattr(known, field) == getattr(made, field) for field in ("residency", "modality", "memory_pattern"))
        and known.colocation_group in (None, made.colocation_group)
    )


def _value_labels(graph: Graph, value: int) -> dict[str, Any]:
    return known_labels(graph.meanings[value]) if graph.meanings else {}


def _label_lines(labels: dict[str, Any], of: str = "") -> Iterator[str]:
    evidence: tuple[Evidence, ...] = labels.pop("evidence", ())
    if labels:
        yield f"      {of}" + " ".join(f"{key}={label}" for key, label in labels.items())
    for why in evidence:
        yield f"      {of}{why.label}: {why.source}, {why.confidence:g}: {why.reason}"
