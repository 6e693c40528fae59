"""Messages over stream sockets: one ``sendmsg`` out, ``recv_into`` where the bytes will stay."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import time
from collections.abc import Sequence

from genie.errors import BackendUnavailable, ConfigError, ConnectionLost, DeadlineExceeded, GenieError
from genie.wire import Allocate, Assembler, Buffer, Limits, Message
from genie_backend_tcp.address import SocketAddress, resolve, spell

_BACKLOG = 128
_DONTWAIT = socket.MSG_DONTWAIT
_LONGEST_SIT_OUT = 6  # as a power of two


class TcpConnection:
    """One socket. ``peer`` is the other side's address.

    Blocking calls with the kernel's own timeouts: Python's would cost a ``poll`` before every call. The kernel's
    count from the start of one call, so they are times of *no progress*: a long transfer that moves is not late.
    """

    def __init__(self, sock: socket.socket, peer: str, limits: Limits, stall_timeout: float, spin_us: float) -> None:
        self.peer = peer
        self._sock = sock
        self._stall = stall_timeout
        self._spin = spin_us * 1e-6
        self._vain = 0  # polls in a row that brought nothing
        self._sit_out = 0  # receptions not to poll for
        self._receive_timeout = 0.0
        self._assembler = Assembler(limits)
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(stall_timeout))
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(int(stall_timeout * 1000), 0x7FFFFFFF))

    def send(self, header: Buffer, buffers: Sequence[Buffer] = ()) -> None:
        try:
            if buffers:
                self._send_parts([memoryview(part).cast("B") for part in (header, *buffers) if len(part)])
                return
            sent = self._sock.send(header)
            if sent != len(header):
                self._send_parts([memoryview(header)[sent:]])
        except OSError as error:
            raise self._translated(error, "took", self._stall) from error

    def _send_parts(self, parts: list[memoryview]) -> None:
        while parts:
            sent = self._sock.sendmsg(parts)
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if sent:
                parts[0] = parts[0][sent:]

    def receive(self, allocate: Allocate, timeout: float | None = None) -> Message:
        """As :class:`genie.interfaces.Connection` says; without ``timeout`` a silent peer is waited for as long as
        it lives, one that falls silent within a message for the stall timeout."""
        assembler = self._assembler
        try:
            message = assembler.pull(allocate)
            while message is None:
                if timeout is not None:
                    self._set_receive_timeout(timeout)
                else:
                    self._set_receive_timeout(self._stall if assembler.midway else 0.0)
                count = self._read(assembler.space())
                if not count:
                    raise ConnectionLost("the peer closed the connection", where=self.peer, hint=_LOST)
                assembler.filled(count)
                message = assembler.pull(allocate)
            return message
        except BaseException as error:
            midway = assembler.abandon()  # whoever waits next starts with a message's beginning
            if isinstance(error, OSError) and not isinstance(error, GenieError):
                told = self._translated(error, "sent", self._receive_timeout)
                if isinstance(told, DeadlineExceeded):
                    told.midway = midway
                raise told from error
            raise

    def _read(self, space: memoryview) -> int:
        if not self._spin:
            return self._sock.recv_into(space)
        # A sleeping receiver is woken about 30 µs late; whoever is asked often answers sooner than that. Where it does
        # not (long work, busy cores) polling would take the core from somebody: after each vain try, twice as many
        # receptions are slept through.
        if self._sit_out:
            self._sit_out -= 1
            return self._sock.recv_into(space)
        deadline = time.perf_counter() + self._spin
        while True:
            try:
                count = self._sock.recv_into(space, 0, _DONTWAIT)
            except BlockingIOError:
                if time.perf_counter() > deadline:
                    break
            else:
                self._vain = 0
                return count
        self._vain = min(self._vain + 1, _LONGEST_SIT_OUT)
        self._sit_out = (1 << self._vain) - 1
        return self._sock.recv_into(space)

    def _set_receive_timeout(self, seconds: float) -> None:
        if seconds != self._receive_timeout:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))
            self._receive_timeout = seconds

    def _translated(self, error: OSError, verb: str, waited: float) -> GenieError:
        if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
            return DeadlineExceeded(f"the peer {verb} nothing for {waited:g} s", where=self.peer, hint=_LATE)
        reason = "this side closed the connection" if error.errno == errno.EBADF else (error.strerror or str(error))
        return ConnectionLost(f"the connection broke: {reason}", where=self.peer, hint=_LOST)

    def close(self) -> None:
        """From any thread; one that waits in ``receive`` is woken."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


_LOST = "see the node's log; a node that was killed must be started again with `genie serve`"
_LATE = "the node may be overloaded or cut off; `genie node status` asks it"


class TcpListener:
    def __init__(self, sock: socket.socket, transport: TcpTransport) -> None:
        self._sock = sock
        self._transport = transport
        self.address = spell(sock.getsockname())

    def accept(self, timeout: float | None = None) -> TcpConnection:
        try:
            self._sock.settimeout(timeout)
            sock, peer = self._sock.accept()
        except TimeoutError as error:
            raise DeadlineExceeded(f"nobody connected within {timeout:g} s", where=self.address) from error
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise BackendUnavailable(f"out of sockets: {error.strerror}", where=self.address) from error
            raise ConnectionLost("the listener is closed", where=self.address) from error
        try:
            return self._transport.wrap(sock, spell(peer) or "unix:")
        except OSError as error:  # gone again before it was served
            sock.close()
            raise BackendUnavailable(f"a client left at once: {error.strerror}", where=self.address) from error

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
    sleeps; with a single core polling would only keep the other side from running, so there it is off.
    """

    name = "tcp"

    def __init__(self, *, stall_timeout: float = 60.0, spin_us: float = 50.0, limits: Limits | None = None) -> None:
        self._stall = stall_timeout
        self._spin_us = spin_us if len(os.sched_getaffinity(0)) > 1 else 0.0
        self._limits = limits or Limits()

    def wrap(self, sock: socket.socket, peer: str) -> TcpConnection:
        """A connection over a connected stream socket, which it then owns."""
        return TcpConnection(sock, peer, self._limits, self._stall, self._spin_us)

    def connect(self, address: str, timeout: float) -> TcpConnection:
        deadline = time.monotonic() + timeout
        reason = "it has no address"
        refused = False
        for family, at in resolve(address):
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.settimeout(max(deadline - time.monotonic(), 0.001))
                sock.connect(at)
                return self.wrap(sock, address)
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
                _bind(sock, at)
                return TcpListener(sock, self)
            except OSError as error:
                sock.close()
                reason = error
        if reason is not None and reason.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"cannot listen at {address}: the port is taken",
                where=address,
                hint="stop the other program, or choose another --port (0 picks a free one)",
            ) from reason
        text = reason.strerror or str(reason) if reason is not None else "it has no address"
        raise ConfigError(f"cannot listen at {address}: {text}", where=address) from reason


def _bind(sock: socket.socket, at: SocketAddress) -> None:
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(at)
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


def _timeval(seconds: float) -> bytes:
    whole = int(seconds)
    micro = int((seconds - whole) * 1e6)
    if seconds > 0 and not (whole or micro):
        micro = 1  # zero would mean "for ever"
    return struct.pack("@ll", whole, micro)
