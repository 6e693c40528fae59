"""The rules every graph obeys, executable. They run on each side of every process boundary."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NoReturn

import msgspec

from genie.errors import GraphError
from genie.graph import artifacts
from genie.graph.model import (
    DTYPES,
    MAX_NODES,
    MAX_VALUES,
    Arg,
    Const,
    Graph,
    Many,
    Node,
    Ref,
    Region,
    ScalarTensor,
    TensorSpec,
    printable,
    refs,
    spec_text,
)
from genie.graph.regions import MAX_NESTING, MAX_REGIONS, OPERATORS, census, mismatch, with_regions, writes_to_input
from genie.graph.semantics import Evidence, Semantics, ValueSemantics

MAX_RANK = 64
MAX_ARGS = 1 << 10
MAX_ITEMS = 1 << 20  # of one list argument
MAX_DEPTH = 8  # of lists in lists
MAX_TEXT = 1 << 16  # characters of one string
MAX_NAME = 1 << 12

_INT64 = 1 << 63
_OPERATION = re.compile(r"[A-Za-z_]\w{0,127}::[A-Za-z_]\w{0,127}", re.ASCII)
_OVERLOAD = re.compile(r"\w{0,128}", re.ASCII)
_CONST: Mapping[str, re.Pattern[str]] = {
    "dtype": re.compile("|".join(DTYPES)),
    "layout": re.compile("strided|jagged|sparse_(coo|csr|csc|bsr|bsc)|_mkldnn"),
    "memory_format": re.compile("(preserve|contiguous)_format|channels_last(_3d)?"),
    "device": re.compile(r"[a-z_0-9]{1,64}(:[0-9]{1,4})?"),
    "generator": re.compile("[0-9]{1,19}"),
    "complex": re.compile(r"\(?[-+0-9.einfa]{1,64}j?\)?"),
}


def verify(graph: Graph) -> None:
    """Check every rule of a graph; raises :class:`GraphError` naming the node and the rule it breaks.

    * A value is defined once, as an input or by exactly one node, before it is used; outputs are defined.
    * Node ids grow. Operators are ``namespace::name``; dtypes, layouts, … are names of closed lists.
    * Shapes, strides and sizes fit 64 bits; numbers of things and lengths of texts are bounded.
    * ``mutates`` names operands; ``aliases`` names pairs of one output and one operand of the node.
    * ``module``, ``source`` and ``mark`` are indexes into the graph's tables, or -1.
    * ``meanings`` says something of every value, or is empty.
    * Artifacts have the inputs and outputs of their graph, by shape and size of element, and it writes to no input;
      regions have none.
    * Regions are arguments of the operators that run them (:mod:`genie.graph.regions`), keep these rules themselves,
      write to no input, and agree with their node on shapes and dtypes; their nesting and number are bounded.
    """
    _verify(graph, 0)


def _verify(graph: Graph, level: int) -> None:
    if not isinstance(graph, Graph):
        raise GraphError(f"this is no graph: {graph!r}", hint="genie.get_graph() is the one captured last")
    # A frozen value that passed once passes always: stages verify their input without paying again.
    if "_verified" in graph.__dict__:
        return
    try:
        _verify_tables(graph)
        _verify_values(graph)
        defined = _verify_inputs(graph)
        _verify_nodes(graph, defined, level)
        for value in graph.outputs:
            if not (0 <= value < len(defined) and defined[value]):
                raise GraphError(f"output %{value} is not defined by the graph")
        if graph.meanings and len(graph.meanings) != len(graph.values):
            raise GraphError(f"meanings of {len(graph.meanings)} values, where there are {len(graph.values)}")
        if graph.artifacts:
            _verify_artifacts(graph, level)
        if not all(defined):
            raise GraphError(f"value %{defined.index(0)} is defined by no input and no node")
    except (TypeError, AttributeError, KeyError) as error:
        raise GraphError(f"the graph holds a value of a wrong type: {error}") from error
    graph.__dict__["_verified"] = True


def _verify_artifacts(graph: Graph, level: int) -> None:
    if level:
        raise GraphError("a region has artifacts")
    if written := writes_to_input(graph):
        raise GraphError(f"{written}, which its artifacts do not do")
    faces = [(spec.shape, spec.dtype) for spec in graph.values]
    inputs, outputs = [faces[entry.value] for entry in graph.inputs], [faces[value] for value in graph.outputs]
    artifacts.check(graph.artifacts, inputs, outputs, DTYPES)


def relabelled(graph: Graph, steps: tuple[Node, ...], meanings: tuple[ValueSemantics | None, ...]) -> Graph:
    """A verified graph with other labels on its nodes and values, which were checked when they were given."""
    new = msgspec.structs.replace(graph, steps=steps, meanings=meanings)
    new.__dict__["_verified"] = True
    return new


def with_artifacts(graph: Graph, kept: tuple[artifacts.Artifact, ...]) -> Graph:
    """The graph with these artifacts. Of a verified one they are checked alone."""
    new = msgspec.structs.replace(graph, forms=kept or msgspec.UNSET)
    if "_verified" in graph.__dict__:
        _verify_artifacts(new, 0)
        new.__dict__["_verified"] = True
    return new


def bare(graph: Graph) -> Graph:
    """A verified graph as a node needs it to run: of labels the phase and the priority alone."""
    said: dict[tuple[str | None, int | None], Semantics | None] = {(None, None): None}
    steps: list[Node] = []
    for node in graph.steps:
        known = node.semantics
        key = (known.phase, known.priority) if known is not None else (None, None)
        if key not in said:
            said[key] = Semantics(phase=key[0], priority=key[1])
        plain = node.labelled(said[key], -1)
        if node.operation in OPERATORS:
            args = with_regions(node, [bare(region) for region in node.regions])
            plain = msgspec.structs.replace(plain, args=args)
        steps.append(plain)
    new = msgspec.structs.replace(graph, steps=tuple(steps), meanings=(), marks=(), value_marks=())
    new.__dict__["_verified"] = True
    return new


def _verify_tables(graph: Graph) -> None:
    if graph.backend_type not in ("fx", "lazy_dag"):
        raise GraphError(f"backend_type must be 'fx' or 'lazy_dag', not {graph.backend_type!r}")
    for name, size, bound in (
        ("values", len(graph.values), MAX_VALUES),
        ("inputs", len(graph.inputs), MAX_VALUES),
        ("outputs", len(graph.outputs), MAX_VALUES),
        ("nodes", len(graph.steps), MAX_NODES),
        ("modules", len(graph.modules), MAX_NODES),
        ("sources", len(graph.sources), MAX_NODES),
        ("marks", len(graph.marks), MAX_NODES),
        ("marks of values", len(graph.value_marks), MAX_VALUES),
        ("characters of name", len(graph.name), MAX_NAME),
    ):
        if size > bound:
            raise GraphError(f"{size} {name} are more than the {bound} allowed")
    for module in graph.modules:
        if len(module.path) > MAX_NAME or len(module.type) > MAX_NAME:
            raise GraphError(f"a module's path or type is longer than {MAX_NAME} characters")
    for source in graph.sources:
        if len(source) > MAX_NAME:
            raise GraphError(f"a source is longer than {MAX_NAME} characters")
    for mark in graph.marks:
        if fault := _fault(mark):
            raise GraphError(f"a mark: {fault}")
    for value, number in graph.value_marks:
        if not (0 <= value < len(graph.values) and 0 <= number < len(graph.marks)):
            raise GraphError(f"mark {number} of %{value}: there is no such mark or value")
    for meaning in {id(each): each for each in graph.meanings if each is not None}.values():
        if fault := _fault(meaning):
            raise GraphError(f"what is known of a value: {fault}")


def _verify_values(graph: Graph) -> None:
    seen: set[TensorSpec] = set()
    for number, spec in enumerate(graph.values):
        if spec in seen:
            continue
        itemsize = DTYPES.get(spec.dtype)
        if itemsize is None:
            raise GraphError(f"value %{number}: no dtype is called {spec.dtype[:64]!r}")
        if len(spec.shape) > MAX_RANK:
            raise GraphError(f"value %{number}: rank {len(spec.shape)} is more than {MAX_RANK}")
        size = itemsize
        for dim in spec.shape:
            if not 0 <= dim < _INT64:
                raise GraphError(f"value %{number}: {dim} is no dimension")
            size *= dim
        if spec.stride is not None:
            if len(spec.stride) != len(spec.shape):
                raise GraphError(f"value %{number}: {len(spec.stride)} strides for rank {len(spec.shape)}")
            if spec.stride and min(spec.stride) < 0:
                raise GraphError(f"value %{number}: {min(spec.stride)} is no stride")
            extent = sum((dim - 1) * stride for dim, stride in zip(spec.shape, spec.stride, strict=True) if dim)
            size = max(size, (extent + 1) * itemsize)
        if size >= _INT64:
            raise GraphError(f"value %{number}: {spec_text(spec)} does not fit 64 bits")
        seen.add(spec)


def _verify_inputs(graph: Graph) -> bytearray:
    """One byte per value: whether it is defined."""
    defined = bytearray(len(graph.values))
    for entry in graph.inputs:
        if not 0 <= entry.value < len(defined):
            raise GraphError(f"input %{entry.value} is no value of the graph")
        if defined[entry.value]:
            raise GraphError(f"input %{entry.value} is listed twice")
        if not -1 <= entry.axis < MAX_RANK:
            raise GraphError(f"input %{entry.value}: {entry.axis} is no dimension to grow along")
        if len(entry.name) > MAX_NAME:
            raise GraphError(f"the name of input %{entry.value} is longer than {MAX_NAME} characters")
        defined[entry.value] = 1
    return defined


def _verify_nodes(graph: Graph, defined: bytearray, level: int) -> None:
    count, previous = len(defined), -1
    modules, sources, marks = len(graph.modules), len(graph.sources), len(graph.marks)
    sound: dict[int, Evidence] = {}  # many nodes share the same pieces
    names: set[tuple[str, str]] = set()
    regional = False
    for node in graph.steps:
        if type(node) is not Node:
            raise GraphError(f"steps hold Node values, not {type(node).__name__}")
        if not previous < node.id < _INT64:
            _broken(graph, node, f"its id is not above {previous}, the id of the node before it")
        previous = node.id
        name = (node.operation, node.overload)
        if name not in names:
            if not (_OPERATION.fullmatch(node.operation) and _OVERLOAD.fullmatch(node.overload)):
                _broken(graph, node, "an operator is 'namespace::name' with an overload of letters and digits")
            names.add(name)
            regional = regional or node.operation in OPERATORS
        if len(node.args) > MAX_ARGS:
            _broken(graph, node, f"{len(node.args)} arguments are more than {MAX_ARGS}")
        for arg in node.args:
            kind = type(arg)
            if kind is Ref:
                value = arg.value  # type: ignore[union-attr]
                if not (0 <= value < count and defined[value]):
                    _broken(graph, node, f"operand %{value} is not defined before it")
            elif not (arg is None or kind is bool or kind is float):
                _verify_argument(graph, node, arg, defined, 0)
        for value in node.outputs:
            if value == -1:
                continue
            if not 0 <= value < count:
                _broken(graph, node, f"output %{value} is no value of the graph")
            if defined[value]:
                _broken(graph, node, f"output %{value} is defined already")
            defined[value] = 1
        if node.mutates or node.aliases:
            _verify_effects(graph, node)
        if not (-1 <= node.module < modules and -1 <= node.source < sources and -1 <= node.mark < marks):
            _broken(graph, node, "its module, source or mark is not in the graph's tables")
        if node.semantics is not None and (fault := _fault(node.semantics, sound)):
            _broken(graph, node, fault)
        if regional and node.operation in OPERATORS:
            _verify_regions(graph, node, level)
    if regional:
        _verify_census(graph)


def _verify_argument(graph: Graph, node: Node, arg: Arg, defined: bytearray, depth: int) -> None:
    kind = type(arg)
    if kind is int:
        if not -_INT64 <= arg < _INT64:  # type: ignore[operator]
            _broken(graph, node, f"{arg} does not fit a signed 64-bit number")
    elif isinstance(arg, Ref):
        if not (0 <= arg.value < len(defined) and defined[arg.value]):
            _broken(graph, node, f"operand %{arg.value} is not defined before it")
    elif isinstance(arg, Many):
        if depth >= MAX_DEPTH:
            _broken(graph, node, f"lists are nested deeper than {MAX_DEPTH}")
        if len(arg.items) > MAX_ITEMS:
            _broken(graph, node, f"a list of {len(arg.items)} items is longer than {MAX_ITEMS}")
        for item in arg.items:
            _verify_argument(graph, node, item, defined, depth + 1)
    elif isinstance(arg, Const):
        rule = _CONST.get(arg.kind)
        if rule is None or not rule.fullmatch(arg.text):
            _broken(graph, node, f"{arg.text[:64]!r} is no {arg.kind}")
    elif isinstance(arg, Region):
        if node.operation not in OPERATORS:
            _broken(graph, node, "a region is no argument of this operator")
        if type(arg.graph) is not Graph:
            _broken(graph, node, f"a {type(arg.graph).__name__} is no region")
    elif isinstance(arg, ScalarTensor):
        if arg.dtype not in DTYPES:
            _broken(graph, node, f"no dtype is called {arg.dtype[:64]!r}")
        if type(arg.number) is int and not -_INT64 <= arg.number < 2 * _INT64:
            _broken(graph, node, f"{arg.number} does not fit 64 bits")
    elif isinstance(arg, str):
        if len(arg) > MAX_TEXT:
            _broken(graph, node, f"a text of {len(arg)} characters is longer than {MAX_TEXT}")
    elif not (arg is None or kind is bool or kind is float):
        _broken(graph, node, f"a {kind.__name__} is no argument")


def _verify_regions(graph: Graph, node: Node, level: int) -> None:
    if level >= MAX_NESTING:
        _broken(graph, node, f"regions are nested deeper than {MAX_NESTING}")
    for number, region in enumerate(node.regions):
        try:
            _verify(region, level + 1)
        except GraphError as error:
            _broken(graph, node, f"region {number}: {error.message}")
    if fault := mismatch(graph, node):
        _broken(graph, node, fault)


def _verify_census(graph: Graph) -> None:
    """Of regions as often as they are run: a graph may hold one many times."""
    found = census(graph)
    if found.height > MAX_NESTING:
        raise GraphError(f"regions are nested deeper than {MAX_NESTING}")
    for what, size, bound in (
        ("regions", found.regions, MAX_REGIONS),
        ("nodes", found.nodes, MAX_NODES),
        ("values", found.values, MAX_VALUES),
    ):
        if size > bound:
            raise GraphError(f"{size} {what}, those in regions counted, are more than the {bound} allowed")


def _verify_effects(graph: Graph, node: Node) -> None:
    operands = set(refs(node.args))
    for value in node.mutates:
        if value not in operands:
            _broken(graph, node, f"it says to write to %{value}, which is no operand of it")
    for output, operand in node.aliases:
        if output < 0 or output not in node.outputs:
            _broken(graph, node, f"it says %{output} shares memory, which is no output of it")
        if operand not in operands:
            _broken(graph, node, f"it says to share the memory of %{operand}, which is no operand of it")


def _fault(known: Semantics | ValueSemantics, sound: dict[int, Evidence] | None = None) -> str:
    """What is wrong with labels, or nothing. ``sound`` remembers evidence looked at."""
    if type(known) is Semantics:
        for number in (known.flops, known.bytes_read, known.bytes_written):
            if number is not None and not 0 <= number < 1 << 64:
                return f"{number} is no number of operations or bytes"
        if known.priority is not None and not -_INT64 <= known.priority < _INT64:
            return f"{known.priority} is no priority"
        if known.call is not None and not 0 <= known.call < _INT64:
            return f"{known.call} is no number of a call"
        texts: tuple[str | None, ...] = (known.role, known.phase, known.device)
    else:
        texts = ()
    for text in (*texts, known.modality, known.residency, known.memory_pattern, known.colocation_group):
        if text is not None and len(text) > MAX_NAME:
            return f"a label is longer than {MAX_NAME} characters"
    if len(known.evidence) > 64:
        return "more than 64 pieces of evidence"
    for why in known.evidence:
        if sound is not None:
            if id(why) in sound:
                continue
            sound[id(why)] = why
        if not 0.0 <= why.confidence <= 1.0:
            return f"confidence {why.confidence} is not within 0 and 1"
        if len(why.label) > MAX_NAME or len(why.reason) > MAX_NAME:
            return f"a piece of evidence is longer than {MAX_NAME} characters"
    return ""


def _broken(graph: Graph, node: Node, rule: str) -> NoReturn:
    where = graph.sources[node.source] if 0 <= node.source < len(graph.sources) else ""
    raise GraphError(printable(f"node {node.id} ({node.target[:160]}): {rule}"), where=printable(where))
