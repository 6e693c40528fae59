"""How a node that listens with this transport says so, and which of that leads there from here."""

from __future__ import annotations

from genie.ways import Way
from genie_backend_dpdk import _native
from genie_backend_dpdk.device import Device

LOOPBACK = "127.0.0.1"  # any address of this host stands for a socket of memif's
_MEMIF, _AF_PACKET = "memif", "af_packet"


def offered(address: str, *, interface: bool) -> tuple[Way, ...]:
    """Of a listener at ``host:port``. Who listens at a path of their own tells it themselves."""
    port = address.rpartition(":")[2]
    if not port.isdecimal():
        return ()
    device = _AF_PACKET if interface else _MEMIF
    return (Way(transport="dpdk", port=int(port), device=device, versions=_native.versions()),)


def unfit(way: Way, device: Device, host: str, *, here: bool) -> str:
    """Why ``device`` does not lead along ``way`` to a node at ``host``; "" if it may."""
    (oldest, newest), (its_oldest, its_newest) = _native.versions(), way.versions
    if its_newest < oldest or its_oldest > newest:
        return (
            f"the node speaks versions {its_oldest} to {its_newest} of the packet protocol, "
            f"this side {oldest} to {newest}"
        )
    if not way.port:
        return "the node does not say at which port"
    if way.device == _MEMIF:
        if device.on_network:
            what = f"the NIC {device.nic.name}" if device.nic else f"the interface {device.interface}"
            return f"the node listens with memif devices, and this side has {what}"
        return "" if here else "memif devices join processes of one host, and the node is on another"
    if way.device != _AF_PACKET:
        return f"the node listens with a device that this version does not know: {way.device!r}"
    if not device.on_network:
        return (
            "the node is reached through a network interface: set `dpdk_device` to the one that leads there, "
            "vdev:af_packet,iface=NAME"
        )
    return ""
