"""How two processes get a memif device each, joined to the other's.

At a node's socket a client says that it speaks this; the node makes a device, and answers with that one's number, the
segment size, and a line over which the two processes join their devices (:mod:`genie_backend_dpdk.relay`). The first
socket stays open: its end tells either side that the other process is gone, and a byte on it wakes a port that sleeps.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable

import msgspec

from genie.errors import BackendUnavailable, DeadlineExceeded, ProtocolError, Stage
from genie_backend_dpdk import _native, environment, relay
from genie_backend_dpdk.address import directory
from genie_backend_dpdk.polling import Polling

_HELLO = b"genie memif 2\n"
_LONGEST_ANSWER = 1 << 12
_RING = 10  # 2^10 packets on their way, each way
_WINDOW = 8 << 20  # bytes
_MEMORY = 1 << 30  # bytes, for the windows of all connections of a link
# A ring pushes back by itself. What is late was not in a queue: the other process had no core.
_QUEUE_SECONDS = 0.1


class Answer(msgspec.Struct, frozen=True):
    device: int
    segment: int


def _port(
    role: str, number: int, path: str, segment: int, control: int, polling: Polling, deadline: float
) -> _native.Port:
    frame = 64 * -(-(segment + 106) // 64)  # with all headers, in whole cache lines
    name = environment.device_name("net_memif")
    try:
        port = _native.Port(
            device=name,
            arguments=f"role={role},id={number},socket={path},socket-abstract=no,bsize={frame},rsize={_RING}",
            control=control,
            mss=segment,
            window=_WINDOW,
            memory=_MEMORY,
            spin_us=polling.spin_us,
            busy=polling.busy,
            deadline=deadline,
            queue_allowance=_QUEUE_SECONDS,
            digests=False,  # packets are memory of these two processes
            gpu=polling.memory.native if polling.memory else None,
            split_here=bool(polling.memory and polling.memory.splits),
        )
    except RuntimeError as error:
        os.close(control)
        raise BackendUnavailable(f"DPDK gives no memif device: {error}", where=f"memif:{path}") from error
    environment.watch(port)
    return port


class _Server:
    """The socket at which this process's own lines reach the devices that it makes for clients: one for all, since the
    driver never gives one up. Nobody else finds it: no path leads there once it is made."""

    def __init__(self) -> None:
        self.path = str(directory() / f"memif-{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):  # of a process that had this number, and was killed
            os.unlink(self.path)
        arguments = f"role=server,id=0,socket={self.path},socket-abstract=no"
        try:
            _native.add_device(environment.device_name("net_memif"), arguments)
            self._socket = os.open(self.path, os.O_PATH)
        except (RuntimeError, OSError) as error:
            raise BackendUnavailable(f"DPDK gives no memif device: {error}", where=f"memif:{self.path}") from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        self._numbers = itertools.count(1)

    def number(self) -> int:
        return next(self._numbers)

    def line(self, timeout: float) -> socket.socket:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        line.settimeout(timeout)
        try:
            line.connect(f"/proc/self/fd/{self._socket}")
        except OSError:
            line.close()
            raise
        return line


_lock = threading.Lock()
_server: _Server | None = None


def _only_server() -> _Server:
    global _server
    with _lock:
        if _server is None:
            _server = _Server()
        return _server


def knock(path: str, polling: Polling, until: float, deadline: float) -> _native.Port:
    """A device joined to one of the node that listens at ``path``, before the clock says ``until``."""
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(_left(until))
        control.connect(path)
        control.sendall(_HELLO)
        answer, far = _answer(control, path, until)
        with far:
            return _client(path, answer, far, control, polling, until, deadline)


def _left(until: float) -> float:
    return max(until - time.monotonic(), 0.001)


def _client(
    path: str,
    answer: Answer,
    far: socket.socket,
    control: socket.socket,
    polling: Polling,
    until: float,
    deadline: float,
) -> _native.Port:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.settimeout(_left(until))
        own_directory = tempfile.mkdtemp(prefix="genie-memif-")
        own = os.path.join(own_directory, "s")
        try:
            door.bind(own)
            door.listen(1)
            port = _port("client", answer.device, own, answer.segment, os.dup(control.fileno()), polling, deadline)
            near, _ = door.accept()  # the device, which has called already
        finally:
            if os.path.exists(own):
                os.unlink(own)
            os.rmdir(own_directory)
    _join(port, near, far, until, f"memif:{path}", last=True)
    return port


def _join(port: _native.Port, near: socket.socket, far: socket.socket, until: float, where: str, *, last: bool) -> None:
    near.settimeout(_left(until))
    far.settimeout(_left(until))
    try:
        relay.join(near, far, lambda: port.up, until, last=last)
    except BackendUnavailable as error:
        raise BackendUnavailable(error.message, where=where) from error
    finally:
        port.keep(near.detach())


def _answer(control: socket.socket, path: str, until: float) -> tuple[Answer, socket.socket]:
    control.settimeout(_left(until))
    data, lines, _, _ = socket.recv_fds(control, _LONGEST_ANSWER, 1)
    far = [socket.socket(fileno=line) for line in lines]
    try:
        if not data:
            raise BackendUnavailable("the node gives no memif device", where=f"memif:{path}", hint="see the node's log")
        while not data.endswith(b"\n") and len(data) < _LONGEST_ANSWER:
            control.settimeout(_left(until))
            more = control.recv(_LONGEST_ANSWER)
            data += more or b"\n"
        answer = msgspec.json.decode(data, type=Answer)
        if not 64 <= answer.segment <= _native.most_segment() or not 0 < answer.device < 1 << 32:
            raise ProtocolError(f"a node offers a device that can't be: {answer}", where=f"memif:{path}")
        if not far or (far[0].family, far[0].type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            raise ProtocolError("a node offers a device, and no line to it", where=f"memif:{path}")
    except msgspec.MsgspecError as error:
        _close(far)
        raise ProtocolError("who listens there does not speak memif as Genie does", where=f"memif:{path}") from error
    except BaseException:
        _close(far)
        raise
    return answer, far[0]


def _close(lines: list[socket.socket]) -> None:
    for line in lines:
        line.close()


def open_door(
    control: socket.socket, admit: Callable[[_native.Port], None], polling: Polling, timeout: float, deadline: float
) -> _native.Port:
    """The node's side of :func:`knock`, for a client that has just connected. ``admit`` has the port listen."""
    until = time.monotonic() + timeout
    control.settimeout(timeout)
    try:
        said = control.recv(len(_HELLO), socket.MSG_WAITALL)
    except TimeoutError as error:
        raise DeadlineExceeded("a client connected, and said nothing", stage=Stage.GREETING) from error
    if said != _HELLO:
        raise ProtocolError("a client does not speak memif as Genie does")
    server = _only_server()
    number, segment = server.number(), _native.most_segment()
    port = _port("server", number, server.path, segment, os.dup(control.fileno()), polling, deadline)
    admit(port)
    far, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with far:
        with theirs:
            socket.send_fds(control, [msgspec.json.encode(Answer(number, segment)) + b"\n"], [theirs.fileno()])
        _join(port, server.line(timeout), far, until, "memif", last=False)
    return port
