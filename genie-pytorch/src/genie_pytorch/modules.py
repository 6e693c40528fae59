"""Which module or optimizer an operator was issued from, as an interned number the recorder puts on each command.

The recorder finds them among the Python frames, as it finds the user's line: they carry no hooks and pay nothing for
it. It asks here once per module.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import CodeType
from typing import Any, Literal, TypeAlias

import torch

from genie.graph import Semantics
from genie_pytorch import scopes
from genie_pytorch.native import _C

Origin: TypeAlias = tuple[Literal["parameter", "buffer", "state"], str]

# Where an optimizer stands in a graph's modules.
OPTIMIZER = "optimizer"

_table: list[tuple[str, str]] = [("", "")]
_numbers: dict[tuple[str, str, bool], int] = {}


class _Seen:
    """A module that was called, by the name it was first called by."""

    __slots__ = ("module", "number")

    def __init__(self, module: weakref.ref[torch.nn.Module], number: int) -> None:
        self.module = module
        self.number = number


# Keyed by identity: a module may define __eq__ as it likes. An entry is dropped with its module.
_seen: dict[int, _Seen] = {}

# Optimizers that made a step, and their numbers.
_optimizers: dict[int, weakref.ref[torch.optim.Optimizer]] = {}
_of_optimizers: set[int] = set()

# Modules the user said something of, with the number of what was said.
_marked: dict[int, tuple[weakref.ref[torch.nn.Module], int]] = {}
_marks_changed = 0

# Where else a host tensor's elements are, for tensors of modules that stay on the host.
_elsewhere: list[Callable[[torch.Tensor], Iterable[torch.Tensor]]] = []


def install() -> None:
    """Have the recorder find modules from now on."""
    _C.follow_modules(torch.nn.Module._wrapped_call_impl.__code__, _learn)
    step = _code_around_steps()
    if step is not None:
        _C.follow_optimizers(step, _learn_optimizer)


def describe(number: int) -> tuple[str, str]:
    """(path, class) of an interned module."""
    return _table[number]


def intern(path: str, kind: str, optimizer: bool = False) -> int:
    key = (path, kind, optimizer)
    number = _numbers.get(key)
    if number is None:
        number = _numbers[key] = len(_table)
        _table.append((path, kind))
    return number


def know(module: torch.nn.Module) -> None:
    """Learn the paths of a module and all below it without a call."""
    for path, each in module.named_modules():
        if id(each) not in _seen:
            _see(each, path)


def look_elsewhere(counterparts: Callable[[torch.Tensor], Iterable[torch.Tensor]]) -> None:
    _elsewhere.append(counterparts)


def is_optimizer(number: int) -> bool:
    """Whether an interned module is an optimizer."""
    return number in _of_optimizers


def mark(module: torch.nn.Module, said: Semantics) -> None:
    """Operators issued inside of ``module`` carry what was said of it, from now on."""
    global _marks_changed
    identity = id(module)
    known = _marked.get(identity)
    before = known[1] if known is not None else 0

    def forget(_: object) -> None:
        if _marked.pop(identity, None) is not None:
            _C.mark_module(identity, 0)

    number = scopes.more(said)(before)
    _marked[identity] = (known[0] if known is not None else weakref.ref(module, forget), number)
    _marks_changed += 1
    _C.mark_module(identity, number)


def marks_changed() -> int:
    """Moves when a module is marked."""
    return _marks_changed


def mark_of(identity: int) -> int:
    """The number of what was said of the module with this ``id``; 0 is nothing."""
    known = _marked.get(identity)
    return known[1] if known is not None else 0


def origins(device: int) -> dict[int, Origin]:
    """The values on a device, by handle, that are parameters or buffers of modules seen so far, or what optimizers
    keep beside parameters.

    Looked up once per plan made, so that calls of modules need not keep it.
    """
    with torch._C.DisableTorchFunction():  # a capture must not take this for the program's
        return _origins(device)


def _origins(device: int) -> dict[int, Origin]:
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
    for reference in list(_optimizers.values()):
        optimizer = reference()
        for parameter, kept in [] if optimizer is None else list(optimizer.state.items()):
            if isinstance(parameter, torch.Tensor) and isinstance(kept, dict):
                name = next((known[each][1] for each in _handles(parameter, device) if each in known), "")
                for key, tensor in kept.items():
                    if isinstance(tensor, torch.Tensor):
                        _note(tensor, device, ("state", f"{name}.{key}" if name else str(key)), known)
    return known


def _note(tensor: torch.Tensor | None, device: int, origin: Origin, known: dict[int, Origin]) -> None:
    if tensor is not None:
        for handle in _handles(tensor, device):
            known[handle] = origin


def _handles(tensor: torch.Tensor, device: int) -> Iterator[int]:
    """Where a tensor's elements are on a device."""
    there: Iterable[torch.Tensor] = (tensor,)
    if tensor.device.type == "cpu":
        there = [each for counterparts in _elsewhere for each in counterparts(tensor)]
    for each in there:
        where, handle, _ = _C.peek(each)
        if where == device and handle:
            yield handle


def _learn(calls: Sequence[torch.nn.Module]) -> int:
    """The number of the innermost of the modules being called; called by the recorder when it does not know it."""
    path = ""
    for outer, module in zip((None, *reversed(calls)), reversed(calls), strict=False):
        known = _seen.get(id(module))
        if known is None and outer is None:
            know(module)  # a program may use the weights of modules that it never calls
            known = _seen[id(module)]
        elif known is None:
            assert outer is not None
            name = _name_in(outer, module)
            known = _see(module, f"{path}.{name}" if path else name)
        path = _table[known.number][0]
    return _seen[id(calls[0])].number


def _learn_optimizer(optimizer: Any) -> int:
    """The number of an optimizer that makes its first step."""
    identity = id(optimizer)

    def forget(_: object) -> None:
        _optimizers.pop(identity, None)
        _C.forget_module(identity)

    _optimizers[identity] = weakref.ref(optimizer, forget)
    number = intern(OPTIMIZER, type(optimizer).__name__, optimizer=True)
    _of_optimizers.add(number)
    return number


def _code_around_steps() -> CodeType | None:
    """What PyTorch runs around every optimizer's step, of whichever class; its first local is the arguments' tuple."""
    profiled = torch.optim.Optimizer.profile_hook_step
    for code in profiled.__code__.co_consts:
        if isinstance(code, CodeType) and code.co_name == "wrapper":
            plain = code.co_argcount == code.co_kwonlyargcount == 0 and code.co_varnames[:2] == ("args", "kwargs")
            return code if plain and not {"args", "kwargs"} & set(code.co_cellvars) else None
    return None


def _name_in(outer: torch.nn.Module, module: torch.nn.Module) -> str:
    return next((name for name, child in outer.named_modules() if child is module), type(module).__name__)


def _see(module: torch.nn.Module, path: str) -> _Seen:
    identity = id(module)

    def forget(_: object) -> None:
        _seen.pop(identity, None)
        _C.forget_module(identity)

    seen = _seen[identity] = _Seen(weakref.ref(module, forget), intern(path, type(module).__name__))
    return seen
