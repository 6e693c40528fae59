"""How a port's thread waits, and where payloads go."""

from __future__ import annotations

from dataclasses import dataclass

from genie_backend_dpdk.gpumem import DeviceMemory


@dataclass(frozen=True)
class Polling:
    """``spin_us`` (µs) after the last packet it sleeps, unless it is ``busy``. ``memory``: of a device, besides the
    host's."""

    spin_us: float
    busy: bool
    memory: DeviceMemory | None = None
