"""A network interface, as the kernel knows it; and its packets, through DPDK's af_packet device.

The interface stays the kernel's: its address, its MTU and its gateway are what the kernel says. A UDP socket of the
kernel's holds the port against other programs, keeps the kernel from refusing what comes there, and says to a port that
sleeps that something has come. Nothing is read from it.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import random
import socket
import struct
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from genie.errors import BackendUnavailable, ConfigError
from genie_backend_dpdk import _native, environment
from genie_backend_dpdk.device import LEAST_MTU as _LEAST_MTU
from genie_backend_dpdk.polling import Polling

_SIOCGIFADDR, _SIOCGIFNETMASK, _SIOCGIFMTU = 0x8915, 0x891B, 0x8921
_HEADERS = 28 + 64  # bytes of an Ethernet frame's payload: IPv4, UDP and ours
_AROUND = 14 + 128  # Ethernet's header, and what af_packet puts before a frame in its ring
_LEAST_FRAME, _MOST_FRAME = 2048, 8192  # of its ring: a power of two, and it must fit DPDK's buffers
_FRAMES = 1024  # in each ring
_FREE = frozenset(range(49152, 65536))  # UDP ports that no service has
_WINDOW = 8 << 20  # bytes
_MEMORY = 1 << 30  # bytes, for the windows of all connections of a port
_QUEUE_SECONDS = 0.001
_HINT = 'use the backend "tcp", or "dpdk,tcp" to fall back on it'


@dataclass(frozen=True)
class Interface:
    name: str
    address: ipaddress.IPv4Interface
    gateway: ipaddress.IPv4Address | None
    mtu: int
    most_mtu: int = _MOST_FRAME - _AROUND  # more is no use
    known: bool = True  # to the kernel, with this address

    @property
    def segment(self) -> int:
        """Bytes of the stream in one packet."""
        return min(self.mtu, self.most_mtu) - _HEADERS

    def reach(self, address: str) -> int:
        """The peer at ``address``: its IPv4 address, then 16 bits of its UDP port."""
        host, port = split(address)
        peer = _resolved(host, address)
        if peer not in self.address.network and self.gateway is None:
            raise BackendUnavailable(
                f"{peer} is not on the network {self.address.network} of {self.name}, which has no gateway",
                where=address,
                hint=_HINT,
            )
        if peer == self.address.ip:
            raise BackendUnavailable(
                f"{peer} is this host's own address on {self.name}: packets of its own do not come back",
                where=address,
                hint='use "vdev:memif" or TCP for a node on this host',
            )
        return int(peer) << 16 | port


def split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise BackendUnavailable(f"{address!r} is no host:port", where=address, hint=_HINT)
    return host, int(port)


def _resolved(host: str, address: str) -> ipaddress.IPv4Address:
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise BackendUnavailable(f"{host} has no IPv4 address: {error}", where=address, hint=_HINT) from error
    return ipaddress.IPv4Address(found[0][4][0])


def read(name: str) -> Interface:
    """Raises :class:`BackendUnavailable` for one that is not there or has no IPv4 address."""
    wanted = struct.pack("256s", name.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            said = {what: fcntl.ioctl(asking, what, wanted) for what in (_SIOCGIFADDR, _SIOCGIFNETMASK, _SIOCGIFMTU)}
        except OSError as error:
            raise BackendUnavailable(
                f"the network interface {name!r} can't be used: {error.strerror}",
                where="setting 'dpdk_device'",
                hint="`ip -4 address` lists the interfaces, and which of them have an IPv4 address",
            ) from error
    address, mask = (ipaddress.IPv4Address(said[what][20:24]) for what in (_SIOCGIFADDR, _SIOCGIFNETMASK))
    (mtu,) = struct.unpack_from("i", said[_SIOCGIFMTU], 16)
    if mtu < _LEAST_MTU:
        raise BackendUnavailable(f"the MTU of {name} is {mtu}, and {_LEAST_MTU} is the least", where=name, hint=_HINT)
    return Interface(name, ipaddress.IPv4Interface(f"{address}/{mask}"), _gateway(name), mtu)


def _gateway(name: str) -> ipaddress.IPv4Address | None:
    for line in Path("/proc/self/net/route").read_text().splitlines()[1:]:
        interface, destination, gateway, *_ = line.split()
        if interface == name and int(destination, 16) == 0 and int(gateway, 16):
            return ipaddress.IPv4Address(struct.pack("=I", int(gateway, 16)))
    return None


Make = Callable[[Interface, Polling, float], _native.Port]


class Wire:
    """The device on an interface, for all of this process: af_packet deals out what comes among the devices that a
    process has on one interface. How it polls, and where payloads go, is what the first to ask for it wanted."""

    def __init__(self, interface: Interface, polling: Polling, deadline: float, make: Make) -> None:
        self.interface = interface
        self.port = make(interface, polling, deadline)
        self._lock = threading.Lock()
        self._own = 0  # the UDP port it connects from
        self._held: set[int] = set()
        self._listening = False
        environment.watch(self.port)

    @classmethod
    def on(cls, interface: Interface, polling: Polling, deadline: float, make: Make) -> Wire:
        """``make`` makes the device."""
        with _lock:
            wire = _wires.get(interface.name)
            if wire is None:
                wire = _wires[interface.name] = cls(interface, polling, deadline, make)
            if wire.interface != interface:
                raise BackendUnavailable(
                    f"the address, gateway or MTU of {interface.name} has changed since this process began to use it",
                    where="setting 'dpdk_device'",
                    hint="start the process anew",
                )
            return wire

    def path_to(self, peer: int) -> int:
        """To who is at ``peer``, as :meth:`Interface.reach` says it."""
        with self._lock:
            if not self._own:
                self._own = self._hold(0)
            return peer << 16 | self._own

    def listen(self, port: int, ready: _native.Event) -> int:
        """At a UDP port, 0 for a free one; which it is. ``ready`` is set by connections that come in."""
        with self._lock:
            if self._listening:
                where = f"{self.interface.address.ip}:{port}"
                raise ConfigError(f"this process listens on {self.interface.name} already", where=where)
            taken = self._hold(port)
            self.port.listen(ready)
            self._listening = True
            return taken

    def stop_listening(self, port: int) -> None:
        """Connections that came in go on, and the port stays theirs."""
        with self._lock:
            self.port.listen(None)
            self._listening = False
            if not self.port.connections:
                self._held.discard(port)
                self.port.release(port)

    def _hold(self, port: int) -> int:
        if port in self._held:
            return port
        if not self.interface.known:
            return self._keep(port or random.choice(sorted(_FREE - self._held)), -1)
        address = str(self.interface.address.ip)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
            try:
                held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel's least
                held.bind((address, port))
            except OSError as error:
                raise ConfigError(
                    f"cannot have the UDP port {port} at {address}: {error.strerror}", where=f"{address}:{port}"
                ) from error
            taken: int = held.getsockname()[1]
            return self._keep(taken, held.detach())

    def _keep(self, port: int, call: int) -> int:
        try:
            self.port.hold(port, call)
        except RuntimeError as error:
            if call >= 0:
                os.close(call)
            raise BackendUnavailable(f"{self.interface.name}: {error}", where="setting 'dpdk_device'") from error
        self._held.add(port)
        return port


_lock = threading.Lock()
_wires: weakref.WeakValueDictionary[str, Wire] = weakref.WeakValueDictionary()


def af_packet(interface: Interface, polling: Polling, deadline: float) -> _native.Port:
    """A device on an interface of the kernel's."""
    frame = min(max(_LEAST_FRAME, 1 << (interface.mtu + _AROUND - 1).bit_length()), _MOST_FRAME)
    try:
        return port(
            interface,
            polling,
            deadline,
            device=environment.device_name("net_af_packet"),
            arguments=f"iface={interface.name},framesz={frame},blocksz={max(frame, 4096)},framecnt={_FRAMES}",
        )
    except RuntimeError as error:
        raise BackendUnavailable(
            f"DPDK gives no af_packet device on {interface.name}: {error}",
            where="setting 'dpdk_device'",
            hint="it needs CAP_NET_RAW: run as root, or grant the capability; " + _HINT,
        ) from error


def port(
    interface: Interface,
    polling: Polling,
    deadline: float,
    *,
    device: str,
    arguments: str,
    nic: _native.Nic | None = None,
) -> _native.Port:
    """Of a device of DPDK's on a network."""
    own = interface.address
    return _native.Port(
        device=device,
        arguments=arguments,
        control=-1,
        own=(int(own.ip), own.network.prefixlen, int(interface.gateway or 0)),
        mss=interface.segment,
        window=_WINDOW,
        memory=_MEMORY,
        spin_us=polling.spin_us,
        busy=polling.busy,
        deadline=deadline,
        queue_allowance=_QUEUE_SECONDS,
        gpu=polling.memory.native if polling.memory else None,
        split_here=bool(polling.memory and polling.memory.splits),
        nic=nic,
    )
