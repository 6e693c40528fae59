"""Plain PyTorch code, run once on tensors without data, as the nodes of a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genie.errors import UnsupportedOperation
from genie.graph import Arg, Const, Graph, Input, Many, Module, Node, Ref, ScalarTensor, TensorSpec
from genie.graph.regions import MAX_NESTING
from genie_jax.names import Where, class_of, labels

_Operator = torch._ops.OpOverload


@attrs.define(eq=False)
class _Level:
    """What becomes one graph: the program's, or that of a region."""

    values: list[TensorSpec] = attrs.field(factory=list)
    numbers: dict[int, int] = attrs.field(factory=dict)  # by identity, of tensors that the recorder holds
    inputs: list[Input] = attrs.field(factory=list)
    steps: list[Node] = attrs.field(factory=list)
    modules: dict[str, int] = attrs.field(factory=dict)
    sources: dict[str, int] = attrs.field(factory=dict)
    outside: list[torch.Tensor] = attrs.field(factory=list)  # what it takes of the levels around it

    def number(self, tensor: torch.Tensor) -> int:
        known = self.numbers.get(id(tensor))
        if known is None:
            known = self.numbers[id(tensor)] = len(self.values)
            self.values.append(spec_of(tensor))
        return known

    def place(self, where: Where) -> tuple[int, int]:
        """The numbers of a module and of a line."""
        return (
            self.modules.setdefault(where.module, len(self.modules)) if where.module else -1,
            self.sources.setdefault(where.source, len(self.sources)) if where.source else -1,
        )

    def graph(self, inputs: Sequence[Input], outputs: Sequence[int], name: str) -> Graph:
        """The graph of what ``outputs`` need."""
        return pruned(
            Graph(
                values=tuple(self.values),
                inputs=tuple(inputs),
                steps=tuple(self.steps),
                outputs=tuple(outputs),
                modules=tuple(Module(path, class_of(path)) for path in self.modules),
                sources=tuple(self.sources),
                backend_type="fx",
                name=name,
            )
        )


@attrs.frozen
class Body:
    """A region to be: its name, what it is given besides what is around it, and what it makes of that."""

    name: str
    takes: Sequence[TensorSpec]
    function: Callable[..., Sequence[torch.Tensor]]


