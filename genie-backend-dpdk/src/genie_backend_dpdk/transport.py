"""Who connects and who listens, over DPDK's memif devices."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import stat
import threading
import time

from genie.errors import (
    BackendUnavailable,
    ConfigError,
    ConnectionLost,
    DeadlineExceeded,
    GenieError,
    Stage,
    VersionMismatch,
)
from genie.telemetry import get_logger
from genie.wire import Limits
from genie_backend_dpdk import _native, environment, memif
from genie_backend_dpdk.address import path_of, port_of
from genie_backend_dpdk.connection import DpdkConnection

_BACKLOG = 128
_MEETING_SECONDS = 5.0
_PORTS = range(49152, 65535)
_TRIES = 100
_log = get_logger("dpdk")


class DpdkListener:
    """A socket where clients ask for devices, and the connections that come in over those."""

    def __init__(self, door: socket.socket, address: str, transport: DpdkTransport) -> None:
        self.address = address
        self._door = door
        self._transport = transport
        self._ready = _native.Event()
        self._lock = threading.Lock()
        self._ports: list[_native.Port] = []
        self._closed = False
        threading.Thread(target=self._answer, name=f"genie-dpdk {address}", daemon=True).start()

    def _answer(self) -> None:
        while True:
            try:
                control, _ = self._door.accept()
            except OSError:
                return
            try:
                with control:
                    polling, deadline = self._transport.polling, self._transport.deadline
                    port = memif.open_door(control, self._ready, polling, _MEETING_SECONDS, deadline)
            except (GenieError, OSError) as error:  # who came is told by the socket's end
                _log.warning("a client got no device", address=self.address, error=str(error))
                continue
            with self._lock:
                self._ports = [each for each in self._ports if not each.gone or each.connections]
                if self._closed:
                    port.listen(None)
                else:
                    self._ports.append(port)
                    self._ready.set()  # somebody may have come in already

    def accept(self, timeout: float | None = None) -> DpdkConnection:
        deadline = None if timeout is None else time.monotonic() + timeout
        watch = select.poll()
        watch.register(self._ready.fileno(), select.POLLIN)
        while True:
            with self._lock:
                if self._closed:
                    raise ConnectionLost("the listener is closed", where=self.address)
                self._ready.clear()
                for port in self._ports:
                    if (stream := port.accept()) is not None:
                        self._ready.set()  # there may be more, and others who accept
                        return self._transport.wrap(stream, f"{self.address} client")
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise DeadlineExceeded(
                    f"nobody connected within {timeout:g} s", stage=Stage.CONNECT, where=self.address
                )
            watch.poll(None if left is None else left * 1000)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for port in self._ports:
                port.listen(None)
            self._ports = []
            self._ready.set()
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        with contextlib.suppress(OSError):
            os.unlink(path_of(self.address))


class DpdkTransport:
    """``host:port`` of this host, or ``memif:/path``: processes of one host, which need no privileges.

    ``stall_timeout`` (s) bounds every time without progress, and how long a silent peer is believed to live;
    ``spin_us`` (µs) is how long a port polls after the last packet before it sleeps; a ``busy`` one never does.
    """

    name = "dpdk"

    def __init__(
        self, *, stall_timeout: float = 60.0, spin_us: float = 50.0, busy: bool = False, limits: Limits | None = None
    ) -> None:
        self._stall = stall_timeout
        self._limits = limits or Limits()
        self.deadline = min(stall_timeout, 10.0)
        self.polling = memif.Polling(spin_us, busy)
        self._lock = threading.Lock()
        self._links: dict[str, _native.Port] = {}

    def wrap(self, stream: _native.Stream, peer: str) -> DpdkConnection:
        return DpdkConnection(stream, peer, self._limits, self._stall)

    def connect(self, address: str, timeout: float) -> DpdkConnection:
        path = path_of(address)
        environment.start()
        deadline = time.monotonic() + timeout
        try:
            port = self._link(address, path, timeout)
            stream = port.connect(max(deadline - time.monotonic(), 0.001))
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
        return self.wrap(stream, address)

    def _link(self, address: str, path: str, timeout: float) -> _native.Port:
        """One device for all connections of this transport to one address."""
        with self._lock:
            port = self._links.get(address)
            if port is None or port.gone:
                port = self._links[address] = memif.knock(path, self.polling, timeout, self.deadline)
            return port

    def listen(self, address: str) -> DpdkListener:
        """The socket is this user's alone. Port 0 picks a free one; the listener's ``address`` says which."""
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
        return DpdkListener(door, address, self)

    def _listen_anywhere(self, host: str) -> DpdkListener:
        for port in random.sample(_PORTS, _TRIES):
            address = f"{host}:{port}"
            if not os.path.exists(path_of(address)):
                with contextlib.suppress(ConfigError):  # another process took it at this moment
                    return self.listen(address)
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
    reason = "nobody listens there" if end == "nobody" else "the other process is gone"
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
