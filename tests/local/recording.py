"""Records what a PyTorch program does below autograd as a Program, for the executor to repeat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from local.both import Program, name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genie.graph import Arg, Const, Many, Ref, ScalarTensor

_NAMES = {torch.dtype: "dtype", torch.layout: "layout", torch.memory_format: "memory_format"}
_DEFAULTS = {4: "int64", 6: "float32"}


class Unrecordable(Exception):
    """The program does what graphs cannot say (sparse or quantized inputs, storages, names, …)."""


class Recording(TorchDispatchMode):
    """Use as a context; ``program`` grows by every operator, ``refs`` says which value a tensor is."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.program = Program()
        self._values: dict[int, Ref] = {}
        self._kept: list[torch.Tensor] = []  # an id is a name only while its object lives

    def knows(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self._values

    def ref(self, tensor: torch.Tensor) -> Ref:
        found = self._values.get(id(tensor))
        if found is None:
            if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
                raise Unrecordable(f"a {tensor.layout} {tensor.dtype} input")
            with torch._C._DisableTorchDispatch():
                base = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage()).clone()
                stored = self.program.input(base)
                shape, stride = Many(tuple(tensor.shape)), Many(tuple(tensor.stride()))
            found = self.program.call("aten::as_strided", stored, shape, stride, int(tensor.storage_offset()))
            for flag, operator in ((tensor.is_conj(), "aten::_conj"), (tensor.is_neg(), "aten::_neg_view")):
                found = self.program.call(operator, found) if flag else found
            self._remember(tensor, found)
        return found

    def _remember(self, tensor: torch.Tensor, ref: Ref) -> None:
        self._values[id(tensor)] = ref
        self._kept.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = func._schema
        given = list(args)
        for formal in schema.arguments[len(args) :]:
            given.append(kwargs[formal.name] if kwargs and formal.name in kwargs else formal.default_value)
        recorded = [self._arg(arg, formal) for arg, formal in zip(given, schema.arguments, strict=True)]
        passed = {id(leaf) for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        results = _flat(result if len(schema.returns) != 1 else (result,)) if schema.returns else []
        numbers = []
        for one in results:
            fresh = isinstance(one, torch.Tensor) and id(one) not in passed
            numbers.append(self.program.fresh() if fresh else -1)
            if fresh:
                self._remember(one, Ref(numbers[-1]))
        mutates = tuple(
            value.value
            for arg, formal in zip(recorded, schema.arguments, strict=True)
            if formal.alias_info is not None and formal.alias_info.is_write
            for value in (arg.items if isinstance(arg, Many) else (arg,))
            if isinstance(value, Ref)
        )
        operation, _, overload = func.name().partition(".")
        self.program._add(f"{operation}.{overload}" if overload else operation, recorded, tuple(numbers), mutates, -1)
        return result

    def _arg(self, arg: Any, formal: Any) -> Arg:
        if isinstance(arg, torch.Tensor):
            return self.ref(arg)
        kind = str(formal.type)
        if formal.name == "dtype" and type(arg) is int:  # a default of the schema
            return Const("dtype", _DEFAULTS[arg])
        if isinstance(arg, bool | int | float) and kind in ("Tensor", "Optional[Tensor]"):
            return ScalarTensor(_default(arg), arg, True)
        return self._plain(arg)

    def _plain(self, arg: Any) -> Arg:
        if arg is None or isinstance(arg, bool | int | float | str):
            return arg
        if isinstance(arg, complex):
            return Const("complex", str(arg))
        if isinstance(arg, torch.device):
            return Const("device", "self" if arg.type == "cpu" else arg.type)
        if type(arg) in _NAMES:
            return Const(_NAMES[type(arg)], name(arg) if isinstance(arg, torch.dtype) else str(arg).split(".")[-1])  # type: ignore[arg-type]
        if isinstance(arg, torch.Tensor):
            return self.ref(arg)
        if isinstance(arg, list | tuple):
            return Many(tuple(self._plain(item) for item in arg))
        raise Unrecordable(f"a {type(arg).__name__} argument")


def _default(number: bool | int | float) -> str:
    return "bool" if isinstance(number, bool) else "int64" if isinstance(number, int) else "float64"


def _flat(results: Sequence[Any]) -> list[Any]:
    return [one for result in results for one in (result if isinstance(result, list | tuple) else [result])]
