"""Links: how long a value takes from one device to another.

A link sends one value at a time (the *one-port* model: a device's sends follow each other, and so do its receives;
Bhat, Raghavendra and Prasanna, "Efficient collective communication in distributed heterogeneous systems", 1999) in
latency + bytes / bandwidth. What is known of it comes, weakest first, from the devices' ``network_gbps``, from
``genie calibrate``, and from transfers that were observed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from math import isfinite

import msgspec

from genie.device import Device
from genie.plan import Link

_REMEMBERED = 64  # observations
_KNOWN_BEFORE = 2.0  # … that what was known before counts for, at first
_ODD = 0.5
_PASSES = 12
_MOST_LINKS = 1 << 16


class Transfers(msgspec.Struct, frozen=True):
    """Seconds = latency + bytes / bandwidth, of the slower of both links, or of the bus inside one node."""

    latency: float = 50e-6
    share: float = 0.9  # of a link's bits per second that payload gets
    bus_latency: float = 10e-6
    bus_bytes_per_second: float = 12e9

    def seconds(self, src: Device, dst: Device, bytes: int) -> float:
        if src.id == dst.id:
            return 0.0
        latency, speed = self.line(src, dst)
        return latency + bytes / speed

    def line(self, src: Device, dst: Device) -> tuple[float, float]:
        """Latency and bytes per second."""
        if src.address == dst.address:
            return self.bus_latency, self.bus_bytes_per_second
        return self.latency, min(self.speed(src), self.speed(dst))

    def speed(self, device: Device) -> float:
        """Bytes per second of the link to ``device``, by its figures."""
        return device.network_gbps * 1e9 * self.share / 8


class Reach(msgspec.Struct, frozen=True):
    """A node's measured link: seconds until a small message was answered is twice ``latency``; ``up`` leads to the
    node, ``down`` from it, in bytes per second."""

    latency: float
    up: float
    down: float

    def __post_init__(self) -> None:
        if not (isfinite(self.latency) and self.latency >= 0):
            raise ValueError(f"a link's latency is not {self.latency!r}")
        if not (0 < self.up < 1e15 and 0 < self.down < 1e15):
            raise ValueError(f"a link's speeds are not {self.up!r} and {self.down!r} bytes per second")


class _Line:
    """Latency and seconds per byte by least squares over the latest that was observed.

    Errors count as ratios; a single odd observation pulls no further than some that are off by half (Huber's weights).
    What was known before takes part as a few observations: of a small value, and of one whose bytes outweigh the rest.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)
        self.solved: tuple[float, float] | None = None

    def add(self, size: float, seconds: float) -> None:
        self._seen.append((size, seconds))
        self.solved = None

    def solve(self, latency: float, speed: float) -> tuple[float, float]:
        """Latency and bytes per second; ``latency`` and ``speed`` are what was known before."""
        large = max(latency * speed * 10, max(size for size, _ in self._seen), 1 << 20)
        points = [(size, seconds, 1.0) for size, seconds in self._seen]
        before = _KNOWN_BEFORE / (1 + len(points) / 8)
        points += [(size, latency + size / speed, before) for size in (0.0, large)]
        base, per_byte = latency, 1 / speed
        for _ in range(_PASSES):
            n = x = y = xx = xy = 0.0
            for size, seconds, weight in points:
                guess = max(base + per_byte * size, 1e-9)
                off = abs(seconds / guess - 1)
                weight *= (1.0 if off < _ODD else _ODD / off) / (guess * guess)
                n += weight
                x += weight * size
                y += weight * seconds
                xx += weight * size * size
                xy += weight * size * seconds
            per_byte = max((n * xy - x * y) / (n * xx - x * x), 0.01 / speed)
            base = max((y - per_byte * x) / n, 0.0)
        self.solved = base, 1 / per_byte
        return self.solved


class Links:
    """What is known of the ways between devices; an estimate as :class:`Transfers` gives it, of better figures.

    ``reaches`` are measured links of nodes, by address. Values between two nodes take the slower of both, unless that
    way was observed itself. Any thread may call.

    >>> links = Links(reaches={"10.0.0.10:8888": Reach(latency=1e-4, up=1.1e9, down=1.2e9)})
    """

    def __init__(self, transfers: Transfers | None = None, reaches: Mapping[str, Reach] | None = None) -> None:
        self._transfers = transfers or Transfers()
        self._reaches = dict(reaches or {})
        self._lines: dict[tuple[str | None, str | None], _Line] = {}
        self._lock = threading.Lock()

    def seconds(self, src: Device, dst: Device, bytes: int) -> float:
        if src.id == dst.id:
            return 0.0
        latency, speed = self.line(src, dst)
        return latency + bytes / speed

    def line(self, src: Device, dst: Device) -> tuple[float, float]:
        """Latency and bytes per second."""
        line = self._lines.get((src.address, dst.address))
        if line is None:
            return self._prior(src, dst)
        with self._lock:
            return line.solved or line.solve(*self._prior(src, dst))

    def links(self, devices: Sequence[Device]) -> tuple[Link, ...]:
        """Between all pairs of ``devices``, by their numbers there."""
        return tuple(
            Link(a, b, *self.line(src, dst))
            for a, src in enumerate(devices)
            for b, dst in enumerate(devices)
            if a != b and src.id != dst.id
        )

    def measured(self, address: str, reach: Reach) -> None:
        """A node's link was measured."""
        with self._lock:
            self._reaches[address] = reach
            for way in [way for way in self._lines if address in way]:
                del self._lines[way]

    def observe(self, src: Device, dst: Device, bytes: int, seconds: float) -> None:
        """A value was sent. Impossible figures are passed over."""
        if not (isfinite(seconds) and seconds > 0 and bytes >= 0) or src.id == dst.id:
            return
        way = (src.address, dst.address)
        with self._lock:
            if way not in self._lines and len(self._lines) >= _MOST_LINKS:
                return
            self._lines.setdefault(way, _Line()).add(bytes, seconds)

    def _prior(self, src: Device, dst: Device) -> tuple[float, float]:
        if src.address == dst.address:
            return self._transfers.line(src, dst)
        out = self._reaches.get(src.address) if src.address else None
        into = self._reaches.get(dst.address) if dst.address else None
        if out is None and into is None:
            return self._transfers.line(src, dst)
        latency = max(reach.latency for reach in (out, into) if reach is not None)
        speeds = [out.down] if out is not None else []
        speeds += [into.up] if into is not None else []
        # A node that was not measured may have a slower link than the one that was.
        speeds += [
            self._transfers.speed(device)
            for device, reach in ((src, out), (dst, into))
            if reach is None and device.address is not None
        ]
        return latency, min(speeds)


def waiting(seconds: float, utilisation: float, variation: float = 1.0) -> float:
    """The mean wait before a service of ``seconds``, on a server that is busy ``utilisation`` of the time.

    M/G/1: utilisation / (1 − utilisation) · (1 + variation²) / 2 · seconds, ``variation`` being the standard deviation
    of service times over their mean (Pollaczek, 1930; Khinchine, 1932; Kleinrock, "Queueing Systems I", 1975, §5.6).
    With 1 it is M/M/1, with 0 M/D/1. Raises :class:`ValueError` for a utilisation outside 0 ≤ u < 1.
    """
    if not 0.0 <= utilisation < 1.0:
        raise ValueError(f"a utilisation of {utilisation!r} has no steady state")
    return utilisation / (1.0 - utilisation) * (1.0 + variation * variation) / 2.0 * seconds
