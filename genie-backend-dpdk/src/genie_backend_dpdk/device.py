"""The setting ``dpdk_device``: what carries the packets."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from genie.errors import ConfigError

MEMIF = "vdev:memif"
AF_PACKET = "vdev:af_packet"
PCI = "pci"
LEAST_MTU, MOST_MTU = 576, 65535
_USUAL_MTU = 1500
_INTERFACE = re.compile(r"[^\s,/:]{1,15}")  # what Linux takes for a name
_FUNCTION = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
_KEYS = {MEMIF: {"polling"}, AF_PACKET: {"polling", "iface"}, PCI: {"polling", "ip", "gateway", "mtu"}}


@dataclass(frozen=True)
class Stated:
    """The addresses of a NIC that has none of the kernel's, and its MTU."""

    address: ipaddress.IPv4Interface
    gateway: ipaddress.IPv4Address | None = None
    mtu: int = _USUAL_MTU


@dataclass(frozen=True)
class Nic:
    """A device that DPDK drives itself: ``name`` on the bus ``bus``, where ``arguments`` are its driver's. Without
    ``stated`` its addresses are those of its interface in the kernel: ``interface``, where no PCI bus says it."""

    name: str
    stated: Stated | None = None
    bus: str = PCI
    arguments: str = ""
    interface: str = ""


@dataclass(frozen=True)
class Device:
    """``interface`` is the network interface that af_packet borrows; ``nic`` is driven; memif has neither. A ``busy``
    device's thread never sleeps."""

    interface: str = ""
    busy: bool = False
    nic: Nic | None = None

    @property
    def on_network(self) -> bool:
        return bool(self.interface or self.nic)


def parse(text: str) -> Device:
    """Raises :class:`ConfigError` for what is no device. Nothing is looked up."""
    name, *words = text.split(",")
    kind, _, function = name.partition(":") if name.startswith(PCI) else (name, "", "")
    if kind not in _KEYS:
        raise _no_device(f"{text!r} is no DPDK device")
    given = dict(word.partition("=")[::2] for word in words)
    known = _KEYS[kind]
    if len(given) < len(words) or not given.keys() <= known:
        raise _no_device(f"{kind} takes {' and '.join(sorted(known))}, each once, and {text!r} says otherwise")
    polling = given.get("polling", "busy" if kind == PCI else "adaptive")
    if polling not in ("adaptive", "busy"):
        raise _no_device(f"polling is adaptive or busy, and in {text!r} it is {polling!r}")
    interface = given.get("iface", "")
    if kind == AF_PACKET and not _INTERFACE.fullmatch(interface):
        raise _no_device(f"{AF_PACKET} takes the name of a network interface, and {text!r} gives none")
    if kind != PCI:
        return Device(interface, polling == "busy")
    if not _FUNCTION.fullmatch(function):
        raise _no_device(f"{text!r} is no address of a PCI device, which is pci:DOMAIN:BUS:DEVICE.FUNCTION")
    if polling != "busy":
        raise _no_device("a NIC does not wake a port that sleeps: with pci:… polling is busy")
    return Device(busy=True, nic=Nic(function, _stated(given, text)))


def _stated(given: dict[str, str], text: str) -> Stated | None:
    if "ip" not in given:
        if given.keys() & {"gateway", "mtu"}:
            raise _no_device(f"{text!r} has no ip, and a gateway and an MTU go with one")
        return None
    try:
        if "/" not in given["ip"]:
            raise ValueError(f"{given['ip']!r} has no prefix, as in 10.0.0.1/24")
        address = ipaddress.IPv4Interface(given["ip"])
        gateway = ipaddress.IPv4Address(given["gateway"]) if "gateway" in given else None
    except ValueError as error:
        raise _no_device(f"{text!r}: {error}") from error
    if not _is_host(address.ip, address.network):
        raise _no_device(f"{address} is no address of a host")
    if gateway is not None and (gateway not in address.network or gateway == address.ip):
        raise _no_device(f"the gateway {gateway} is no other host of the network {address.network}")
    mtu = given.get("mtu", str(_USUAL_MTU))
    if not re.fullmatch("[0-9]{3,5}", mtu) or not LEAST_MTU <= int(mtu) <= MOST_MTU:
        raise _no_device(f"an MTU is {LEAST_MTU} to {MOST_MTU}, and in {text!r} it is {mtu!r}")
    return Stated(address, gateway, int(mtu))


def _is_host(address: ipaddress.IPv4Address, network: ipaddress.IPv4Network) -> bool:
    if address.is_multicast or address.is_unspecified or address.is_loopback or address.is_reserved:
        return False
    return network.prefixlen > 30 or address not in (network.network_address, network.broadcast_address)


def _no_device(what: str) -> ConfigError:
    return ConfigError(
        what,
        where="setting 'dpdk_device'",
        hint=f"give {MEMIF}, {AF_PACKET},iface=NAME or pci:ADDRESS, see docs/dpdk.md",
    )
