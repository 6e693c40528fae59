"""Stream sockets: who connects and who listens, in the clear or over TLS."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
import struct
import time
from typing import TypeAlias

from genie.errors import BackendUnavailable, ConfigError, ConnectionLost, DeadlineExceeded, GenieError, Stage
from genie.security import Tls
from genie.wire import Limits
from genie_backend_tcp.address import SocketAddress, resolve, spell, split_host_port
from genie_backend_tcp.checked import CheckedConnection
from genie_backend_tcp.connection import TcpConnection
from genie_backend_tcp.tls import TlsConnection

_BACKLOG = 128

Link: TypeAlias = TcpConnection | CheckedConnection | TlsConnection


class TcpListener:
    def __init__(self, sock: socket.socket, transport: TcpTransport) -> None:
        self._sock = sock
        self._transport = transport
        self.address = spell(sock.getsockname())

    def accept(self, timeout: float | None = None) -> Link:
        try:
            self._sock.settimeout(timeout)
            sock, peer = self._sock.accept()
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"nobody connected within {timeout:g} s",
                stage=Stage.CONNECT,
                seconds=timeout or 0.0,
                where=self.address,
            ) from error
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise BackendUnavailable(f"out of sockets: {error.strerror}", where=self.address) from error
            raise ConnectionLost("the listener is closed", where=self.address) from error
        try:
            return self._transport.accepted(sock, _user(sock) if sock.family == socket.AF_UNIX else spell(peer))
        except OSError as error:  # gone again before it was served
            sock.close()
            raise BackendUnavailable(f"a client left at once: {error.strerror}", where=self.address) from error
        except RuntimeError as error:  # for its handshake
            sock.close()
            raise BackendUnavailable(f"no more threads: {error}", where=self.address) from error

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        if self.address.startswith("unix:"):
            with contextlib.suppress(OSError):
                os.unlink(self.address.removeprefix("unix:"))


class TcpTransport:
    """``host:port``, ``[v6]:port`` and ``unix:/path``.

    ``stall_timeout`` (s) bounds every time without progress, ``spin_us`` (µs) is how long a receiver polls before it
    sleeps; with a single core polling would only keep the other side from running, so there it is off. By ``tls``
    connections to and from other hosts are encrypted, as it says; Unix sockets, guarded by the file system, never are.
    What is not encrypted has ``checksums``: "on" for all but Unix sockets, and who comes without is refused; "auto" to
    other hosts; "off" to none. Who connects with them is always answered with them.
    """

    name = "tcp"

    def __init__(
        self,
        *,
        stall_timeout: float = 60.0,
        spin_us: float = 50.0,
        limits: Limits | None = None,
        tls: Tls | None = None,
        checksums: str = "auto",
    ) -> None:
        self._stall = stall_timeout
        self._spin_us = spin_us if len(os.sched_getaffinity(0)) > 1 else 0.0
        self._limits = limits or Limits()
        self._tls = tls
        self._checksums = checksums
        self.encrypts = tls is not None

    def wrap(self, sock: socket.socket, peer: str) -> TcpConnection:
        """A connection over a connected stream socket, which it then owns."""
        return TcpConnection(sock, peer, self._limits, self._stall, self._spin_us)

    def accepted(self, sock: socket.socket, peer: str) -> Link:
        if sock.family == socket.AF_UNIX:
            return self.wrap(sock, peer)
        if self._tls is None or not self._tls.serves:
            required = self._checksums == "on"
            return CheckedConnection(
                sock, peer, self._limits, self._stall, self._spin_us, accepted=True, required=required
            )
        connection = TlsConnection(sock, peer, self._limits, self._stall, self._spin_us, self._tls.server())
        connection.begin()
        return connection

    def _connected(self, sock: socket.socket, address: str, timeout: float) -> Link:
        if sock.family == socket.AF_UNIX:
            return self.wrap(sock, address)
        if self._tls is None or not self._tls.connects:
            if self._checksums == "on" or (self._checksums == "auto" and not _is_loopback(sock)):
                return self._checked(sock, address, timeout)
            return self.wrap(sock, address)
        host = split_host_port(address)[0] or "localhost"
        connection = TlsConnection(
            sock, address, self._limits, self._stall, self._spin_us, self._tls.client(), host=host
        )
        connection.shake_hands(timeout)
        return connection

    def _checked(self, sock: socket.socket, address: str, timeout: float) -> CheckedConnection:
        family, at = sock.family, sock.getpeername()

        def redial() -> socket.socket:
            again = socket.socket(family, socket.SOCK_STREAM)
            try:
                again.settimeout(timeout)
                again.connect(at)
            except BaseException:
                again.close()
                raise
            return again

        return CheckedConnection(
            sock,
            address,
            self._limits,
            self._stall,
            self._spin_us,
            redial=redial if self._checksums == "auto" else None,
        )

    def connect(self, address: str, timeout: float) -> Link:
        deadline = time.monotonic() + timeout
        reason = "it has no address"
        refused = False
        for family, at in resolve(address):
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.settimeout(max(deadline - time.monotonic(), 0.001))
                sock.connect(at)
                return self._connected(sock, address, max(deadline - time.monotonic(), 0.001))
            except GenieError:
                sock.close()
                raise
            except TimeoutError:
                reason = f"no answer within {timeout:g} s"
            except OSError as error:
                reason = error.strerror or str(error)
                refused = isinstance(error, ConnectionRefusedError | FileNotFoundError)
            sock.close()
        nobody = BackendUnavailable(
            f"no node answers at {address}: {reason}",
            where=address,
            hint=f"start one there with `genie serve`, or correct the address ({address})",
        )
        nobody.refused = refused
        raise nobody

    def listen(self, address: str) -> TcpListener:
        """Port 0 picks a free one; the listener's ``address`` says which."""
        if address.startswith("unix:"):
            _remove_stale(address.removeprefix("unix:"))
        reason: OSError | None = None
        for family, at in resolve(address):
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                _bind(sock, at, private=self._tls is not None and self._tls.serves)
                return TcpListener(sock, self)
            except OSError as error:
                sock.close()
                reason = error
        if reason is not None and reason.errno == errno.EADDRINUSE:
            if address.startswith("unix:"):
                raise ConfigError(
                    f"cannot listen at {address}: somebody listens there, or it is another file",
                    where=address,
                    hint="stop the other program, remove the file, or choose another path (--unix)",
                ) from reason
            raise ConfigError(
                f"cannot listen at {address}: the port is taken",
                where=address,
                hint="stop the other program, or choose another --port (0 picks a free one)",
            ) from reason
        text = reason.strerror or str(reason) if reason is not None else "it has no address"
        raise ConfigError(f"cannot listen at {address}: {text}", where=address) from reason


def _is_loopback(sock: socket.socket) -> bool:
    """Whether the other end is on this host, by its address."""
    address = ipaddress.ip_address(sock.getpeername()[0].partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _user(sock: socket.socket) -> str:
    """Who connected to a Unix socket: the kernel knows."""
    _, uid, _ = struct.unpack("=iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("=iII")))
    return f"unix:uid={uid}"


def _bind(sock: socket.socket, at: SocketAddress, *, private: bool) -> None:
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(at)
    if private and isinstance(at, str):
        os.chmod(at, 0o600)  # before it can be connected to: there is no certificate to ask for
    sock.listen(_BACKLOG)


def _remove_stale(path: str) -> None:
    """Remove a socket nobody listens on any more; anything else at ``path`` stays and makes ``bind`` fail."""
    with contextlib.suppress(OSError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
