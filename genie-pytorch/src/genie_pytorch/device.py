"""``torch.remote_accelerator``: what PyTorch asks of a device's module."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.backend_registration import generate_methods_for_privateuse1_backend, rename_privateuse1_backend

import genie
from genie import api, telemetry
from genie.errors import ConfigError
from genie_pytorch import modules, scopes
from genie_pytorch.native import _C
from genie_pytorch.port import port

NAME = "remote_accelerator"
_WORD = 0xFFFFFFFFFFFFFFFF

_initialized = True  # checkpointing asks before it keeps the state of generators

_process = os.getpid()
_counted = False


def _is_in_bad_fork() -> bool:
    """A forked child shares its parent's connection, and may not use it."""
    return os.getpid() != _process


def is_available() -> bool:
    return True


def is_initialized() -> bool:
    return port.connected(0)


def init() -> None:
    port.engine(0)


_lazy_init = init


def device_count() -> int:
    """Devices of the configured cluster; connects if that is what it takes to know."""
    global _counted
    if not _counted:
        _C.register_device(api.device_count())
        _counted = True
    return api.device_count()


def current_device() -> int:
    return int(_C.current_device())


def set_device(device: Any) -> None:
    index = _index(device)
    if index >= 0:
        port.engine(index)  # which there must be
        _C.set_device(index)


class device:  # noqa: N801  (PyTorch's name)
    """``with torch.remote_accelerator.device(1): …`` makes index 1 the current one."""

    def __init__(self, device: Any) -> None:
        self.index = _index(device)
        self.before = -1

    def __enter__(self) -> None:
        self.before = current_device()
        set_device(self.index)

    def __exit__(self, *_: object) -> None:
        _C.set_device(self.before)


def _exchange_device(index: int) -> int:
    before = current_device()
    if index >= 0:
        _C.set_device(index)
    return before


_maybe_exchange_device = _exchange_device


def synchronize(device: Any = None) -> None:
    """Wait until everything issued so far is done there."""
    index = current_device() if device is None else _index(device)
    _C.flush(index)
    port.synchronize(index)


def manual_seed(seed: int) -> None:
    index = current_device()
    _C.flush(index)
    port.seed(index, 0, int(seed) & _WORD)


def manual_seed_all(seed: int) -> None:
    port.seed_all(int(seed) & _WORD)


def seed() -> None:
    manual_seed(int.from_bytes(os.urandom(8), "little"))


seed_all = seed


def initial_seed() -> int:
    return port.initial_seed(current_device())


def get_rng_state(device: Any = NAME) -> torch.Tensor:
    index = _index(device)
    _C.flush(index)
    return torch.frombuffer(bytearray(port.generator_state(index, 0)), dtype=torch.uint8)


def set_rng_state(new_state: torch.Tensor, device: Any = NAME) -> None:
    index = _index(device)
    _C.flush(index)
    port.set_generator_state(index, 0, new_state.contiguous().numpy().tobytes())


def get_rng_state_all() -> list[torch.Tensor]:
    return [get_rng_state(index) for index in range(device_count())]


def set_rng_state_all(new_states: list[torch.Tensor]) -> None:
    for index, state in enumerate(new_states):
        set_rng_state(state, index)


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.bfloat16, torch.float16, torch.float32]


def get_device_capability(device: Any = None) -> tuple[int, int]:
    return (0, 0)


def get_device_name(device: Any = None) -> str:
    return str(port.engine(current_device() if device is None else _index(device)).device.id)


def memory_allocated(device: Any = None) -> int:
    """Bytes this program's values take on the device."""
    return _stat("memory_bytes", device)


def max_memory_allocated(device: Any = None) -> int:
    return _stat("peak_memory_bytes", device)


def empty_cache() -> None:
    """Nothing is cached here: nodes keep their own memory."""


@contextlib.contextmanager
def upload_progress(callback: Any) -> Iterator[None]:
    """Inside, ``callback(bytes)`` is called for each tensor that went up."""
    before, port.upload_progress = port.upload_progress, callback
    try:
        yield
    finally:
        port.upload_progress = before


def _stat(name: str, device: Any) -> int:
    index = current_device() if device is None else _index(device)
    _C.flush(index)
    return int(port.engine(index).session.stats().get(name, 0))


def _index(device: Any) -> int:
    if isinstance(device, int):
        return device
    named = torch.device(device)
    if named.type != NAME:
        raise ConfigError(f"{device!r} is no {NAME} device", hint=f'"{NAME}" or "{NAME}:0"')
    return current_device() if named.index is None else named.index


def _print_from_host() -> None:
    """Printing looks at a tensor many times over; it is brought home once instead."""
    contents: Callable[[torch.Tensor, int], str] = torch._tensor_str._tensor_str

    def tensor_str(tensor: torch.Tensor, indent: int) -> str:
        return contents(tensor.cpu() if tensor.device.type == NAME else tensor, indent)

    torch._tensor_str._tensor_str = tensor_str


def register() -> None:
    """Make the device known to PyTorch; once."""
    if torch._C._get_privateuse1_backend_name() == NAME:
        return
    rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, sys.modules[__name__])
    generate_methods_for_privateuse1_backend(
        for_tensor=True, for_module=True, for_packed_sequence=True, for_storage=True
    )
    for package in (torch, genie, sys.modules[__package__]):
        _C.ignore_sources_under(os.path.dirname(str(package.__file__)) + os.sep)
    _C.register_device(1)
    modules.install()
    scopes.install()
    _print_from_host()
    api.on_shutdown(port.forget)
    telemetry.counters.add_source("pytorch", _C.stats)
