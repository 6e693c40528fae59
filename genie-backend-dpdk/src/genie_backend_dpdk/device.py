"""The setting ``dpdk_device``: what carries the packets."""

from __future__ import annotations

import re
from dataclasses import dataclass

from genie.errors import BackendUnavailable, ConfigError

MEMIF = "vdev:memif"
AF_PACKET = "vdev:af_packet"
_INTERFACE = re.compile(r"[^\s,/:]{1,15}")  # what Linux takes for a name


@dataclass(frozen=True)
class Device:
    """``interface`` is the network interface that af_packet borrows; memif has none."""

    interface: str = ""


def parse(text: str) -> Device:
    """Raises :class:`ConfigError` for what is no device, :class:`BackendUnavailable` for one that this version does not
    drive."""
    kind, _, rest = text.partition(",")
    if text == MEMIF:
        return Device()
    if kind == AF_PACKET:
        name, _, interface = rest.partition("=")
        if name == "iface" and _INTERFACE.fullmatch(interface):
            return Device(interface)
        raise _no_device(f"{AF_PACKET} takes the name of a network interface, and {text!r} gives none")
    if kind == "pci" or kind.startswith("pci:"):
        raise BackendUnavailable(
            f"this version drives no device {text!r}",
            where="setting 'dpdk_device'",
            hint=f'{AF_PACKET},iface=NAME uses a NIC through the kernel; or use the backend "tcp"',
        )
    if kind == MEMIF:
        raise _no_device(f"{MEMIF} takes no arguments, not {rest!r}")
    raise _no_device(f"{text!r} is no DPDK device")


def _no_device(what: str) -> ConfigError:
    return ConfigError(what, where="setting 'dpdk_device'", hint=f"give {MEMIF}, or {AF_PACKET},iface=NAME")
