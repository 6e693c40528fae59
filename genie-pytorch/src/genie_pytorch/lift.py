"""Host tensors and their counterparts on the device."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from genie.graph import Semantics
from genie_pytorch import modules, scopes
from genie_pytorch.device import NAME
from genie_pytorch.native import _C

Tensor = torch.Tensor
DEVICE = torch.device(NAME)
_PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def on_device(tensor: Tensor) -> bool:
    return tensor.device.type == NAME


def can_lift(tensor: Tensor) -> bool:
    """Whether a host tensor is of a kind that a device can hold; others stay where they are."""
    return (
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not tensor.is_quantized
        and (type(tensor) in _PLAIN or not hasattr(tensor, "__tensor_flatten__") and _is_plain(type(tensor)))
    )


def _is_plain(kind: type[Tensor]) -> bool:
    return kind.__torch_dispatch__ is Tensor.__torch_dispatch__


def host_autocast() -> contextlib.AbstractContextManager[Any]:
    """A program of the host asked for ``torch.autocast("cpu")``: what it computes on the device follows."""
    if torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled(NAME):
        return torch.autocast(NAME, torch.get_autocast_dtype("cpu"), cache_enabled=torch.is_autocast_cache_enabled())
    return contextlib.nullcontext()


class _Entry:
    """A host tensor's counterpart: the same elements, as long as the host tensor's version does not move."""

    __slots__ = ("dirty", "host", "seen", "state", "storage", "trusted", "value", "wired")

    def __init__(self, host: weakref.ref[Tensor], storage: int) -> None:
        self.host = host
        self.storage = storage  # of the host tensor
        self.trusted = False  # the host tensor's state tells of every write to it
        self.state = b""  # of the host tensor when the two were equal: version, address, a few of its bytes
        self.value: Tensor  # detached
        self.seen = 0  # version of `value` when the two were equal
        self.dirty = False  # the device wrote to `value` since
        self.wired: weakref.ref[Tensor] | None = None  # `value` with its way back to the host tensor's gradient


class Wire(torch.autograd.Function):
    """A counterpart that is there already, with the gradient's way home."""

    @staticmethod
    def forward(ctx: Any, host: Tensor, value: Tensor) -> Tensor:
        ctx.device = host.device
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0].to(ctx.device), None


