"""Which module an operator was issued from, as an interned number the recorder puts on each command.

The recorder finds the module among the Python frames, as it finds the user's line: modules carry no hooks and pay
nothing for it. It asks here once per module.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias

import torch

from genie_pytorch.native import _C

Origin: TypeAlias = tuple[Literal["parameter", "buffer"], str]

_table: list[tuple[str, str]] = [("", "")]
_numbers: dict[tuple[str, str], int] = {}


class _Seen:
    """A module that was called, by the name it was first called by."""

    __slots__ = ("module", "number")

    def __init__(self, module: weakref.ref[torch.nn.Module], number: int) -> None:
        self.module = module
        self.number = number


# Keyed by identity: a module may define __eq__ as it likes. An entry is dropped with its module.
_seen: dict[int, _Seen] = {}

# Where else a host tensor's elements are, for tensors of modules that stay on the host.
_elsewhere: list[Callable[[torch.Tensor], Iterable[torch.Tensor]]] = []


def install() -> None:
    """Have the recorder find modules from now on."""
    _C.follow_modules(torch.nn.Module._wrapped_call_impl.__code__, _learn)


def describe(number: int) -> tuple[str, str]:
    """(path, class) of an interned module."""
    return _table[number]


def intern(path: str, kind: str) -> int:
    key = (path, kind)
    number = _numbers.get(key)
    if number is None:
        number = _numbers[key] = len(_table)
        _table.append(key)
    return number


def know(module: torch.nn.Module) -> None:
    """Learn the paths of a module and all below it without a call."""
    for path, each in module.named_modules():
        if id(each) not in _seen:
            _see(each, path)


def look_elsewhere(counterparts: Callable[[torch.Tensor], Iterable[torch.Tensor]]) -> None:
    _elsewhere.append(counterparts)


def origins(device: int) -> dict[int, Origin]:
    """The values on a device, by handle, that are parameters or buffers of modules seen so far.

    Looked up once per plan made, so that calls of modules need not keep it.
    """
    known: dict[int, Origin] = {}
    for seen in list(_seen.values()):
        module = seen.module()
        if module is None:
            continue
        path = _table[seen.number][0]
        for name, tensor in module._buffers.items():
            _note(tensor, device, ("buffer", f"{path}.{name}" if path else name), known)
        for name, tensor in module._parameters.items():
            _note(tensor, device, ("parameter", f"{path}.{name}" if path else name), known)
    return known


def _note(tensor: torch.Tensor | None, device: int, origin: Origin, known: dict[int, Origin]) -> None:
    if tensor is None:
        return
    there: Iterable[torch.Tensor] = (tensor,)
    if tensor.device.type == "cpu":
        there = [each for counterparts in _elsewhere for each in counterparts(tensor)]
    for each in there:
        where, handle, _ = _C.peek(each)
        if where == device and handle:
            known[handle] = origin


def _learn(calls: Sequence[torch.nn.Module]) -> int:
    """The number of the innermost of the modules being called; called by the recorder when it does not know it."""
    path = ""
    for outer, module in zip((None, *reversed(calls)), reversed(calls), strict=False):
        known = _seen.get(id(module))
        if known is None:
            name = "" if outer is None else _name_in(outer, module)
            known = _see(module, f"{path}.{name}" if path else name)
        path = _table[known.number][0]
    return _seen[id(calls[0])].number


def _name_in(outer: torch.nn.Module, module: torch.nn.Module) -> str:
    return next((name for name, child in outer.named_modules() if child is module), type(module).__name__)


def _see(module: torch.nn.Module, path: str) -> _Seen:
    identity = id(module)

    def forget(_: object) -> None:
        _seen.pop(identity, None)
        _C.forget_module(identity)

    seen = _seen[identity] = _Seen(weakref.ref(module, forget), intern(path, type(module).__name__))
    return seen
