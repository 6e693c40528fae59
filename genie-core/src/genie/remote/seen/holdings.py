"""Who holds a node's memory: of devices, sessions and the host, for ``genie node memory`` and for metrics."""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec

from genie.remote.node.meters import Look
from genie.remote.node.server import NodeServer
from genie.remote.node.session.info import SessionInfo
from genie.security import Identity, Scope
from genie.tenancy.accounts import tenant_of

KINDS: Final = ("weight", "state", "input", "intermediate")
MOVES: Final = ("evicted", "restored", "swapped_out", "swapped_in")


class Moved(msgspec.Struct, frozen=True):
    """Storages that left a device or came back, since the node started."""

    count: int = 0
    bytes: int = 0
    seconds: float = 0.0


class DeviceMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes. ``live`` counts a weight once, however many sessions have it; ``contents`` are those. ``others`` is what
    the sessions hold that are not listed. ``allocated`` and ``reserved`` are what the device's own allocator says, 0
    where it has none. The swap is one for all devices."""

    id: str
    limit: int = 0
    live: int = 0
    peak: int = 0
    contents: int = 0
    allocated: int = 0
    allocated_peak: int = 0
    reserved: int = 0
    reserved_peak: int = 0
    swap_used: int = 0
    swap_limit: int = 0
    others: int = 0
    moves: dict[str, Moved] = {}  # by one of MOVES


class SessionMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes on the device by kind (one of KINDS), and ``off_device``: of values that left it and come back when they
    are used. A weight that sessions share counts in each."""

    id: str
    client: str
    tenant: str
    device: str
    kinds: dict[str, int] = {}
    live: int = 0
    peak: int = 0
    off_device: int = 0
    gone: bool = False  # its connection broke, and its client may come back


class NodeMemory(msgspec.Struct, frozen=True, kw_only=True):
    """``content`` is host memory of contents by digest, ``buffers`` host memory kept free for what arrives. Whom
    ``swapped`` does not name has none there, or is somebody else's business, or the node keeps no accounts."""

    devices: tuple[DeviceMemory, ...] = ()
    sessions: tuple[SessionMemory, ...] = ()  # those that hold most first
    content: int = 0
    buffers: int = 0
    swapped: dict[str, int] = {}  # bytes in the swap, by tenant


def holdings(node: NodeServer, who: Identity | None = None, look: Look | None = None) -> NodeMemory:
    """As ``who`` may see it: without scope ``admin`` only the sessions of its own tenant are listed. Sessions at work
    are waited for shortly; what they hold is what they said last. ``None`` sees all."""
    look = node.meters.look() if look is None else look
    mine = None if who is None or who.may(Scope.ADMIN) else tenant_of(who)
    seen: list[SessionMemory] = []
    hidden: Counter[str] = Counter()
    live: Counter[str] = Counter()
    for info in node.sessions():
        if info.id in look.open:
            each = _session(info, look)
            live[each.device] += each.live
            if mine in (None, each.tenant):
                seen.append(each)
            else:
                hidden[each.device] += each.live
    devices = []
    for device, told in zip(node.devices, node.memory(), strict=True):
        fields = {name: told[name] for name in _TOLD if name in told}
        moves = {
            name: Moved(told[name], told[f"{name}_bytes"], told[f"{name}_ns"] / 1e9) for name in MOVES if name in told
        }
        fields = {"limit": device.memory_bytes, "live": live[device.id], **fields}
        devices.append(DeviceMemory(id=device.id, others=hidden[device.id], moves=moves, **fields))
    return NodeMemory(
        devices=tuple(devices),
        sessions=tuple(sorted(seen, key=lambda each: (-each.live - each.off_device, each.id))),
        content=node.content().stats()["content_bytes"],
        swapped={
            tenant: used.swap_bytes
            for tenant, used in sorted(node.reception.usage().items())
            if used.swap_bytes and (who is None or who.may(Scope.ADMIN) or tenant == who.tenant)
        },
        buffers=max((meter.said.get("kept_bytes", 0) for meter in look.open.values()), default=0),
    )


_TOLD: Final = (
    "limit",
    "live",
    "peak",
    "contents",
    "allocated",
    "allocated_peak",
    "reserved",
    "reserved_peak",
    "swap_used",
    "swap_limit",
)


def _session(info: SessionInfo, look: Look) -> SessionMemory:
    said = look.open[info.id].said
    return SessionMemory(
        id=info.id,
        client=info.client,
        tenant=info.tenant,
        device=info.device,
        kinds={kind: said[f"{kind}_bytes"] for kind in KINDS if f"{kind}_bytes" in said},
        live=said.get("memory_bytes", 0),
        peak=said.get("peak_memory_bytes", 0),
        off_device=said.get("away_bytes", 0),
        gone=info.away,
    )
