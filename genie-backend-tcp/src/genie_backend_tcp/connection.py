"""Messages over a stream socket: one ``sendmsg`` out, ``recv_into`` where the bytes will stay."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from collections.abc import Sequence

from genie.errors import ConnectionLost, DeadlineExceeded, GenieError
from genie.wire import Allocate, Assembler, Buffer, Limits, Message

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
                    self._set_receive_timeout(self._stall if self._midway else 0.0)
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

    @property
    def _midway(self) -> bool:
        """Part of a message has come."""
        return self._assembler.midway

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


def _timeval(seconds: float) -> bytes:
    whole = int(seconds)
    micro = int((seconds - whole) * 1e6)
    if seconds > 0 and not (whole or micro):
        micro = 1  # zero would mean "for ever"
    return struct.pack("@ll", whole, micro)
