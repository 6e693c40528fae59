"""A device's memory as the place that buffers of messages come from and go to, through DPDK's GPUDev."""

from __future__ import annotations

from collections.abc import Callable

from genie.errors import BackendUnavailable, ConfigError
from genie_backend_dpdk import _native, environment
from genie_backend_dpdk._native import Buffer as DeviceBuffer

__all__ = ["DeviceBuffer", "DeviceMemory", "cuda", "soft"]


class DeviceMemory:
    """A device of GPUDev. What ``allocate`` gives may stand for a buffer in ``DpdkConnection.send`` and in what the
    ``allocate`` of ``receive`` returns, over transports made with this memory.

    ``readable``: the host reads it where it lies. ``splits``: every port splits packets, by the CPU if its NIC can't.
    """

    def __init__(self, native: _native.GpuDevice, *, splits: bool = False) -> None:
        self.native = native
        self.splits = splits

    @property
    def name(self) -> str:
        return self.native.name

    @property
    def bytes(self) -> int:
        return self.native.bytes

    @property
    def readable(self) -> bool:
        return self.native.readable

    def allocate(self, size: int) -> DeviceBuffer:
        """At least one byte. Whole pages of 64 KiB are taken, and given back when nobody has the buffer or a part of it
        any more."""
        try:
            return self.native.allocate(size)
        except RuntimeError as error:
            hint = "let go of buffers, or use the host's memory"
            raise BackendUnavailable(f"{size} bytes: {error}", where=self.name, hint=hint) from error


def soft(size: int = 256 << 20, *, guarded: bool = False, splits: bool = False) -> DeviceMemory:
    """Memory of this host in a GPU's place, ``size`` bytes in all: for tests of what a GPU's goes through.

    ``guarded``: who reads or writes it other than through the device is killed, as with a GPU's memory.
    ``splits``: payloads come into it as from a NIC with buffer split.
    """
    if size < 1:
        raise ConfigError(f"a device has {size} bytes of memory", hint="give a positive size")
    return _open(lambda: _native.soft_device(size, guarded), splits)


def cuda(ordinal: int = 0) -> DeviceMemory:
    """An NVIDIA GPU's. Its driver is loaded by this call. Raises :class:`BackendUnavailable` where there is none."""
    why = why_no_cuda(ordinal)
    if why:
        raise BackendUnavailable(why, where=f"cuda:{ordinal}", hint="install the driver, or use the host's memory")
    return _open(lambda: _native.cuda_device(ordinal), splits=False)


def why_no_cuda(ordinal: int = 0) -> str:
    """One reason why packets can't go to and from an NVIDIA GPU here; "" if they can. DPDK is not asked."""
    try:
        _native.find_cuda(ordinal)
    except RuntimeError as error:
        return str(error)
    return ""


def _open(make: Callable[[], _native.GpuDevice], splits: bool) -> DeviceMemory:
    environment.start()
    try:
        return DeviceMemory(make(), splits=splits)
    except RuntimeError as error:
        raise BackendUnavailable(f"no memory of a device: {error}", hint="use the host's memory") from error
