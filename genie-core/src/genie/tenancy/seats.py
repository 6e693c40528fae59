"""What a backend is told of tenants, and tells of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import attrs

from genie.device import Device
from genie.interfaces import Session


@attrs.frozen(kw_only=True)
class Seat:
    """Whose session it is to a backend: what its tenant may have, and how errors name the session. ``level`` is its
    class of priority, which has a part of a device of ``level_weight``; in it the tenant has one of ``weight``."""

    tenant: str
    label: str
    memory_bytes: int = 0  # 0: no limit
    weight: float = 1.0
    level: str = ""
    level_weight: float = 1.0


class Usage(NamedTuple):
    """What a tenant's sessions have of the devices now, the seconds they had ever, and what lies in the swap."""

    memory_bytes: int = 0
    seconds: float = 0.0
    swap_bytes: int = 0


@runtime_checkable
class Tenanting(Protocol):
    """A local backend may keep tenants within their memory, and let sessions take turns on a device by weight."""

    def connect_as(self, device: Device, seat: Seat) -> Session: ...

    def adjust(self, tenant: str, *, memory_bytes: int, weight: float) -> None:
        """For the tenant's sessions that there are, and those to come."""

    def usage(self) -> Mapping[str, Usage]: ...
