"""Messages over stream sockets: one ``sendmsg`` out, ``recv_into`` where the bytes will stay."""

from __future__ import annotations

import contextlib
import errno
import os
import select
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
_READ_AHEAD = 1 << 18
_MOST_AHEAD = 16 << 20
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
        self.begun = 0  # messages
        self._left: Sequence[Buffer] = ()  # of the message under way, as of the last call of the kernel's
        self._taken = 0  # bytes of that, by the last call
        self._ahead = bytearray()  # what was read while nobody received
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
        """Interrupted, it can be gone on with: see :class:`genie.interfaces.Resumable`.

        An interrupt strikes after a call has returned, before what it returned is kept. So here what the kernel took is
        unpacked from ``map``, which calls it: nothing of the interpreter's comes in between.
        """
        parts = (header, *buffers)
        try:
            if self._left:
                self._send_left()
            self._left = parts
            self._taken = 0
            self.begun += 1
            if not buffers:
                (self._taken,) = map(self._sock.send, parts)
                if self._taken == len(header):
                    self._left = ()
                    return
            self._send_left()
        except OSError as error:
            raise self._translated(error, "took", self._stall) from error

    def finish(self) -> None:
        try:
            self._send_left()
        except OSError as error:
            raise self._translated(error, "took", self._stall) from error

    def _send_left(self) -> None:
        while left := _behind(self._left, self._taken):
            self._left = left
            self._taken = 0
            (self._taken,) = map(self._sock.sendmsg, (left,))
        self._left = ()

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
            assembler.abandon()  # whoever waits next starts with a message's beginning
            if isinstance(error, OSError) and not isinstance(error, GenieError):
                raise self._translated(error, "sent", self._receive_timeout) from error
            raise

    def _read(self, space: memoryview) -> int:
        if self._ahead:
            count = min(len(space), len(self._ahead))
            space[:count] = self._ahead[:count]
            del self._ahead[:count]
            return count
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

    def hung_up(self) -> bool:
        """See :class:`genie.interfaces.Watched`. Of a peer that left more behind than the kernel keeps, the end is not
        heard before that is read: some of it is, for later."""
        watch = select.poll()
        try:
            watch.register(self._sock, select.POLLRDHUP)  # and, unasked, hanging up and errors
            if watch.poll(0):
                return True
            while len(self._ahead) < _MOST_AHEAD:
                data = self._sock.recv(_READ_AHEAD, _DONTWAIT)
                if not data:
                    return True
                self._ahead += data
        except BlockingIOError:
            return False
        except (OSError, ValueError):  # closed by this side, or broken
            return True
        return False

    def close(self) -> None:
        """From any thread; one that waits in ``receive`` is woken."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


_LOST = "see the node's log; a node that was killed must be started again with `genie serve`"
_LATE = "the node may be overloaded or cut off; `genie node status` asks it"


def _behind(parts: Sequence[Buffer], taken: int) -> list[memoryview]:
    """What is left of the parts, of which so many bytes are gone."""
    left = []
    for part in parts:
        if taken >= (size := memoryview(part).nbytes):
            taken -= size
        else:
            left.append(memoryview(part).cast("B")[taken:])
            taken = 0
    return left


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
            sock.close()
        raise BackendUnavailable(
            f"no node answers at {address}: {reason}",
            where=address,
            hint=f"start one there with `genie serve`, or correct the address ({address})",
        )

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
