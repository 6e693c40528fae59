"""Messages over a stream socket: one ``sendmsg`` out, ``recv_into`` where the bytes will stay."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence

from genie.errors import ConnectionLost, DeadlineExceeded, GenieError, Stage
from genie.wire import Allocate, Assembler, Buffer, Limits, Message
from genie_backend_tcp.progress import Progress

_DONTWAIT = socket.MSG_DONTWAIT
_READ_AHEAD = 1 << 18
_MOST_AHEAD = 16 << 20
_LONGEST_SIT_OUT = 6  # as a power of two


class SocketConnection:
    """One socket's way in, and its end. ``peer`` is the other side's address.

    Blocking calls with the kernel's own timeouts: Python's would cost a ``poll`` before every call. The kernel's
    count from the start of one call, so they are times of *no progress*: a long transfer that moves is not late.
    """

    def __init__(self, sock: socket.socket, peer: str, limits: Limits, stall_timeout: float, spin_us: float) -> None:
        self.peer = peer
        self.transport = "unix" if sock.family == socket.AF_UNIX else "tcp"
        self._sock = sock
        self._stall = stall_timeout
        self._spin = spin_us * 1e-6
        self._vain = 0  # polls in a row that brought nothing
        self._sit_out = 0  # receptions not to poll for
        self._progress: Progress | None = None  # of the message that is arriving
        self._patience = stall_timeout
        self._assembler = Assembler(limits)
        self._ahead = bytearray()  # what was read while nobody received
        self._prepare()

    def _prepare(self) -> None:
        """The socket, which is new."""
        sock, stall_timeout = self._sock, self._stall
        self._receive_timeout = 0.0
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(stall_timeout))
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(int(stall_timeout * 1000), 0x7FFFFFFF))

    def receive(self, allocate: Allocate, timeout: float | None = None) -> Message:
        """As :class:`genie.interfaces.Connection` says; without ``timeout`` a silent peer is waited for as long as
        it lives, one that falls silent within a message for the stall timeout."""
        assembler = self._assembler
        try:
            message = assembler.pull(allocate)
            self._progress = None
            while message is None:
                if self._midway:
                    self._progress = self._progress or Progress(Stage.RECEIVE, self.peer)
                    self._patience = self._stall if timeout is None or assembler.bulk else timeout
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
            midway = assembler.abandon()  # whoever waits next starts with a message's beginning
            if isinstance(error, DeadlineExceeded):
                error.midway = midway
            elif isinstance(error, OSError) and not isinstance(error, GenieError):
                told = self._translated(error, "sent", self._receive_timeout)
                if isinstance(told, DeadlineExceeded):
                    told.midway = midway
                raise told from error
            raise

    @property
    def _midway(self) -> bool:
        """Part of a message has come."""
        return self._assembler.midway

    def _read(self, space: memoryview) -> int:
        """What the socket has."""
        if self._progress is None:
            return self._receive_some(space)
        return self._in_time(lambda: self._receive_some(space))

    def _in_time(self, receive: Callable[[], int]) -> int:
        """``receive``, for no longer than a message may take."""
        progress = self._progress
        if progress is None:
            return receive()
        progress.waits(self._patience)
        count = receive()
        progress.moved(count)
        return count

    def _receive_some(self, space: memoryview) -> int:
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
            return DeadlineExceeded(
                f"the peer {verb} nothing for {waited:.3g} s",
                stage=Stage.SEND if verb == "took" else Stage.RECEIVE,
                seconds=waited,
                where=self.peer,
                hint=LATE,
            )
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


class TcpConnection(SocketConnection):
    """Messages as they are. Ctrl-C leaves none half sent: see :class:`genie.interfaces.Resumable`."""

    def __init__(self, sock: socket.socket, peer: str, limits: Limits, stall_timeout: float, spin_us: float) -> None:
        super().__init__(sock, peer, limits, stall_timeout, spin_us)
        self.begun = 0  # messages
        self._left: Sequence[Buffer] = ()  # of the message under way, as of the last call of the kernel's
        self._taken = 0  # bytes of that, by the last call

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
            raise self._failed_to_send(error) from error

    def finish(self) -> None:
        try:
            self._send_left()
        except OSError as error:
            raise self._failed_to_send(error) from error

    def _failed_to_send(self, error: OSError) -> GenieError:
        return error if isinstance(error, GenieError) else self._translated(error, "took", self._stall)

    def _send_left(self) -> None:
        progress = Progress(Stage.SEND, self.peer)
        while left := behind(self._left, self._taken):
            self._left = left
            self._taken = 0
            progress.waits(self._stall)
            (self._taken,) = map(self._sock.sendmsg, (left,))
            progress.moved(self._taken)
        self._left = ()


_LOST = "see the node's log; a node that was killed must be started again with `genie serve`"
LATE = "the node may be overloaded, stopped or cut off; `genie doctor` looks at what is wrong"


def behind(parts: Sequence[Buffer], taken: int) -> list[memoryview]:
    """What is left of the parts, of which so many bytes are gone."""
    left = []
    for part in parts:
        if taken >= (size := memoryview(part).nbytes):
            taken -= size
        else:
            left.append(memoryview(part).cast("B")[taken:])
            taken = 0
    return left


def _timeval(seconds: float) -> bytes:
    whole = int(seconds)
    micro = int((seconds - whole) * 1e6)
    if seconds > 0 and not (whole or micro):
        micro = 1  # zero would mean "for ever"
    return struct.pack("@ll", whole, micro)
