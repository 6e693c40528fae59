"""``with genie.capture():``. Inside, this thread's operators are recorded, wherever their operands live.

A mode that sees every function of PyTorch this thread calls. What it may do to a program is bounded by one rule: the
program can't tell. So host tensors stay what they are: an operator that computes is given their counterparts on the
device; whoever writes to one, looks at one or takes a view of one gets the host tensor itself.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.autograd import _make_grads
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from genie.errors import GenieError
from genie.graph import Graph
from genie_pytorch import regions, unseen
from genie_pytorch.kinds import Kind, keeps_statistics, kind_of, writes_by_flag
from genie_pytorch.lift import DEVICE, Lifts, Wire, can_lift, host_autocast, on_device
from genie_pytorch.native import _C

Tensor = torch.Tensor
Args = tuple[Any, ...]
Kwargs = dict[str, Any]

# Code of PyTorch that keeps house on host tensors: its results are written back there, or looked at, at once.
_HOUSEKEEPING = ("torch.optim", "torch.utils.data", "torch.nn.utils.clip_grad", "torch.amp", "torch.serialization")
_PASSED_THROUGH = frozenset(
    {"torch.overrides", "torch._tensor", "torch.functional", "torch.nn.functional", "torch.utils._contextlib", __name__}
)


class Capture:
    """One ``with`` statement. ``graph()`` is what this thread captured since its outermost one began.

    The outermost one decides the device (default: the current one) and where lifted tensors are kept.
    """

    def __init__(self, device: torch.device = DEVICE, lifts: Lifts | None = None) -> None:
        self._device = device
        self._lifts = lifts

    def __enter__(self) -> Capture:
        _thread.enter(self._device, self._lifts)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        _thread.leave(failed=kind is not None)

    def graph(self) -> Graph | None:
        return regions.latest_graph()


class _Thread(threading.local):
    """A thread's captures: one mode for all of them, pushed anew where another mode came between."""

    def __init__(self) -> None:
        self.mode: _Capturing | None = None
        self.pushed: list[bool] = []

    def enter(self, device: torch.device, lifts: Lifts | None) -> None:
        if self.mode is None:
            self.mode = _Capturing(device, lifts if lifts is not None else Lifts())
            regions.begin()
            unseen.begin(_apply, _device)
        push = _get_current_function_mode() is not self.mode
        if push:
            self.mode.enter()
        self.pushed.append(push)
        _C.enter_capture()

    def leave(self, failed: bool) -> None:
        mode = self.mode
        assert mode is not None
        _C.leave_capture()
        if self.pushed.pop():
            mode.leave()
        if self.pushed:
            return
        self.mode = None
        unseen.end()
        try:
            # After a failure the program's own error matters, and what it computed may be lost with it.
            with contextlib.suppress(GenieError) if failed else contextlib.nullcontext():
                mode.lifts.settle()
        finally:
            regions.end()


_thread = _Thread()


def _device() -> torch.device | None:
    """Where a captured program draws its random numbers; in the threads of its backward pass, too."""
    mode = _get_current_function_mode()
    return mode.device if isinstance(mode, _Capturing) else None


def _apply(function: Callable[..., Any], cls: type, args: Args, kwargs: Kwargs) -> Any:
    """A custom autograd function, which must find its operands where it will find their gradients."""
    mode = _get_current_function_mode()
    if not isinstance(mode, _Capturing) or cls is Wire:
        return function(cls, *args, **kwargs)
    operands = _Operands(args, kwargs)
    if not operands.host or operands.refused:
        return function(cls, *args, **kwargs)
    return mode.lifting(lambda *args, **kwargs: function(cls, *args, **kwargs), args, kwargs, operands)


def is_capturing() -> bool:
    return bool(_thread.pushed)


@contextlib.contextmanager
def suspended() -> Iterator[None]:
    """Inside, this thread's functions are PyTorch's own again, where no other mode was pushed on top."""
    mode = _thread.mode
    if mode is None or _get_current_function_mode() is not mode:
        yield
        return
    mode.lifts.settle()
    mode.leave()
    try:
        yield
    finally:
        mode.enter()


class _Operands:
    """What a call's operands are, lists of tensors included."""

    __slots__ = ("device", "host", "numbers", "refused")

    def __init__(self, args: Iterable[Any], kwargs: Kwargs) -> None:
        self.device: torch.device | None = None  # of the first operand on a device
        self.host = False  # there is a host tensor to lift
        self.numbers = False  # there is one that is a mere number: operators take those as they are
        self.refused = False  # there is one that can't be lifted
        self._add(args)
        if kwargs:
            self._add(kwargs.values())

    def _add(self, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, Tensor):
                if on_device(value):
                    self.device = self.device or value.device
                elif not can_lift(value):
                    self.refused = True
                elif value.dim() == 0 and not value.requires_grad:
                    self.numbers = True
                else:
                    self.host = True
            elif type(value) is list or type(value) is tuple:
                self._add(value)