class Lifts:
    """Counterparts of host tensors, each kept as long as its host tensor and no longer.

    A host tensor is uploaded once per version. What the device writes into a counterpart (running statistics)
    reaches the host tensor with :meth:`settle`, before anybody there looks at it.
    """

    def __init__(self) -> None:
        _all.add(self)
        self._entries: dict[tuple[int, int], _Entry] = {}
        self._by_storage: dict[int, set[tuple[int, int]]] = {}  # host storages
        self._counterparts: dict[int, tuple[int, int]] = {}  # device storages
        self._escaped: set[int] = set()  # host storages somebody may write to unseen
        self.dirty: set[tuple[int, int]] = set()

    def lift(self, host: Tensor, device: torch.device = DEVICE) -> Tensor:
        """The counterpart of ``host`` (see :func:`can_lift`), connected to its gradient if gradients are on."""
        wants_grad = host.requires_grad and torch.is_grad_enabled()
        if not wants_grad:
            base = host._base
            if base is not None and _is_whole(host, base):
                # A view made anew at each use (a transposed weight) need not be uploaded at each use.
                return self._detached(base, device).as_strided(
                    host.size(), host.stride(), host.storage_offset() - base.storage_offset()
                )
            return self._detached(host, device)
        entry = self._current(host, device)
        if entry is None:
            with torch.inference_mode(False):
                wired = host.to(device)
            self._enter(host, device, wired.detach()).wired = weakref.ref(wired)
            return wired
        known = entry.wired() if entry.wired is not None else None
        if known is None:
            known = Wire.apply(host, entry.value)  # type: ignore[no-untyped-call]
            entry.wired = weakref.ref(known)
        return known

    def counterparts(self, host: Tensor) -> list[Tensor]:
        """What there is of ``host`` on devices, current or not."""
        keys = self._by_storage.get(_storage(host), ())
        return [self._entries[key].value for key in keys if self._entries[key].host() is host]

    def _detached(self, host: Tensor, device: torch.device) -> Tensor:
        entry = self._current(host, device)
        if entry is None:
            with torch.inference_mode(False), torch.no_grad():
                entry = self._enter(host, device, host.detach().to(device) if not _is_weight(host) else host.to(device))
        return entry.value

    def _current(self, host: Tensor, device: torch.device) -> _Entry | None:
        entry = self._entries.get((id(host), device.index or 0))
        if entry is None or entry.host() is not host:
            return None
        if entry.dirty:
            return entry  # the counterpart is ahead
        if entry.trusted and entry.state == _C.host_state(host):
            return entry
        self._drop((id(host), device.index or 0), entry)
        return None

    def _enter(self, host: Tensor, device: torch.device, value: Tensor) -> _Entry:
        key = (id(host), device.index or 0)
        storage = _storage(host)
        # When the interpreter ends, what the drop needs may be gone before the tensor.
        ending = sys.is_finalizing
        entry = _Entry(weakref.ref(host, lambda _: None if ending() else self._drop(key, entry)), storage)
        entry.value = value.detach()
        entry.trusted = storage not in self._escaped and _tells_writes(host)
        _agree(entry, host)
        self._entries[key] = entry
        self._by_storage.setdefault(storage, set()).add(key)
        self._counterparts[_storage(entry.value)] = key
        scopes.lifted(host, entry.value)
        return entry

    def _drop(self, key: tuple[int, int], entry: _Entry) -> None:
        if self._entries.get(key) is not entry:
            return
        del self._entries[key]
        self.dirty.discard(key)
        keys = self._by_storage.get(entry.storage)
        if keys is not None:
            keys.discard(key)
            if not keys:
                del self._by_storage[entry.storage]
        self._counterparts.pop(_storage(entry.value), None)

    # --- what the device wrote, and what the host writes

    def wrote(self, value: Tensor) -> None:
        """A device tensor was written to: if it is (in the memory of) a counterpart, the host is behind."""
        key = self._counterparts.get(_storage(value)) if self._counterparts else None
        if key is not None:
            self._entries[key].dirty = True
            self.dirty.add(key)

    def look_for_writes(self, hosts: Iterable[Tensor], device: torch.device) -> None:
        """Notice operators that wrote to counterparts of ``hosts`` although nothing announced it."""
        for host in hosts:
            entry = self._entries.get((id(host), device.index or 0))
            if entry is not None and not entry.dirty and _version(entry.value) != entry.seen:
                self.wrote(entry.value)

    def settle(self, host: Tensor | None = None) -> None:
        """Bring home what the device wrote into the memory of ``host``; of all there are without one."""
        if host is None:
            keys = list(self.dirty)
        else:
            keys = [key for key in self._by_storage.get(_storage(host), ()) if key in self.dirty]
        for key in keys:
            mine = self._entries[key].host()
            if mine is not None:
                self.bring_home(mine, self._entries[key].value)
            self.dirty.discard(key)

    def bring_home(self, host: Tensor, value: Tensor) -> None:
        """What was written to ``value``, the lifted ``host``, is written to ``host``."""
        with torch.no_grad():
            host.copy_(value)
        key = (id(host), value.device.index or 0)
        entry = self._entries.get(key)
        if entry is not None:
            entry.dirty = False
            self.dirty.discard(key)
            _agree(entry, host)

    def forget(self, host: Tensor) -> None:
        """The host is about to write to this memory, whatever its version will say."""
        for key in tuple(self._by_storage.get(_storage(host), ())):
            self._drop(key, self._entries[key])

    def escape(self, host: Tensor) -> None:
        """Somebody gets the address of this memory: from now on nothing tells when it is written to."""
        self.forget(host)
        self._escaped.add(_storage(host))


_all: weakref.WeakSet[Lifts] = weakref.WeakSet()


def _counterparts(host: Tensor) -> Iterator[Tensor]:
    for lifts in list(_all):
        yield from lifts.counterparts(host)


modules.look_elsewhere(_counterparts)


def mark(host: Tensor, said: Semantics) -> None:
    """What the user says of a host tensor holds for its counterparts, those there are and those to come."""
    scopes.mark_host_tensor(host, said)
    for each in _counterparts(host):
        scopes.mark_device_tensor(each, said)


def _tells_writes(host: Tensor) -> bool:
    """Whether its version tells of every write: not if the memory is somebody else's (an array's)."""
    return not host.is_inference() and (_is_weight(host) or host.untyped_storage().resizable())


def _agree(entry: _Entry, host: Tensor) -> None:
    entry.state = _C.host_state(host)
    entry.seen = _version(entry.value)


def _is_weight(tensor: Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter)


def _is_whole(view: Tensor, base: Tensor) -> bool:
    return (
        base.is_contiguous()
        and base.dtype == view.dtype
        and not (view.is_conj() or view.is_neg())
        and can_lift(base)
        and (_is_weight(base) or base.numel() == view.numel())
    )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
