"""A recorded graph with fewer nodes that compute the very same numbers.

Rules are written for any operands, and what they write down one by one is often nothing: a view of the shape there is,
a number spread over an array that would be spread anyway, the same indices for every layer. A node runs operator by
operator, so each of these costs as much as a sum. What is left out here changes no bit of any result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import torch
from torch.utils._python_dispatch import _disable_current_modes

from genie.graph import Arg, Const, Graph, Many, Node, Ref, ScalarTensor, TensorSpec
from genie.graph.regions import OPERATORS, with_regions
from genie_jax.record import pruned, renumbered

# Each element of the result is made of the elements in its place: operands are broadcast.
_ELEMENTWISE = frozenset(
    f"aten::{name}"
    for name in """add sub mul div pow maximum minimum where eq ne lt le gt ge atan2 remainder fmod logical_and
    logical_or logical_xor bitwise_and bitwise_or bitwise_xor nextafter""".split()
)
_SAME = frozenset(("aten::detach", "aten::alias", "aten::lift_fresh"))
_VIEWS = frozenset(("aten::view", "aten::expand", "aten::permute"))
# Of a number, one, too.
_FUNCTIONS = frozenset(f"aten::{name}" for name in "sqrt rsqrt exp log neg abs reciprocal _to_copy".split())
_NUMBERS: dict[str, type[bool | int | float]] = {"bool": bool}
_NUMBERS |= dict.fromkeys(("uint8", "int8", "int16", "int32", "int64"), int)
_NUMBERS |= dict.fromkeys(("float16", "bfloat16", "float32", "float64"), float)


def simplified(graph: Graph) -> Graph:
    """The same results by fewer nodes; inputs and outputs keep their places. A graph that writes in place is left as it
    is."""
    steps = tuple(
        msgspec.structs.replace(node, args=with_regions(node, [simplified(each) for each in node.regions]))
        if node.operation in OPERATORS
        else node
        for node in graph.steps
    )
    graph = msgspec.structs.replace(graph, steps=steps)
    if any(node.mutates for node in graph.steps):
        return graph
    return pruned(_Simplifier(graph).run())


class _Simplifier:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._specs = list(graph.values)
        self._instead: dict[int, int] = {}  # value → the one that is used in its place
        self._made: dict[int, Node] = {}  # value → the node that makes it, of those that are kept
        self._known: dict[Any, Node] = {}
        self._numbers: dict[int, ScalarTensor] = {}  # values all of whose elements are one number
        self._kept = set(graph.outputs)

    def run(self) -> Graph:
        steps: list[Node] = []
        for given in self._graph.steps:
            node = renumbered(given, given.id, self._instead)
            node = self._smaller(self._folded(self._plain(node)))
            operand = self._same(node)
            if operand >= 0:
                self._instead[node.outputs[0]] = operand
                if operand in self._numbers:
                    self._numbers[node.outputs[0]] = self._numbers[operand]
                continue
            key = self._key(node)
            known = self._known.get(key) if key is not None else None
            if known is not None and not (self._kept & {*node.outputs} and self._kept & {*known.outputs}):
                self._instead.update(zip(node.outputs, known.outputs, strict=True))
                if self._kept & {*node.outputs}:
                    self._kept.update(known.outputs)
                continue
            if key is not None:
                self._known[key] = node
            for value in node.outputs:
                self._made[value] = node
            self._note(node)
            steps.append(node)
        graph = self._graph
        outputs = tuple(self._instead.get(value, value) for value in graph.outputs)
        return msgspec.structs.replace(graph, steps=tuple(steps), outputs=outputs)

    # --- what is nothing

    def _same(self, node: Node) -> int:
        """The operand that a node gives again, or -1."""
        if node.target == "aten::where.self" and node.outputs[0] not in self._kept:
            return self._chosen(node)
        if node.operation not in (*_SAME, *_VIEWS) or not node.args or not isinstance(node.args[0], Ref):
            return -1
        operand = node.args[0].value
        made, given = self._specs[node.outputs[0]], self._specs[operand]
        if (made.shape, made.dtype, made.stride) != (given.shape, given.dtype, given.stride):
            return -1
        if node.operation == "aten::permute" and not _in_order(given.shape, node.args[1]):
            return -1
        if node.outputs[0] in self._kept:  # a result is a value of its own
            maker = self._made.get(operand)
            if maker is None or maker.aliases or operand in self._kept:
                return -1
            self._kept.add(operand)
        return operand

    def _chosen(self, node: Node) -> int:
        """What is chosen where the choice is known, and nothing is spread."""
        which, *cases = node.args
        known = self._numbers.get(which.value) if isinstance(which, Ref) else None
        chosen = cases[0 if known.number else 1] if known is not None else None
        if isinstance(chosen, Ref) and self._specs[chosen.value] == self._specs[node.outputs[0]]:
            return chosen.value
        return -1

    def _plain(self, node: Node) -> Node:
        """Dimensions of one element moved or taken away where all there is lies in order: a view."""
        if node.operation not in ("aten::permute", "aten::select", "aten::squeeze", "aten::unsqueeze"):
            return node
        given, made = self._specs[node.args[0].value], self._specs[node.outputs[0]]  # type: ignore[union-attr]
        whole = math.prod(given.shape) == math.prod(made.shape)
        if given.stride is not None or made.stride is not None or not whole:
            return node
        if node.operation == "aten::permute" and not _in_order(given.shape, node.args[1]):
            return node
        args = (node.args[0], Many(made.shape))
        return msgspec.structs.replace(node, operation="aten::view", overload="", args=args)

    def _folded(self, node: Node) -> Node:
        """What is computed from numbers alone is one."""
        if node.operation not in _ELEMENTWISE and node.operation not in _FUNCTIONS or len(node.outputs) != 1:
            return node
        spec = self._specs[node.outputs[0]]
        taken = [arg.value for arg in node.args if isinstance(arg, Ref)]
        kind = _NUMBERS.get(spec.dtype)
        if kind is None or spec.stride is not None or not all(value in self._numbers for value in taken):
            return node
        args: list[Any] = []
        for arg in node.args:
            if isinstance(arg, Ref):
                args.append(torch.tensor(self._numbers[arg.value].number, dtype=self._dtype(arg.value)))
            elif isinstance(arg, Const) and arg.kind in ("dtype", "device"):
                args.append(getattr(torch, arg.text) if arg.kind == "dtype" else "cpu")
            elif isinstance(arg, ScalarTensor | Const):
                return node
            else:
                args.append(arg)
        with _disable_current_modes():
            made = _computed(node, args)
        if made.dtype != self._dtype(node.outputs[0]):
            return node
        given = (Many(spec.shape), kind(made.item()), Const("dtype", spec.dtype), None, Const("device", "self"), False)
        return msgspec.structs.replace(node, operation="aten::full", overload="", args=given, aliases=())

    def _dtype(self, value: int) -> torch.dtype:
        return getattr(torch, self._specs[value].dtype)

    # --- what is less

    def _smaller(self, node: Node) -> Node:
        if node.target == "aten::view":
            return self._view(node)
        if node.operation in _ELEMENTWISE:
            return self._broadcast(node)
        return node

    def _view(self, node: Node) -> Node:
        """A view of a view is one of what that views, where all there is lies in order."""
        maker = self._made.get(node.args[0].value)  # type: ignore[union-attr]
        if maker is None or maker.target != "aten::view":
            return node
        first = maker.args[0].value  # type: ignore[union-attr]
        specs = (self._specs[first], self._specs[maker.outputs[0]], self._specs[node.outputs[0]])
        if any(spec.stride is not None for spec in specs):
            return node
        aliases = tuple((out, first) for out, _ in node.aliases)
        return msgspec.structs.replace(node, args=(Ref(first), *node.args[1:]), aliases=aliases)

    def _broadcast(self, node: Node) -> Node:
        """Operands before they were spread, and numbers in place of arrays of them."""
        args = list(node.args)
        for place, arg in enumerate(args):
            if not isinstance(arg, Ref):
                continue
            if node.operation == "aten::div" and place == 1 and not self._exact_divisor(arg.value):
                continue
            better = self._unspread(arg.value, args, place, self._specs[node.outputs[0]])
            if better is not None:
                args[place] = better
        if args == list(node.args) or not self._agrees(node, args):
            return node
        return msgspec.structs.replace(node, args=tuple(args))

    def _exact_divisor(self, value: int) -> bool:
        """Some devices multiply by one over a number that they divide by: the same for powers of two alone."""
        number = self._numbers.get(value)
        return number is None or abs(math.frexp(number.number)[0]) == 0.5

    def _unspread(self, value: int, args: Sequence[Arg], place: int, made: TensorSpec) -> Arg:
        others = [arg.value for other, arg in enumerate(args) if other != place and isinstance(arg, Ref)]
        number = self._numbers.get(value)
        dtype = self._specs[value].dtype
        if number is not None and any(
            self._specs[other].dtype == dtype and self._specs[other].shape == made.shape for other in others
        ):
            return number
        while True:
            maker = self._made.get(value)
            if maker is None or maker.target not in ("aten::expand", "aten::view"):
                break
            before = maker.args[0].value  # type: ignore[union-attr]
            if maker.target == "aten::view" and not _aligned(self._specs[before].shape, self._specs[value].shape):
                break
            shapes = [self._specs[before].shape, *(self._specs[other].shape for other in others)]
            if _spread(shapes) != made.shape:
                break
            value = before
        return Ref(value)

    def _agrees(self, node: Node, args: Sequence[Arg]) -> bool:
        """Whether a node with other operands makes a value of the same type and layout."""
        spec = self._specs[node.outputs[0]]
        operands = [self._specs[arg.value] for arg in args if isinstance(arg, Ref)]
        if not operands:
            return False
        with _disable_current_modes():
            fakes = [self._fake(arg, before) for arg, before in zip(args, node.args, strict=True)]
            made = _computed(node, fakes)
        stride = None if made.is_contiguous() else tuple(made.stride())
        dtype = str(made.dtype).removeprefix("torch.")
        return (tuple(made.shape), dtype, stride) == (spec.shape, spec.dtype, spec.stride)

    def _fake(self, arg: Arg, before: Arg) -> Any:
        if isinstance(arg, Ref):
            spec = self._specs[arg.value]
            dtype = getattr(torch, spec.dtype)
            if spec.stride is None:
                return torch.empty(spec.shape, dtype=dtype, device="meta")
            return torch.empty_strided(spec.shape, spec.stride, dtype=dtype, device="meta")
        if isinstance(arg, ScalarTensor):
            dtype = self._specs[before.value].dtype if isinstance(before, Ref) else arg.dtype
            return torch.empty((), dtype=getattr(torch, dtype), device="meta")
        return arg

    # --- what is there already

    def _key(self, node: Node) -> Any:
        if node.regions or not node.outputs:
            return None
        return (
            node.operation,
            node.overload,
            tuple(map(_exactly, node.args)),
            tuple(self._specs[value] for value in node.outputs),
        )

    def _note(self, node: Node) -> None:
        """A number that an array is full of."""
        if len(node.outputs) != 1:
            return
        (value,) = node.outputs
        spec = self._specs[value]
        kind = _NUMBERS.get(spec.dtype)
        if kind is None:
            return
        if node.operation == "aten::full":
            number = node.args[1]
            if isinstance(number, bool | int | float):
                wide = {bool: "bool", int: "int64", float: "float64"}[kind]
                with _disable_current_modes():  # as the array has it: a number of its own would not be rounded
                    rounded = torch.tensor(kind(number), dtype=self._dtype(value)).item()
                self._numbers[value] = ScalarTensor(wide, kind(rounded), True)
        elif node.target in _VIEWS and isinstance(node.args[0], Ref) and node.args[0].value in self._numbers:
            self._numbers[value] = self._numbers[node.args[0].value]


def _in_order(shape: tuple[int, ...], order: Arg) -> bool:
    """Whether dimensions of more than one element stay in their order."""
    moved = [int(axis) for axis in order.items if shape[int(axis)] != 1]  # type: ignore[union-attr, arg-type]
    return moved == sorted(moved)


def _computed(node: Node, args: Sequence[Any]) -> torch.Tensor:
    """What an operator makes of arguments in the order of its schema."""
    packet = getattr(torch.ops.aten, node.operation.removeprefix("aten::"))
    operator = getattr(packet, node.overload or "default")
    named = {a.name: v for a, v in zip(operator._schema.arguments, args, strict=True) if a.kwarg_only}
    return operator(*args[: len(args) - len(named)], **named)


def _exactly(arg: Arg) -> Any:
    """An argument to compare by: 1, 1.0 and True are equal, and 0.0 and -0.0 too, but mean different things."""
    if isinstance(arg, Many):
        return ("l", *map(_exactly, arg.items))
    if isinstance(arg, Ref | Const | str) or arg is None:
        return arg
    return repr(arg)


def _spread(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape that shapes are broadcast to."""
    try:
        return tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        return None


def _aligned(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether a view only puts dimensions of one element in front."""
    count = len(after) - len(before)
    return count >= 0 and after[:count] == (1,) * count and after[count:] == before
