"""Tenants of a node on this machine's devices: an account of their memory, and their places at the turnstiles."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import attrs

from genie.device import Device
from genie.tenancy.seats import Seat, Usage
from genie_backend_local.native import Native, NativeAccount, NativeFlow, NativeTurnstile


@attrs.define
class _Tenant:
    account: NativeAccount
    flows: dict[tuple[str, str], NativeFlow] = attrs.field(factory=dict)  # by device and level


class Tenants:
    """By name, for as long as the backend lives. Any thread may call."""

    def __init__(self, native: Native) -> None:
        self._native = native
        self._lock = threading.Lock()
        self._tenants: dict[str, _Tenant] = {}
        self._turnstiles: dict[str, NativeTurnstile] = {}
        self._levels: dict[tuple[str, str], NativeFlow] = {}

    def seat(self, device: Device, seat: Seat) -> tuple[NativeAccount, NativeFlow]:
        """The tenant's account, and a flow for one session."""
        with self._lock:
            tenant = self._tenants.get(seat.tenant)
            if tenant is None:
                account = self._native.Account(seat.tenant, seat.memory_bytes)
                tenant = self._tenants[seat.tenant] = _Tenant(account)
            turnstile = self._turnstiles.get(device.id)
            if turnstile is None:
                # What an accelerator is given runs one after the other anyway.
                turnstile = self._native.Turnstile(lanes=0 if device.kind == "cpu" else 1)
                self._turnstiles[device.id] = turnstile
            at = device.id, seat.level
            level = self._levels.get(at)
            if level is None:
                level = self._levels[at] = turnstile.flow(seat.level_weight)
            flow = tenant.flows.get(at)
            if flow is None:
                flow = tenant.flows[at] = turnstile.flow(seat.weight, level)
            return tenant.account, turnstile.flow(1.0, flow)

    def adjust(self, name: str, *, memory_bytes: int, weight: float) -> None:
        with self._lock:
            tenant = self._tenants.get(name)
            if tenant is None:
                return
            tenant.account.set_limit(memory_bytes)
            for flow in tenant.flows.values():
                flow.set_weight(weight)

    def usage(self) -> Mapping[str, Usage]:
        with self._lock:
            return {
                name: Usage(
                    tenant.account.live,
                    sum(flow.seconds for flow in tenant.flows.values()),
                    tenant.account.swapped,
                )
                for name, tenant in self._tenants.items()
            }