class Recorder(TorchDispatchMode):
    """While it is entered, what is done with its tensors becomes nodes, which are told to come from ``where``."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=False)
        self._levels = [_Level()]
        self._held: list[torch.Tensor] = []
        self._paused = False
        self.where = Where()
        self.constants: list[np.ndarray] = []  # in the order of the inputs that they are, which come last
        self._constants: list[Input] = []

    def __enter__(self) -> Recorder:
        self._grad = torch.no_grad()
        self._grad.__enter__()
        self.fake.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self.fake.__exit__(*raised)
        self._grad.__exit__(*raised)

    def input(self, shape: Sequence[int], dtype: torch.dtype, name: str, origin: str, donated: bool) -> torch.Tensor:
        made = self._without_data(shape, dtype)
        self._levels[0].inputs.append(Input(self._number(made), name, origin, donated))  # type: ignore[arg-type]
        return made

    def constant(self, array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        """An array that is part of the program: an input of its graph, sent once."""
        made = self._without_data(array.shape, dtype)
        self._held.append(made)
        number = self._levels[0].number(made)  # a region takes it of there
        self._constants.append(Input(number, f"constant {len(self.constants)}", "constant"))
        self.constants.append(array)
        return made

    def _without_data(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        self._paused = True
        try:
            return torch.empty(tuple(shape), dtype=dtype)
        finally:
            self._paused = False

    def _like(self, spec: TensorSpec) -> torch.Tensor:
        return self._without_data(spec.shape, getattr(torch, spec.dtype))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if isinstance(func, _Operator) and not self._paused:
            self._record(func, args, kwargs, made)
        return made

    def _record(self, func: _Operator, args: tuple[Any, ...], kwargs: Mapping[str, Any], made: Any) -> None:
        schema = func._schema
        given: list[Arg] = []
        mutated: list[int] = []
        by_alias: dict[str, int] = {}
        same: dict[int, int] = {}
        for position, argument in enumerate(schema.arguments):
            left = kwargs.get(argument.name, argument.default_value)
            value = args[position] if position < len(args) else left
            given.append(self._arg(str(argument.real_type), value))
            tensors = [each for each in tree_leaves(value) if isinstance(each, torch.Tensor)]
            for tensor in tensors:
                same[id(tensor)] = self._number(tensor)
            if argument.alias_info is not None and tensors:
                if argument.alias_info.is_write:
                    mutated += [self._number(tensor) for tensor in tensors]
                for name in argument.alias_info.before_set:
                    by_alias[name] = self._number(tensors[0])
        results = list(made) if isinstance(made, tuple | list) else [made] if schema.returns else []
        outputs: list[int] = []
        aliases: list[tuple[int, int]] = []
        if len(schema.returns) == 1 and isinstance(made, list):  # Tensor[]
            declared = [schema.returns[0]] * len(results)
        else:
            declared = list(schema.returns)
        for result, described in zip(results, declared, strict=True):
            if not isinstance(result, torch.Tensor) or id(result) in same:
                outputs.append(-1)
                continue
            number = self._number(result)
            outputs.append(number)
            if described.alias_info is not None:
                names = described.alias_info.before_set or described.alias_info.after_set
                aliases += [(number, by_alias[name]) for name in names if name in by_alias]
        self._step(schema.name, schema.overload_name, given, outputs, mutated, aliases)

    def _step(
        self,
        operation: str,
        overload: str,
        args: Sequence[Arg],
        outputs: Sequence[int],
        mutates: Sequence[int] = (),
        aliases: Sequence[tuple[int, int]] = (),
    ) -> None:
        level = self._levels[-1]
        module, source = level.place(self.where)
        level.steps.append(
            Node(
                id=len(level.steps),
                operation=operation,
                overload=overload,
                args=tuple(args),
                outputs=tuple(outputs),
                mutates=tuple(mutates),
                aliases=tuple(aliases),
                module=module,
                source=source,
                semantics=labels(self.where),
            )
        )

    def _number(self, tensor: torch.Tensor) -> int:
        level = self._levels[-1]
        if id(tensor) not in level.numbers:
            self._held.append(tensor)
            if any(id(tensor) in around.numbers for around in self._levels[:-1]):
                level.outside.append(tensor)
        return level.number(tensor)

    def regions(self, *bodies: Body) -> tuple[list[Graph], list[torch.Tensor]]:
        """The graphs of functions, which take what they are given and, all of them, the tensors of around them that
        one of them uses: these are returned, too. What they give is contiguous, as is what they are given."""
        if len(self._levels) > MAX_NESTING:
            raise UnsupportedOperation(f"branches and loops within each other, more than {MAX_NESTING} deep")
        levels: list[_Level] = []
        results: list[list[int]] = []
        for body in bodies:
            self._levels.append(_Level())
            try:
                given = [self._like(each) for each in body.takes]
                self._levels[-1].inputs += [Input(self._number(each)) for each in given]
                results.append([self._number(each.contiguous()) for each in body.function(*given)])
            finally:
                levels.append(self._levels.pop())
        outside = list({id(each): each for level in levels for each in level.outside}.values())
        graphs = [
            level.graph([*level.inputs, *(Input(level.number(each)) for each in outside)], outputs, body.name)
            for body, level, outputs in zip(bodies, levels, results, strict=True)
        ]
        return graphs, outside

    def refs(self, tensors: Sequence[torch.Tensor]) -> list[Ref]:
        return [Ref(self._number(each)) for each in tensors]

    def call(self, operation: str, args: Sequence[Arg], results: Sequence[TensorSpec]) -> list[torch.Tensor]:
        """The results of an operator that is none of ATen's."""
        made = [self._like(each) for each in results]
        self._step(operation, "", args, [self._number(each) for each in made])
        return made

    def _arg(self, kind: str, value: Any) -> Arg:
        if value is None:
            return None
        if kind.startswith("Optional["):
            kind = kind[9:-1]
        if isinstance(value, FakeTensor):
            return Ref(self._number(value))
        if isinstance(value, tuple | list):
            inner = kind[5:-1] if kind.startswith("List[") else kind
            return Many(tuple(self._arg(inner, each) for each in value))
        if kind == "Tensor":
            return _scalar_tensor(value)
        if isinstance(value, torch.dtype):
            return Const("dtype", str(value).removeprefix("torch."))
        if isinstance(value, torch.device):
            return Const("device", "self")
        if isinstance(value, torch.layout):
            return Const("layout", str(value).removeprefix("torch."))
        if isinstance(value, torch.memory_format):
            return Const("memory_format", str(value).removeprefix("torch."))
        if isinstance(value, complex):
            return Const("complex", str(value))
        if kind == "float" and isinstance(value, int):
            return float(value)
        if isinstance(value, bool | int | float | str):
            return value
        raise UnsupportedOperation(f"an argument {value!r} of type {kind}")

    def graph(self, outputs: Iterable[torch.Tensor], name: str = "") -> Graph:
        """The graph of what ``outputs`` need."""
        wanted = [self._number(each) for each in outputs]
        (level,) = self._levels
        return level.graph([*level.inputs, *self._constants], wanted, name)


