"""A NIC that DPDK drives: which addresses it has, and its port.

One that the kernel keeps (mlx5) has the kernel's, and the kernel goes on to answer ARP there and to have all packets
but ours. One with stated addresses has its own ARP.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from pathlib import Path

from genie.errors import BackendUnavailable
from genie_backend_dpdk import _native, environment, interface, pci
from genie_backend_dpdk.device import PCI, Nic
from genie_backend_dpdk.interface import Interface, Wire
from genie_backend_dpdk.polling import Polling

_MOST_MTU = 8192 + 92  # its packets fill the buffers of DPDK that this process has
_LINK_SECONDS = 10.0
_NEIGHBOUR_SECONDS = 2.0
_DISCARD = 9  # a UDP port: nothing is said there
_PROC = Path("/proc/self/net")
_COMPLETE = 0x2  # of the kernel's neighbours: it knows the address


def known(nic: Nic) -> Interface:
    """Its addresses. Raises :class:`BackendUnavailable` where DPDK could not drive it; DPDK is not asked."""
    interfaces = pci.ready(nic.name).interfaces if nic.bus == PCI else (nic.interface,)
    if (stated := nic.stated) is not None:
        mtu = min(stated.mtu, _MOST_MTU)
        return Interface(nic.name, stated.address, stated.gateway, mtu, most_mtu=_MOST_MTU, known=False)
    if len(interfaces) != 1:
        has = f"the interfaces {', '.join(interfaces)}" if interfaces else "no interface"
        raise BackendUnavailable(
            f"{nic.name} has {has} of the kernel's, so its address is not known",
            where="setting 'dpdk_device'",
            hint=f"state it: pci:{nic.name},ip=10.0.0.1/24",
        )
    found = interface.read(interfaces[0])
    return Interface(found.name, found.address, found.gateway, min(found.mtu, _MOST_MTU), most_mtu=_MOST_MTU)


def start(nic: Nic) -> None:
    """DPDK, as this device needs it."""
    if nic.bus == PCI:
        if not environment.started():  # then it has them
            pci.check_huge_pages()
        environment.start(environment.NICS)
    else:
        environment.start()


def make(nic: Nic, found: Interface, polling: Polling, deadline: float) -> _native.Port:
    shared = nic.bus == PCI and pci.ready(nic.name).shared
    native = _native.Nic(bus=nic.bus, mtu=found.mtu, shared=shared, asks=not found.known, link_wait=_LINK_SECONDS)
    try:
        return interface.port(found, polling, deadline, device=nic.name, arguments=nic.arguments, nic=native)
    except RuntimeError as error:
        raise BackendUnavailable(
            f"DPDK does not drive the NIC {error}",
            where="setting 'dpdk_device'",
            hint='see docs/dpdk.md, "On a real NIC"; or use the backend "tcp", or "dpdk,tcp" to fall back on it',
        ) from error


def introduce(wire: Wire, peer: ipaddress.IPv4Address, timeout: float) -> None:
    """Who has ``peer``'s address, from the kernel, where it is the one to ask. Within ``timeout`` seconds, or 2."""
    found = wire.interface
    if not found.known:
        return
    hop = peer if peer in found.address.network or found.gateway is None else found.gateway
    until = time.monotonic() + min(timeout, _NEIGHBOUR_SECONDS)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.bind((str(found.address.ip), 0))
        while not (mac := _neighbour(hop, found.name)):
            if time.monotonic() >= until:
                raise BackendUnavailable(
                    f"nobody on the network of {found.name} has the address {hop}",
                    where=str(peer),
                    hint=f"`ping {hop}` from here; start the node, or correct its address",
                )
            try:
                asking.sendto(b"", (str(hop), _DISCARD))
            except OSError as error:
                raise BackendUnavailable(f"{hop} can't be reached: {error.strerror}", where=str(peer)) from error
            time.sleep(0.01)  # the kernel tells nobody when an answer has come
    wire.port.learn(int(hop), list(mac))


def _neighbour(hop: ipaddress.IPv4Address, name: str) -> bytes:
    for line in (_PROC / "arp").read_text().splitlines()[1:]:
        address, _, flags, mac, _, interface_name = line.split()
        if address == str(hop) and interface_name == name and int(flags, 16) & _COMPLETE:
            return bytes.fromhex(mac.replace(":", ""))
    return b""