class _Capturing(TorchFunctionMode):
    def __init__(self, device: torch.device, lifts: Lifts) -> None:
        super().__init__()
        self.device = device
        self.lifts = lifts
        self.process = os.getpid()
        self.handlers: dict[Kind, Callable[[Any, Args, Kwargs], Any]] = {
            Kind.NATIVE: self._native,
            Kind.FACTORY: self._make,
            Kind.LIKE: self._make_like,
            Kind.WRITE: self._write,
            Kind.BACKWARD: self._backward,
            Kind.ESCAPE: self._escape,
            Kind.COMPUTE: self._compute,
        }

    def enter(self) -> None:
        self.__enter__()  # type: ignore[no-untyped-call]

    def leave(self) -> None:
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:
        if self.process != os.getpid():  # a forked child has the mode, but may not use the connection
            return func(*args, **(kwargs or {}))
        return self.handlers[kind_of(func)](func, args, kwargs or {})

    # --- one method per kind of function

    def _native(self, func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
        if self.lifts.dirty:
            _each(args, self._settle)
        return func(*args, **kwargs)

    def _make(self, func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
        if kwargs.get("out") is not None:
            return self._write(func, args, kwargs)
        if kwargs.get("device") is not None or kwargs.get("pin_memory") or len(args) > 2 and func is torch.as_tensor:
            return func(*args, **kwargs)
        if func in (torch.as_tensor, torch.asarray) and args and isinstance(args[0], Tensor):
            return func(*args, **kwargs)  # it may be the very tensor
        if kwargs.get("layout") not in (None, torch.strided) or _in_house():
            return func(*args, **kwargs)
        if _draws_on_host(kwargs):
            return self._on_host(func, args, kwargs)
        return func(*args, **{**kwargs, "device": self.device})

    def _make_like(self, func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
        like = args[0] if args else kwargs.get("input", kwargs.get("self"))
        if kwargs.get("device") is not None or not isinstance(like, Tensor) or not can_lift(like) or _in_house():
            return func(*args, **kwargs)
        if _draws_on_host(kwargs):
            return self._on_host(func, args, kwargs)
        return func(*args, **{**kwargs, "device": self.device})

    def _write(self, func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
        out = kwargs.get("out")
        target = out if out is not None else args[0] if args else kwargs.get("input", kwargs.get("self"))
        written: list[Tensor] = []
        _each(target, written.append)
        if any(not on_device(tensor) for tensor in written):
            if self.lifts.dirty:
                _each(args, self._settle)
                _each(tuple(kwargs.values()), self._settle)
            for tensor in written:
                self.lifts.forget(tensor)
            if getattr(func, "__name__", "") == "__set__":
                return func(*args, **kwargs)
            return func(*_brought_home(args), **_brought_home(kwargs))
        for tensor in written:
            self.lifts.wrote(tensor)
        if _draws_on_host(kwargs) and out is None and len(written) == 1:
            host = torch.empty_like(written[0], device="cpu")
            written[0].copy_(func(host, *_brought_home(args[1:]), **_brought_home(kwargs)))
            return written[0]
        operands = _Operands(args, kwargs)
        if operands.host and not operands.refused:
            device = operands.device or self.device
            return func(*self._lifted(args, device, False, {}), **self._lifted(kwargs, device, False, {}))
        return func(*args, **kwargs)

    def _backward(self, func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
        call = inspect.signature(func).bind(*args, **kwargs).arguments
        first, gradient, *_ = inspect.signature(func).parameters
        roots = call[first] if isinstance(call[first], tuple | list) else (call[first],)
        gradients = call.get(gradient)
        given = tuple(gradients) if isinstance(gradients, tuple | list) else (gradients,) * len(roots)
        inputs = call.get("inputs")
        if call.get("grad_variables") is not None or (inputs is not None and len(inputs) == 0):
            return func(*args, **kwargs)  # it has something to say about that
        create = call.get("create_graph", False)
        keep = call.get("retain_graph")
        starts = _make_grads(tuple(roots), given, is_grads_batched=False)
        # A handler runs without its mode, and the threads of a backward pass have the modes of whoever started it.
        with self:
            _engine_run_backward(
                tuple(roots),
                starts,
                create if keep is None else keep,
                create,
                () if inputs is None else (inputs,) if isinstance(inputs, Tensor) else tuple(inputs),
                allow_unreachable=True,
                accumulate_grad=True,
            )

    def _escape(self, func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
        if args and isinstance(args[0], Tensor) and not on_device(args[0]):
            self.lifts.settle(args[0])
            self.lifts.escape(args[0])
        return func(*args, **kwargs)

    def _compute(self, func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
        if kwargs.get("out") is not None or writes_by_flag(func, args, kwargs):
            return self._write(func, args, kwargs)
        operands = _Operands(args, kwargs)
        device = operands.device
        if device is None and not operands.host and not operands.numbers:
            if func is torch.normal and not operands.refused:  # of two numbers, it makes a tensor from none
                return self._make(func, args, kwargs)
            return func(*args, **kwargs)
        if _draws_on_host(kwargs):
            return self._on_host(func, args, kwargs)
        if device is None and (operands.refused or func is Tensor.__getitem__ or _in_house()):
            return self._native(func, args, kwargs)
        with host_autocast():
            if not operands.host and device is not None:
                return func(*args, **kwargs)
            return self.lifting(func, args, kwargs, operands)

    def lifting(self, func: Callable[..., Any], args: Args, kwargs: Kwargs, operands: _Operands) -> Any:
        """The function called with the counterparts of its host operands."""
        device = operands.device or self.device
        numbers = not operands.host
        lifted: dict[int, Tensor] = {}  # id of the counterpart → its host tensor
        args_there = self._lifted(args, device, numbers, lifted)
        kwargs_there = self._lifted(kwargs, device, numbers, lifted)
        result = func(*args_there, **kwargs_there)
        if keeps_statistics(func, args, kwargs):
            kept: list[Tensor] = []
            _each((args_there[1:], tuple(kwargs_there.values())), kept.append)
            for tensor in kept:
                if not tensor.requires_grad:
                    self.lifts.wrote(tensor)
        self.lifts.look_for_writes(lifted.values(), device)
        # An operator that had nothing to do returns its operand: the program's own tensor.
        return _mapped(result, lambda tensor: lifted.get(id(tensor), tensor))

    def _on_host(self, func: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
        """A random draw from a generator of the host: its numbers, then on the device."""
        wants_grad = bool(kwargs.get("requires_grad"))
        if wants_grad:
            kwargs = {**kwargs, "requires_grad": False}
        if self.lifts.dirty:
            _each(args, self._settle)
        drawn = func(*_brought_home(args), **_brought_home(kwargs))
        result = _mapped(drawn, lambda tensor: tensor.to(self.device) if can_lift(tensor) else tensor)
        return result.requires_grad_() if wants_grad else result

    # --- operands

    def _settle(self, tensor: Tensor) -> None:
        if not on_device(tensor):
            self.lifts.settle(tensor)

    def _lifted(self, values: Any, device: torch.device, numbers: bool, lifted: dict[int, Tensor]) -> Any:
        def lift(tensor: Tensor) -> Tensor:
            if on_device(tensor) or not can_lift(tensor):
                return tensor
            if tensor.dim() == 0 and not numbers and not tensor.requires_grad:
                return tensor
            there = self.lifts.lift(tensor, device)
            lifted[id(there)] = tensor
            return there

        return _mapped(values, lift)


def _draws_on_host(kwargs: Kwargs) -> bool:
    generator = kwargs.get("generator")
    return generator is not None and generator.device.type == "cpu"


def _in_house() -> bool:
    """Whether the function was called by PyTorch's own housekeeping rather than by the program."""
    frame = sys._getframe(2)
    for _ in range(12):
        name = frame.f_globals.get("__name__", "")
        if name not in _PASSED_THROUGH:
            return str(name).startswith(_HOUSEKEEPING)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return False


def _each(values: Any, visit: Callable[[Tensor], Any]) -> None:
    if isinstance(values, Tensor):
        visit(values)
    elif isinstance(values, list | tuple):
        for value in values:
            _each(value, visit)


def _mapped(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``values`` with every tensor in it changed; what holds none stays the same object."""
    if isinstance(values, Tensor):
        return change(values)
    if type(values) is dict:
        return {name: _mapped(value, change) for name, value in values.items()}
    if type(values) is list:
        return [_mapped(value, change) for value in values]
    if type(values) is tuple:
        return tuple(_mapped(value, change) for value in values)
    return values


def _brought_home(values: Any) -> Any:
    return _mapped(values, lambda tensor: tensor.cpu() if on_device(tensor) else tensor)
