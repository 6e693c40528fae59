"""The process that is the network: packets between TUN devices, or bytes between TCP connections, shaped.

    python -m disaggregation.forwarder --control FD --tun FD,FD,…
    python -m disaggregation.forwarder --control FD --relay HOST:PORT,…

Hosts are numbered by the order of their TUN devices. A relay listens for each of its addresses on a port of its own,
and prints the ports.

``--control`` is a stream socket that takes a line of JSON and answers with one: ``{"rate": bit/s, "delay": s}`` (one
way), ``{"counters": true}`` → ``{"0>1": [packets, bytes], …}``. The process ends when its other end closes.

Nothing here sleeps per packet: each gets its time of arrival when it is read, and one loop hands over what is due.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import select
import socket
import time
from collections.abc import Iterator

from disaggregation.shaping import Line

LARGEST = 65_535
# What a line holds back before its sender's device is read again, in seconds of its rate: short, so that a full line
# is felt by the sender's TCP and not buffered here; longer than the loop may be late.
_BACKLOG = 0.01
_PR_SET_TIMERSLACK = 29


class Counters(dict[str, list[int]]):
    """Packets and bytes by direction: ``"0>1"``."""

    def count(self, direction: str, size: int) -> None:
        entry = self.setdefault(direction, [0, 0])
        entry[0] += 1
        entry[1] += size


class Control:
    """The other end's orders."""

    def __init__(self, fd: int, counters: Counters) -> None:
        self._sock = socket.socket(fileno=fd)
        self._sock.setblocking(False)
        self._buffer = b""
        self._counters = counters
        self.rate = 0.0
        self.delay = 0.0

    def fileno(self) -> int:
        return self._sock.fileno()

    def serve(self) -> tuple[bool, bool]:
        """Whether there is somebody still, and whether the shape changed."""
        with contextlib.suppress(BlockingIOError):
            data = self._sock.recv(1 << 16)
            if not data:
                return False, False
            self._buffer += data
        changed = False
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            order = json.loads(line)
            if "rate" in order:
                self.rate, self.delay, changed = float(order["rate"]), float(order["delay"]), True
            answer = dict(self._counters) if "counters" in order else {}
            self._sock.sendall(json.dumps(answer).encode() + b"\n")
        return True, changed


def _wait(reading: list[int], writing: list[int], due: float | None) -> tuple[list[int], list[int]]:
    timeout = None if due is None else max(0.0, due - time.monotonic())
    ready, writable, _ = select.select(reading, writing, (), timeout)
    return ready, writable


def forward(control: Control, counters: Counters, devices: list[int]) -> None:
    """Packets between TUN devices whose addresses end in 1, 2, … Each device has one line out."""
    lines = {device: Line[bytes]() for device in devices}
    number = {device: index for index, device in enumerate(devices)}
    while True:
        now = time.monotonic()
        busy = [device for device in devices if lines[device].backlog(now) > _BACKLOG]
        times = [at for line in lines.values() if (at := line.next()) is not None]
        # A line that holds its sender back is looked at again when it has room.
        times += [now + lines[device].backlog(now) - _BACKLOG / 2 for device in busy]
        ready, _ = _wait([control.fileno(), *(d for d in devices if d not in busy)], [], min(times, default=None))
        if control.fileno() in ready:
            there, changed = control.serve()
            if not there:
                return
            if changed:
                for line in lines.values():
                    line.set(control.rate, control.delay)
        now = time.monotonic()
        for device in ready:
            if device in lines:
                _read(device, lines[device], now)
        for source, line in lines.items():
            while (packet := line.take(now)) is not None:
                target = packet[19] - 1  # the last byte of an IPv4 packet's destination
                if packet[0] >> 4 == 4 and 0 <= target < len(devices):
                    counters.count(f"{number[source]}>{target}", len(packet))
                    # A device that takes no more is a link that drops: TCP sends it again.
                    with contextlib.suppress(BlockingIOError):
                        os.write(devices[target], packet)


def _read(device: int, line: Line[bytes], now: float) -> None:
    with contextlib.suppress(BlockingIOError):
        while line.backlog(now) <= _BACKLOG:
            packet = os.read(device, LARGEST)
            line.put(now, len(packet), packet)


