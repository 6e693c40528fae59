"""A device of a stated size, whose idle values leave when a test says so."""

from __future__ import annotations

import attrs

from genie.device import Device
from genie_backend_local import LocalSession
from genie_backend_local.native import NativeBudget, load

MIB = 1 << 20


@attrs.frozen
class Small:
    """``budget`` is the device's memory; sessions of it share one swap."""

    device: Device
    budget: NativeBudget

    @classmethod
    def of(cls, device: Device, memory: int, swap: int = 0, directory: str = "") -> Small:
        native = load()
        return cls(device, native.Budget(memory, native.Swap(swap, directory) if swap else None))

    def session(self, label: str = "s", tenant: str = "t", limit: int = 0) -> LocalSession:
        session = LocalSession(self.device, load().Session("cpu", "small:0", limit, self.budget))
        session.name(label, tenant)
        return session

    def stats(self, name: str) -> int:
        return self.budget.stats()[name]
