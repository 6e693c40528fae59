"""What a mode does not see, and a captured program would notice: custom autograd functions, and the generator's state.

The replacements are in place while any thread captures, and do nothing in threads that do not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

Tensor = torch.Tensor

_lock = threading.Lock()
_captures = 0
_apply = torch.autograd.Function.__dict__["apply"]
_get_state = torch.random.get_rng_state
_set_state = torch.random.set_rng_state

# Per state of the host's generator that a captured program took, the state of the device's at that moment.
_device_states = WeakTensorKeyDictionary()


def begin(apply: Callable[..., Any], device: Callable[[], torch.device | None]) -> None:
    """A capture began. ``apply(function, class, args, kwargs)`` calls a custom function in this thread's way;
    ``device()`` is where this thread's random numbers are drawn, or None where it does not capture."""
    global _captures

    def function_apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        return apply(_apply.__func__, cls, args, kwargs)

    def get_rng_state() -> Tensor:
        state = _get_state()
        where = device()
        if where is not None:
            _device_states[state] = torch.remote_accelerator.get_rng_state(where)  # type: ignore[attr-defined]
        return state

    def set_rng_state(new_state: Tensor) -> None:
        _set_state(new_state)
        where = device()
        if where is not None and new_state in _device_states:
            torch.remote_accelerator.set_rng_state(_device_states[new_state], where)  # type: ignore[attr-defined]

    with _lock:
        _captures += 1
        if _captures == 1:
            torch.autograd.Function.apply = classmethod(function_apply)  # type: ignore[assignment,method-assign]
            _put(get_rng_state, set_rng_state)


def end() -> None:
    global _captures
    with _lock:
        _captures -= 1
        if _captures == 0:
            torch.autograd.Function.apply = _apply  # type: ignore[method-assign]
            _put(_get_state, _set_state)


def _put(get_state: Callable[[], Tensor], set_state: Callable[[Tensor], None]) -> None:
    for module in (torch, torch.random):
        module.get_rng_state = get_state  # type: ignore[attr-defined]
        module.set_rng_state = set_state  # type: ignore[attr-defined]
