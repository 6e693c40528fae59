"""Which module an operator was issued from, as an interned number the recorder puts on each command."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias

import torch
from torch.compiler import is_compiling
from torch.nn.modules import module as hooks

from genie_pytorch.native import _C

Origin: TypeAlias = tuple[Literal["parameter", "buffer"], str]

_table: list[tuple[str, str]] = [("", "")]
_numbers: dict[tuple[str, str], int] = {}
_installed = False


class _Seen:
    """A module that was called: what it is called by each module that calls it."""

    __slots__ = ("by_caller", "module")

    def __init__(self, module: weakref.ref[torch.nn.Module]) -> None:
        self.module = module
        self.by_caller: dict[int, int] = {}


# Keyed by identity: a module may define __eq__ as it likes. An entry is dropped with its module.
_seen: dict[int, _Seen] = {}

# Where else a host tensor's elements are, for tensors of modules that stay on the host.
_elsewhere: list[Callable[[torch.Tensor], Iterable[torch.Tensor]]] = []


def install() -> None:
    """Follow every module's forward call from now on. Modules have no per-operator cost."""
    global _installed
    if not _installed:
        _installed = True
        hooks.register_module_forward_pre_hook(_enter)
        hooks.register_module_forward_hook(_leave, always_call=True)


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
        _see(each).by_caller.setdefault(0, intern(path, type(each).__name__))


def look_elsewhere(counterparts: Callable[[torch.Tensor], Iterable[torch.Tensor]]) -> None:
    _elsewhere.append(counterparts)


def origins(device: int) -> dict[int, Origin]:
    """The values on a device, by handle, that are parameters or buffers of modules seen so far.

    Looked up once per plan made, so that calls of modules need not keep it.
    """
    known: dict[int, Origin] = {}
    for seen in list(_seen.values()):
        module = seen.module()
        if module is None or not seen.by_caller:
            continue
        path = _table[next(iter(seen.by_caller.values()))][0]
        for kind, tensors in (("buffer", module._buffers), ("parameter", module._parameters)):
            for name, tensor in tensors.items():
                if isinstance(tensor, torch.Tensor):
                    origin: Origin = (kind, f"{path}.{name}" if path else name)  # type: ignore[assignment]
                    _note(tensor, device, origin, known)
    return known


def _note(tensor: torch.Tensor, device: int, origin: Origin, known: dict[int, Origin]) -> None:
    there: Iterable[torch.Tensor] = (tensor,)
    if tensor.device.type == "cpu":
        there = [each for counterparts in _elsewhere for each in counterparts(tensor)]
    for each in there:
        where, handle, _ = _C.peek(each)
        if where == device and handle:
            known[handle] = origin


class _Stack(threading.local):
    """The modules this thread is in: ids, and the numbers to go back to."""

    def __init__(self) -> None:
        self.callers: list[int] = [0]
        self.numbers: list[int] = []


_stack = _Stack()
_set_module = _C.set_module
_current_module = _C.current_module


def _enter(module: torch.nn.Module, _args: Any) -> None:
    if is_compiling():
        return
    stack = _stack
    callers = stack.callers
    name = id(module)
    try:
        number = _seen[name].by_caller[callers[-1]]
    except KeyError:
        number = _learn(module, callers[-1])
    stack.numbers.append(_current_module())
    callers.append(name)
    _set_module(number)


def _leave(_module: torch.nn.Module, _args: Any, _result: Any) -> None:
    if is_compiling():
        return
    stack = _stack
    if stack.numbers:
        stack.callers.pop()
        _set_module(stack.numbers.pop())


def _learn(module: torch.nn.Module, caller: int) -> int:
    path = ""
    above = _seen.get(caller)
    parent = above.module() if above is not None else None
    if above is not None and parent is not None:
        name = next((name for name, child in parent.named_modules() if child is module), type(module).__name__)
        outer = _table[_current_module()][0]
        path = f"{outer}.{name}" if outer else name
    number = intern(path, type(module).__name__)
    _see(module).by_caller[caller] = number
    return number


def _see(module: torch.nn.Module) -> _Seen:
    name = id(module)
    seen = _seen.get(name)
    if seen is None:
        seen = _seen[name] = _Seen(weakref.ref(module, lambda _: _seen.pop(name, None)))
    return seen
