"""Who connects and who listens, over DPDK's devices."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import random
import socket
import stat
import threading
import time
from collections.abc import Mapping

from genie.errors import (
    BackendUnavailable,
    ConfigError,
    GenieError,
    VersionMismatch,
)
from genie.ways import Way
from genie.wire import Limits
from genie_backend_dpdk import _native, environment, interface, memif, nic
from genie_backend_dpdk.address import path_of, port_of
from genie_backend_dpdk.connection import DpdkConnection
from genie_backend_dpdk.device import Device
from genie_backend_dpdk.gpumem import DeviceMemory, why_no_cuda
from genie_backend_dpdk.listening import DoorListener, DpdkListener, WireListener
from genie_backend_dpdk.polling import Polling
from genie_backend_dpdk.way import LOOPBACK, unfit

_BACKLOG = 128
_PORTS = range(49152, 65535)
_TRIES = 100
_MEMIF = Device()


class DpdkTransport:
    """``host:port`` of this host, or ``memif:/path``: processes of one host, which need no privileges. On the device
    of a network interface: ``host:port`` of any host that IPv4 leads to from there.

    ``stall_timeout`` (s) bounds every time without progress, and how long a silent peer is believed to live;
    ``spin_us`` (µs) is how long a port polls after the last packet before it sleeps; a ``busy`` one never does. Buffers
    of messages may lie in ``memory``, a device's (:mod:`genie_backend_dpdk.gpumem`).
    """

    name = "dpdk"

    def __init__(
        self,
        device: Device = _MEMIF,
        *,
        stall_timeout: float = 60.0,
        spin_us: float = 50.0,
        busy: bool = False,
        limits: Limits | None = None,
        memory: DeviceMemory | None = None,
    ) -> None:
        self._device = device
        self._stall = stall_timeout
        self._limits = limits or Limits()
        self._deadline = min(stall_timeout, 10.0)
        self._polling = Polling(spin_us, busy or device.nic is not None, memory)  # nothing wakes a NIC's port
        self._lock = threading.Lock()
        self._links: dict[str, _native.Port] = {}
        self._meeting: dict[str, threading.Lock] = {}  # by address: a node that is slow keeps nobody from another
        self._wire: interface.Wire | None = None

    def abilities(self) -> Mapping[str, str]:
        """See :class:`genie.interfaces.Diagnosed`."""
        return {"GPU memory": why_no_cuda()}

    def _wrap(self, stream: _native.Stream, peer: str) -> DpdkConnection:
        return DpdkConnection(stream, peer, self._limits, self._stall, self._wire)

    def address(self, way: Way, host: str, *, here: bool) -> str:
        """See :class:`genie.ways.Discerning`. DPDK has started when this returns."""
        reason = unfit(way, self._device, host, here=here)
        if reason:
            raise BackendUnavailable(reason)
        address = f"{host if self._device.on_network else LOOPBACK}:{way.port}"
        if self._device.on_network:
            self._known().reach(address)
        self._start()
        return address

    def connect(self, address: str, timeout: float) -> DpdkConnection:
        return self._connect(address, timeout, None)

    def connect_with(self, address: str, timeout: float, session: int, secret: bytes) -> DpdkConnection:
        """See :class:`genie.ways.Ticketed`."""
        return self._connect(address, timeout, (session, secret))

    def _connect(self, address: str, timeout: float, ticket: tuple[int, bytes] | None) -> DpdkConnection:
        deadline = time.monotonic() + timeout
        try:
            port, path = self._on_wire(address, timeout) if self._device.on_network else self._on_host(address, timeout)
            stream = port.connect(path, max(deadline - time.monotonic(), 0.001), ticket)
        except (TimeoutError, _native.Late) as error:
            if isinstance(error, GenieError):
                raise
            raise _nobody(address, f"no answer within {timeout:g} s") from error
        except OSError as error:
            if isinstance(error, GenieError):
                raise
            reason = error.strerror or str(error)
            refused = isinstance(error, ConnectionRefusedError | FileNotFoundError)
            raise _nobody(address, reason, refused=refused) from error
        if stream is None and port.gone:
            raise _nobody(address, "the other process is gone")
        if stream is None:
            raise BackendUnavailable("no memory for another connection over this link", where=address)
        if (end := stream.end) != "open":
            raise _refused(address, end, stream.versions)
        return self._wrap(stream, address)

    def _on_host(self, address: str, timeout: float) -> tuple[_native.Port, int]:
        """One device for all connections of this transport to one address."""
        path = path_of(address)
        environment.start()
        until = time.monotonic() + timeout
        with self._lock:
            meeting = self._meeting.setdefault(address, threading.Lock())
        if not meeting.acquire(timeout=timeout):
            raise TimeoutError
        try:
            port = self._links.get(address)
            if port is None or port.gone:
                port = self._links[address] = memif.knock(path, self._polling, until, self._deadline)
            return port, 0
        finally:
            meeting.release()

    def _on_wire(self, address: str, timeout: float) -> tuple[_native.Port, int]:
        found = self._known()
        peer = found.reach(address)
        wire = self._wired(found)
        if self._device.nic:
            nic.introduce(wire, ipaddress.IPv4Address(peer >> 16), timeout)
        return wire.port, wire.path_to(peer)

    def _known(self) -> interface.Interface:
        return nic.known(self._device.nic) if self._device.nic else interface.read(self._device.interface)

    def _start(self) -> None:
        if self._device.nic:
            nic.start(self._device.nic)
        else:
            environment.start()

    def _wired(self, found: interface.Interface) -> interface.Wire:
        self._start()
        make = functools.partial(nic.make, self._device.nic) if self._device.nic else interface.af_packet
        with self._lock:
            self._wire = interface.Wire.on(found, self._polling, self._deadline, make)
            return self._wire

    def listen(self, address: str) -> DpdkListener:
        """Port 0 picks a free one; the listener's ``address`` says which. On one host its socket is this user's."""
        return self._listen_on_wire(address) if self._device.on_network else self._listen_on_host(address)

    def _listen_on_wire(self, address: str) -> DpdkListener:
        try:
            host, wanted = interface.split(address)
            found = self._known()
        except BackendUnavailable as error:  # whoever listens has no other way to choose
            raise ConfigError(error.message, where=address, hint=error.hint) from error
        own = str(found.address.ip)
        if host not in (own, "0.0.0.0"):
            raise ConfigError(
                f"cannot listen at {host}: {found.name} has the address {own}",
                where=address,
                hint=f"give {own} or 0.0.0.0",
            )
        return WireListener(self._wired(found), host, wanted, self._wrap)

    def _listen_on_host(self, address: str) -> DpdkListener:
        try:
            path = path_of(address)
        except BackendUnavailable as error:  # whoever listens has no other way to choose
            raise ConfigError(error.message, where=address, hint=error.hint) from error
        if not address.startswith("memif:") and port_of(address) == "0":
            return self._listen_anywhere(address.rpartition(":")[0])
        environment.start()
        _remove_stale(path)
        door = socket.socket(socket.AF_UNIX)
        try:
            door.bind(path)
            os.chmod(path, 0o600)
            door.listen(_BACKLOG)
        except OSError as error:
            door.close()
            reason = "somebody listens there" if os.path.exists(path) else error.strerror or str(error)
            raise ConfigError(f"cannot listen at {address}: {reason}", where=address) from error
        return DoorListener(door, path, address, self._wrap, self._polling, self._deadline)

    def _listen_anywhere(self, host: str) -> DpdkListener:
        for port in random.sample(_PORTS, _TRIES):
            address = f"{host}:{port}"
            if not os.path.exists(path_of(address)):
                with contextlib.suppress(ConfigError):  # another process took it at this moment
                    return self._listen_on_host(address)
        raise ConfigError("cannot listen: no free port was found", where=f"{host}:0")


def _nobody(address: str, reason: str, *, refused: bool = False) -> BackendUnavailable:
    nobody = BackendUnavailable(
        f"no node answers at {address}: {reason}",
        where=address,
        hint=f"start one there with `genie serve`, or correct the address ({address})",
    )
    nobody.refused = refused
    return nobody


def _refused(address: str, end: str, versions: tuple[int, int]) -> GenieError:
    if end == "version":
        oldest, newest = versions
        return VersionMismatch(
            f"the node speaks versions {oldest} to {newest} of the packet protocol, this side another",
            where=address,
            hint="install the same version of Genie on both sides",
        )
    if end == "full":
        return BackendUnavailable(
            "the node has no memory for another connection", where=address, hint="try again later"
        )
    if end == "stranger":
        return BackendUnavailable(
            "the node does not know the ticket", where=address, hint="its control plane may be another node's"
        )
    reason = {"nobody": "nobody listens there", "unanswered": "no answer"}.get(end, "the other process is gone")
    return _nobody(address, reason, refused=end == "nobody")


def _remove_stale(path: str) -> None:
    """Remove a socket nobody listens on any more; anything else at ``path`` stays and makes ``bind`` fail."""
    with contextlib.suppress(OSError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