def pruned(graph: Graph) -> Graph:
    """Without the steps nobody needs, and the values they made. Inputs stay."""
    needed = set(graph.outputs)
    base: dict[int, int] = {}
    for node in graph.steps:
        for output, operand in node.aliases:
            base[output] = base.get(operand, operand)
    kept: list[Node] = []
    for node in reversed(graph.steps):
        if any(each in needed for each in node.outputs) or any(base.get(v, v) in needed for v in node.mutates):
            kept.append(node)
            for value in node.operands():
                needed.add(value)
                needed.add(base.get(value, value))
    kept.reverse()
    numbers: dict[int, int] = {-1: -1}
    for entry in graph.inputs:
        numbers.setdefault(entry.value, len(numbers) - 1)
    for node in kept:
        for value in node.outputs:
            numbers.setdefault(value, len(numbers) - 1)
    values: list[TensorSpec] = [graph.values[0]] * (len(numbers) - 1) if graph.values else []
    for old, new in numbers.items():
        if new >= 0:
            values[new] = graph.values[old]
    return Graph(
        values=tuple(values),
        inputs=tuple(Input(numbers[entry.value], entry.name, entry.origin, entry.donated) for entry in graph.inputs),
        steps=tuple(renumbered(node, position, numbers) for position, node in enumerate(kept)),
        outputs=tuple(numbers[value] for value in graph.outputs),
        modules=graph.modules,
        sources=graph.sources,
        backend_type=graph.backend_type,
        name=graph.name,
    )


def renumbered(node: Node, position: int, numbers: Mapping[int, int]) -> Node:
    """A node elsewhere in a graph, whose values have other numbers, those that ``numbers`` names."""
    return Node(
        id=position,
        operation=node.operation,
        overload=node.overload,
        args=tuple(_renamed(arg, numbers) for arg in node.args),
        outputs=tuple(numbers.get(value, value) for value in node.outputs),
        mutates=tuple(numbers.get(value, value) for value in node.mutates),
        aliases=tuple((numbers.get(a, a), numbers.get(b, b)) for a, b in node.aliases),
        module=node.module,
        source=node.source,
        semantics=node.semantics,
    )


def _renamed(arg: Arg, numbers: Mapping[int, int]) -> Arg:
    if isinstance(arg, Ref):
        return Ref(numbers.get(arg.value, arg.value))
    if isinstance(arg, Many):
        return Many(tuple(_renamed(item, numbers) for item in arg.items))
    return arg


def _scalar_tensor(value: Any) -> Arg:
    if isinstance(value, bool):
        return ScalarTensor("bool", value, True)
    if isinstance(value, int):
        return ScalarTensor("int64", value, True)
    if isinstance(value, float):
        return ScalarTensor("float64", value, True)
    raise UnsupportedOperation(f"a number {value!r} in place of a tensor")


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    shape = tuple(int(size) for size in tensor.shape)
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(shape, dtype, None if tensor.is_contiguous() else tuple(tensor.stride()))