class Pipe:
    """One direction of a relayed connection."""

    def __init__(self, source: socket.socket, target: socket.socket, direction: str) -> None:
        self.source = source
        self.target = target
        self.direction = direction
        self.waiting = b""  # arrived, and not taken by the target yet
        self.ended = False  # the source sends no more
        self.closed = False  # and the target knows


def relay(control: Control, counters: Counters, targets: list[str]) -> None:
    """TCP connections to ``targets``, one line out per side and target. Host 0 is who connects; target k is k + 1."""
    listeners: dict[int, tuple[socket.socket, int]] = {}
    for index, _ in enumerate(targets):
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        listeners[listener.fileno()] = (listener, index)
    ports = [listener.getsockname()[1] for listener, _ in listeners.values()]
    print(json.dumps(ports), flush=True)
    lines = {(index, way): Line[tuple[Pipe, bytes]]() for index in range(len(targets)) for way in (0, 1)}
    pipes: dict[int, tuple[Pipe, tuple[int, int]]] = {}  # by the source's file descriptor
    while True:
        now = time.monotonic()
        times = [at for line in lines.values() if (at := line.next()) is not None]
        reading, writing = [control.fileno(), *listeners], []
        for fd, (pipe, key) in pipes.items():
            backlog = lines[key].backlog(now)
            if pipe.waiting:
                writing.append(pipe.target.fileno())
            elif backlog > _BACKLOG:
                times.append(now + backlog - _BACKLOG / 2)
            elif not pipe.ended:
                reading.append(fd)
        ready, _ = _wait(reading, writing, min(times, default=None))
        if control.fileno() in ready:
            there, changed = control.serve()
            if not there:
                return
            if changed:
                for line in lines.values():
                    line.set(control.rate, control.delay)
        now = time.monotonic()
        for fd in ready:
            if fd in listeners:
                listener, index = listeners[fd]
                for pipe, key in _accepted(listener, targets[index], index):
                    pipes[pipe.source.fileno()] = (pipe, key)
            elif fd in pipes:
                pipe, key = pipes[fd]
                data = _received(pipe.source)
                if data is not None:
                    pipe.ended = not data
                    lines[key].put(now, len(data), (pipe, data))
        for line in lines.values():
            while (arrived := line.take(now)) is not None:
                pipe, data = arrived
                if data:
                    counters.count(pipe.direction, len(data))
                    pipe.waiting += data
                else:
                    pipe.closed = True
        _hand_over(pipes)


def _hand_over(pipes: dict[int, tuple[Pipe, tuple[int, int]]]) -> None:
    for fd, (pipe, _) in list(pipes.items()):
        try:
            with contextlib.suppress(BlockingIOError):
                while pipe.waiting:
                    pipe.waiting = pipe.waiting[pipe.target.send(pipe.waiting) :]
            if pipe.closed and not pipe.waiting:
                pipe.target.shutdown(socket.SHUT_WR)
        except OSError:
            pipe.closed, pipe.waiting = True, b""
        if pipe.closed and not pipe.waiting:
            del pipes[fd]
            # The way back lives until it ends by itself; with both gone, so are the sockets.


def _accepted(listener: socket.socket, target: str, index: int) -> Iterator[tuple[Pipe, tuple[int, int]]]:
    near, _ = listener.accept()
    host, _, port = target.rpartition(":")
    try:
        far = socket.create_connection((host, int(port)), timeout=5.0)
    except OSError:
        near.close()  # as the target would have refused it
        return
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
    yield Pipe(near, far, f"0>{index + 1}"), (index, 0)
    yield Pipe(far, near, f"{index + 1}>0"), (index, 1)


def _received(source: socket.socket) -> bytes | None:
    try:
        return source.recv(LARGEST)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--tun", default="")
    parser.add_argument("--relay", default="")
    options = parser.parse_args()
    # The kernel may wake us 50 µs late by default; a round trip here is as short as 200.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)
    counters = Counters()
    control = Control(options.control, counters)
    if options.tun:
        forward(control, counters, [int(fd) for fd in options.tun.split(",")])
    else:
        relay(control, counters, options.relay.split(","))


if __name__ == "__main__":
    main()
