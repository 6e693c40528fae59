"""What executing a graph means, in the fewest lines: the oracle the native executor is tested against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from genie.bindings import bits_float
from genie.graph import Arg, Const, Graph, Many, Node, Ref, ScalarTensor


class Poison:
    """Why a value does not exist."""

    def __init__(self, kind: str, message: str, step: int) -> None:
        self.kind = kind
        self.message = message
        self.step = step


class Reference:
    """Values by handle, generators by number; ``execute`` is the session's, one Python call per operator."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.values: dict[int, torch.Tensor | Poison] = {}
        self.generators: dict[int, torch.Generator] = {}

    def generator(self, number: int) -> torch.Generator:
        return self.generators.setdefault(number, torch.Generator(self.device))

    def execute(self, graph: Graph, words: Sequence[int]) -> None:
        """``words`` as in :mod:`genie.bindings`."""
        first, handles = words[0], words[1 : 1 + len(graph.inputs)]
        numbers = iter(words[1 + len(graph.inputs) :])
        values: dict[int, Any] = {
            entry.value: self.values[handle] for entry, handle in zip(graph.inputs, handles, strict=True)
        }
        for step, node in enumerate(graph.steps):
            args = [_bound(arg, numbers) for arg in node.args]
            failed = [values[value] for value in node.operands() if isinstance(values[value], Poison)]
            reason = failed[0] if failed else None
            made: list[Any] = []
            if reason is None:
                try:
                    made = self._call(node, args, values)
                except Exception as error:  # whatever a kernel raises is the step's result
                    reason = Poison(type(error).__name__, str(error), step)
            if reason is not None:
                made = [reason] * len(node.outputs)
                self._poison([values[value] for value in node.mutates], values, reason)
            values.update({value: one for value, one in zip(node.outputs, made, strict=True) if value >= 0})
        for entry, handle in zip(graph.inputs, handles, strict=True):
            if entry.donated:
                del self.values[handle]
        self.values.update({first + k: values[value] for k, value in enumerate(graph.outputs)})

    def _call(self, node: Node, args: Sequence[Any], values: Mapping[int, Any]) -> list[Any]:
        name = node.operation.split("::")
        operator = getattr(getattr(getattr(torch.ops, name[0]), name[1]), node.overload or "default")
        formals = operator._schema.arguments
        given = [self._argument(arg, values) for arg in args]
        keywords = {formal.name: arg for formal, arg in zip(formals, given, strict=False) if formal.kwarg_only}
        for formal in formals:
            if "Generator" in str(formal.type) and keywords.get(formal.name) is None:
                keywords[formal.name] = self.generator(0)
        positional = [arg for formal, arg in zip(formals, given, strict=False) if not formal.kwarg_only]
        default = torch.default_generator
        mine, process = self.generator(0), default.get_state()
        default.set_state(mine.get_state())
        try:
            with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
                result = operator(*positional, **keywords)
        finally:
            if not any("Generator" in str(formal.type) for formal in formals):
                mine.set_state(default.get_state())
            default.set_state(process)
        return list(_flat(result)) if operator._schema.returns else []

    def _argument(self, arg: Any, values: Mapping[int, Any]) -> Any:
        match arg:
            case Ref(value):
                return values[value]
            case Many(items):
                return [self._argument(item, values) for item in items]
            case Const("device", text):
                return self.device if text == "self" else torch.device(text)
            case Const("complex", text):
                return complex(text)
            case Const("generator", text):
                return self.generator(int(text))
            case Const(_, text):
                return getattr(torch, text)
            case ScalarTensor(dtype, number, wrapped):
                # PyTorch itself makes a wrapped tensor of a number.
                return number if wrapped else torch.tensor(number, dtype=getattr(torch, dtype))
        return arg

    def _poison(self, written: Sequence[Any], values: dict[int, Any], reason: Poison) -> None:
        storages = {one.untyped_storage().data_ptr() for one in written if isinstance(one, torch.Tensor)}
        for table in (values, self.values):
            for key, one in table.items():
                if isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() in storages:
                    table[key] = reason


def _bound(arg: Arg, numbers: Iterator[int]) -> Any:
    """``arg`` with its parameters replaced by this execution's."""
    match arg:
        case bool():
            return arg
        case int():
            return _signed(next(numbers))
        case float():
            return bits_float(next(numbers))
        case Many(items):
            return Many(tuple(_bound(item, numbers) for item in items))
        case ScalarTensor(dtype, number, wrapped) if not isinstance(number, bool):
            return ScalarTensor(dtype, _bound(number, numbers), wrapped)
    return arg


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _flat(result: Any) -> Iterator[Any]:
    if isinstance(result, tuple | list):
        for one in result:
            yield from _flat(one)
    elif result is None or isinstance(result, torch.Tensor):
        yield result
    else:
        yield torch.tensor(result, dtype=torch.float64 if isinstance(result, float) else None)
