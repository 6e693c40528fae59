"""How two processes get a memif device each, joined to the other's.

At a node's socket a client says that it speaks this; the node makes a device with a socket of its own, and answers with
that one's path and the segment size. The first socket stays open: its end tells either side that the other process
is gone, and a byte on it wakes a port that sleeps.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from dataclasses import dataclass

import msgspec

from genie.errors import BackendUnavailable, DeadlineExceeded, ProtocolError, Stage
from genie_backend_dpdk import _native, environment

_HELLO = b"genie memif 1\n"
_LONGEST_ANSWER = 1 << 12
_RING = 10  # 2^10 packets on their way, each way
_WINDOW = 8 << 20  # bytes
_MEMORY = 1 << 30  # bytes, for the windows of all connections of a link
_POLL_SECONDS = 0.001
# A ring pushes back by itself. What is late was not in a queue: the other process had no core.
_QUEUE_SECONDS = 0.1


class Answer(msgspec.Struct, frozen=True):
    socket: str
    segment: int


@dataclass(frozen=True)
class Polling:
    """How a port's thread waits: ``spin_us`` (µs) after the last packet it sleeps, unless it is ``busy``."""

    spin_us: float
    busy: bool


def _port(role: str, path: str, segment: int, control: int, polling: Polling, deadline: float) -> _native.Port:
    frame = 64 * -(-(segment + 106) // 64)  # with all headers, in whole cache lines
    name = environment.device_name("net_memif")
    try:
        port = _native.Port(
            device=name,
            arguments=f"role={role},id=0,socket={path},socket-abstract=no,bsize={frame},rsize={_RING}",
            control=control,
            mss=segment,
            window=_WINDOW,
            memory=_MEMORY,
            spin_us=polling.spin_us,
            busy=polling.busy,
            deadline=deadline,
            queue_allowance=_QUEUE_SECONDS,
        )
    except RuntimeError as error:
        os.close(control)
        raise BackendUnavailable(f"DPDK gives no memif device: {error}", where=f"memif:{path}") from error
    environment.watch(port)
    return port


def knock(path: str, polling: Polling, timeout: float, deadline: float) -> _native.Port:
    """A device joined to one of the node that listens at ``path``."""
    until = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(timeout)
        control.connect(path)
        control.sendall(_HELLO)
        answer = _answer(control, path)
        port = _port("client", answer.socket, answer.segment, control.detach(), polling, deadline)
    while not port.up:
        if port.gone or time.monotonic() > until:
            raise BackendUnavailable("the node's memif device does not answer", where=f"memif:{path}")
        time.sleep(_POLL_SECONDS)
    return port


def _answer(control: socket.socket, path: str) -> Answer:
    data = bytearray()
    while not data.endswith(b"\n"):
        more = control.recv(_LONGEST_ANSWER)
        data += more
        if not more or len(data) > _LONGEST_ANSWER:
            raise ProtocolError("who listens there does not speak memif as Genie does", where=f"memif:{path}")
    try:
        answer = msgspec.json.decode(data, type=Answer)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"a node's answer can't be read: {error}", where=f"memif:{path}") from error
    if not 64 <= answer.segment <= _native.most_segment() or set(answer.socket) & set(",[]\0"):
        raise ProtocolError(f"a node offers a device that can't be: {answer}", where=f"memif:{path}")
    return answer


def open_door(
    control: socket.socket, ready: _native.Event, polling: Polling, timeout: float, deadline: float
) -> _native.Port:
    """The node's side of :func:`knock`, for a client that has just connected. ``ready`` is set by connections that come
    in over it."""
    control.settimeout(timeout)
    try:
        said = control.recv(len(_HELLO), socket.MSG_WAITALL)
    except TimeoutError as error:
        raise DeadlineExceeded("a client connected, and said nothing", stage=Stage.GREETING) from error
    if said != _HELLO:
        raise ProtocolError("a client does not speak memif as Genie does")
    directory = tempfile.mkdtemp(prefix="genie-memif-")
    path = os.path.join(directory, "s")
    try:
        segment = _native.most_segment()
        port = _port("server", path, segment, os.dup(control.fileno()), polling, deadline)
        port.listen(ready)
        control.sendall(msgspec.json.encode(Answer(path, segment)) + b"\n")
        until = time.monotonic() + timeout
        while not port.up:
            if port.gone or time.monotonic() > until:
                raise BackendUnavailable("a client asked for a memif device, and did not join it")
            time.sleep(_POLL_SECONDS)
    finally:
        # Joined, or given up: nobody else is to come by that way.
        if os.path.exists(path):
            os.unlink(path)
        os.rmdir(directory)
    return port
