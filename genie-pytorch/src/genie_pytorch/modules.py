"""Which module an operator was issued from, as an interned number the recorder puts on each command."""

from __future__ import annotations

import threading
import weakref
from typing import Any, Literal

import torch
from torch.nn.modules import module as hooks

from genie_pytorch.native import _C

_table: list[tuple[str, str]] = [("", "")]
_numbers: dict[tuple[str, str], int] = {}
# Keyed by identity: a module may define __eq__ as it likes. The finalizer drops the entry with the module.
_module_numbers: dict[int, int] = {}
_origins: dict[int, tuple[Literal["parameter", "buffer"], str]] = {}
_installed = False


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


def origin_of(handle: int) -> tuple[Literal["parameter", "buffer"], str] | None:
    """What a value is known to be, by its handle."""
    return _origins.get(handle)


class _Stack:
    """Numbers of the modules this thread is in; the outermost is 0."""

    __slots__ = ("modules", "numbers")

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.modules: list[torch.nn.Module] = []


_local = threading.local()


def _enter(module: torch.nn.Module, _args: Any) -> None:
    try:
        stack = _local.stack
    except AttributeError:
        stack = _local.stack = _Stack()
    number = _module_numbers.get(id(module))
    if number is None:
        number = _intern(module, stack)
    stack.numbers.append(_C.current_module())
    stack.modules.append(module)
    _C.set_module(number)


def _leave(_module: torch.nn.Module, _args: Any, _result: Any) -> None:
    stack = _local.stack
    if stack.numbers:
        stack.modules.pop()
        _C.set_module(stack.numbers.pop())


def _intern(module: torch.nn.Module, stack: _Stack) -> int:
    path = ""
    if stack.modules:
        parent = stack.modules[-1]
        above = _table[_module_numbers.get(id(parent), 0)][0]
        name = next((name for name, child in parent.named_modules() if child is module), type(module).__name__)
        path = f"{above}.{name}" if above else name
    key = (path, type(module).__name__)
    number = _numbers.get(key)
    if number is None:
        number = _numbers[key] = len(_table)
        _table.append(key)
    _module_numbers[id(module)] = number
    weakref.finalize(module, _module_numbers.pop, id(module), None)
    return number
