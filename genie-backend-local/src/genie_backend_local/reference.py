"""What executing a graph means, in the fewest lines: the oracle the native executor is tested against."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from msgspec.structs import replace

from genie.bindings import bits_float
from genie.graph import Arg, Const, Graph, Many, Node, Ref, Region, ScalarTensor
from genie.graph.regions import OPERATORS, Cond, Form, Scan, WhileLoop, form


class Poison:
    """Why a value does not exist."""

    def __init__(self, kind: str, message: str, step: int) -> None:
        self.kind = kind
        self.message = message
        self.step = step


class RegionFailed(Exception):
    """A step of a region failed; ``kind`` is the class of what it raised."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


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
        bound = _with_numbers(graph, iter(words[1 + len(graph.inputs) :]))
        values: dict[int, Any] = {
            entry.value: self.values[handle] for entry, handle in zip(graph.inputs, handles, strict=True)
        }
        for step, node in enumerate(bound.steps):
            failed = [values[value] for value in node.operands() if isinstance(values[value], Poison)]
            reason = failed[0] if failed else None
            made: list[Any] = []
            if reason is None:
                try:
                    made = self._call(node, values)
                except RegionFailed as error:
                    reason = Poison(error.kind, str(error), step)
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

    def _call(self, node: Node, values: Mapping[int, Any]) -> list[Any]:
        if node.operation in OPERATORS:
            taken = [values[value] for value in node.operands()]
            return _fresh(self._run_regions(form(node), values), taken)
        name = node.operation.split("::")
        operator = getattr(getattr(getattr(torch.ops, name[0]), name[1]), node.overload or "default")
        formals = operator._schema.arguments
        given = [self.argument(arg, values) for arg in node.args]
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

    def _run_regions(self, call: Form, values: Mapping[int, Any]) -> list[torch.Tensor]:
        def tensors(numbers: Sequence[int]) -> list[torch.Tensor]:
            return [values[number] for number in numbers]

        match call:
            case Cond(predicate, branches, operands):
                said = values[predicate]
                at = int(not said) if said.dtype == torch.bool else int(said)
                if not 0 <= at < len(branches):
                    raise IndexError(f"there is no branch {at}: a cond has {len(branches)}")
                return self._region(branches[at], tensors(operands), f"branch {at}")
            case WhileLoop(condition, body, carried, additional):
                state, more = tensors(carried), tensors(additional)
                for iteration in itertools.count():
                    (said,) = self._region(condition, state + more, f"condition, iteration {iteration}")
                    if not said:
                        return state
                    state = self._region(body, state + more, f"body, iteration {iteration}")
            case Scan(body, init, xs, additional, length, reverse):
                state, more = tensors(init), tensors(additional)
                shapes = [body.values[value] for value in body.outputs[len(init) :]]
                made: list[Any] = [None] * length
                for iteration in range(length):
                    at = length - 1 - iteration if reverse else iteration
                    slices = [values[value][at] for value in xs]
                    given = self._region(body, state + slices + more, f"body, iteration {iteration}")
                    state, made[at] = given[: len(init)], given[len(init) :]
                if not length:
                    empty = [torch.empty((0, *spec.shape), dtype=getattr(torch, spec.dtype)) for spec in shapes]
                    return state + [one.to(self.device) for one in empty]
                return state + [torch.stack(several) for several in zip(*made, strict=True)]
        raise AssertionError(call)

    def _region(self, graph: Graph, taken: Sequence[torch.Tensor], where: str) -> list[torch.Tensor]:
        values: dict[int, Any] = {entry.value: one for entry, one in zip(graph.inputs, taken, strict=True)}
        for step, node in enumerate(graph.steps):
            try:
                made = self._call(node, values)
            except Exception as error:
                kind = error.kind if isinstance(error, RegionFailed) else type(error).__name__
                raise RegionFailed(kind, f"in {where}, step {step} ({node.target}): {error}") from error
            values.update({value: one for value, one in zip(node.outputs, made, strict=True) if value >= 0})
        return [values[value] for value in graph.outputs]

    def argument(self, arg: Any, values: Mapping[int, Any]) -> Any:
        match arg:
            case Ref(value):
                return values[value]
            case Many(items):
                return [self.argument(item, values) for item in items]
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


def _with_numbers(graph: Graph, numbers: Iterator[int]) -> Graph:
    steps = [replace(node, args=tuple(_bound(arg, numbers) for arg in node.args)) for node in graph.steps]
    return replace(graph, steps=tuple(steps))


def _fresh(results: Sequence[torch.Tensor], taken: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    known = {one.untyped_storage().data_ptr() for one in taken}
    fresh = []
    for one in results:
        fresh.append(one.clone() if one.untyped_storage().data_ptr() in known else one)
        known.add(fresh[-1].untyped_storage().data_ptr())
    return fresh


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
        case Region(graph):
            return Region(_with_numbers(graph, numbers))
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
