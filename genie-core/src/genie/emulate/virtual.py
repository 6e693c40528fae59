"""Virtual time: what emulated devices and links do when. No thread and no clock of this machine.

The rules are those of the scheduler's evaluator: a device works at one thing at a time; it sends one value at a time
and receives one at a time (the one-port model), in the order in which they are ready; a transfer between devices takes
both ports for latency + bytes / bandwidth. Between the client and a device requests follow each other on their way, so
only bytes take the ports there, and the latency comes after.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from genie.device import CLIENT

Line = Callable[[str, str], tuple[float, float]]  # from, to → latency in seconds, bytes per second
Kind = Literal["work", "send", "receive", "upload", "fetch", "ask"]

_MOST_SPANS = 1 << 16


class Span(NamedTuple):
    """Something that took time, in virtual seconds. ``where`` is a device, or ``gpu0 → gpu1``."""

    where: str
    what: str
    start: float
    finish: float
    bytes: int = 0


class Traffic(NamedTuple):
    """What went one way: bytes, values, and the seconds in which the way was taken."""

    bytes: int
    values: int
    seconds: float


class Way:
    """Where values that one stream sends reach another: when they do, by the position at which they were sent."""

    __slots__ = ("arrived", "sent", "target")

    def __init__(self, target: Stream) -> None:
        self.target = target
        self.sent = 0
        self.arrived: dict[int, float] = {}


class Request:
    """Something asked of a device. ``amount`` is seconds of work, or bytes; ``None`` until it is known. ``position`` is
    that of the value on ``way``."""

    __slots__ = ("amount", "arrives", "finished", "kind", "position", "way", "what")

    def __init__(self, kind: Kind, what: str, amount: float | None, way: Way | None, position: int) -> None:
        self.kind = kind
        self.what = what
        self.amount = amount
        self.way = way
        self.position = position
        self.arrives: float | None = None  # at the device; of an upload, once all of it is there
        self.finished: float | None = None  # of "fetch" and "ask": the answer is with the client


class Stream:
    """What one session asks of a device, in order. ``at`` is how far it is."""

    __slots__ = ("at", "device", "waiting")

    def __init__(self, device: str) -> None:
        self.device = device
        self.at = 0.0
        self.waiting: deque[Request] = deque()


class _Transfer(NamedTuple):
    source: str
    target: str
    ready: float
    request: Request
    stream: Stream  # where it goes on when this has arrived


class VirtualTime:
    """``now`` is the client's. Requests are added as the program makes them; :meth:`advance` lets time pass."""

    def __init__(self, devices: Sequence[str], line: Line) -> None:
        self.now = 0.0
        self.origin = 0.0  # reports count from here
        self.pending = 0  # requests that are not done
        self.spans: deque[Span] = deque(maxlen=_MOST_SPANS)
        self.busy = dict.fromkeys(devices, 0.0)
        self.traffic: dict[tuple[str, str], Traffic] = {}
        self.latest = 0.0
        self._line = line
        self._free = dict.fromkeys(devices, 0.0)
        places = (*devices, CLIENT)
        self._out = dict.fromkeys(places, 0.0)
        self._into = dict.fromkeys(places, 0.0)
        self._leaving: dict[str, deque[_Transfer]] = {place: deque() for place in places}
        self._streams: list[Stream] = []

    # --- what is asked ------------------------------------------------------------------------------

    def open(self, device: str) -> Stream:
        stream = Stream(device)
        self._streams.append(stream)
        return stream

    def end(self, stream: Stream) -> None:
        """Nothing of it happens any more, but for what is on its way."""
        self.pending -= len(stream.waiting)
        stream.waiting.clear()
        self._streams.remove(stream)

    def ask(
        self,
        stream: Stream,
        kind: Kind,
        what: str = "",
        amount: float | None = None,
        way: Way | None = None,
        position: int = 0,
    ) -> Request:
        """The client asks, now."""
        request = Request(kind, what, amount, way, position)
        if kind == "upload":
            self._leaving[CLIENT].append(_Transfer(CLIENT, stream.device, self.now, request, stream))
        else:
            request.arrives = self.now + self._line(CLIENT, stream.device)[0]
        stream.waiting.append(request)
        self.pending += 1
        return request

    # --- time passes --------------------------------------------------------------------------------

    def advance(self, until: Request | None = None) -> Request | None:
        """Let happen what happens until ``until`` is answered, or all that can. Gives a request whose amount must be
        known before time can go on, else ``None``."""
        for stream in self._streams:
            self._settle(stream)
        while until is None or until.finished is None:
            working, start = self._soonest_work()
            leaving, begin = self._soonest_transfer()
            if working is not None and (leaving is None or start <= begin):
                request = working.waiting[0]
                if request.amount is None:
                    return request
                self._work(working, request, start)
            elif leaving is not None:
                if leaving.request.amount is None:
                    return leaving.request
                self._leaving[leaving.source].popleft()
                self._transfer(leaving, begin)
            else:
                break
        return None

    def _soonest_work(self) -> tuple[Stream | None, float]:
        soonest, found = float("inf"), None
        for stream in self._streams:
            if stream.waiting and stream.waiting[0].kind == "work":
                arrives = stream.waiting[0].arrives
                assert arrives is not None
                start = max(stream.at, arrives, self._free[stream.device])
                if start < soonest:
                    soonest, found = start, stream
        return found, soonest

    def _soonest_transfer(self) -> tuple[_Transfer | None, float]:
        soonest, found = float("inf"), None
        for source, leaving in self._leaving.items():
            if leaving:
                first = leaving[0]
                begin = max(first.ready, self._out[source], self._into[first.target])
                if begin < soonest:
                    soonest, found = begin, first
        return found, soonest

    def _work(self, stream: Stream, request: Request, start: float) -> None:
        assert request.amount is not None
        finish = start + request.amount
        stream.at = self._free[stream.device] = finish
        self.busy[stream.device] += request.amount
        self._add(Span(stream.device, request.what, start, finish))
        self._done(stream)
        self._settle(stream)

    def _transfer(self, moved: _Transfer, begin: float) -> None:
        request, source, target = moved.request, moved.source, moved.target
        assert request.amount is not None
        latency, speed = self._line(source, target)
        seconds = request.amount / speed
        if CLIENT in (source, target):
            finish = begin + seconds
            arrival = finish + latency
        else:
            finish = arrival = begin + latency + seconds
        self._out[source] = self._into[target] = finish
        before = self.traffic.get((source, target), Traffic(0, 0, 0.0))
        size = int(request.amount)
        self.traffic[source, target] = Traffic(before.bytes + size, before.values + 1, before.seconds + finish - begin)
        self._add(Span(f"{source} → {target}", request.what, begin, arrival, size))
        if request.kind == "send":
            assert request.way is not None
            request.way.arrived[request.position] = arrival
        elif request.kind == "upload":
            request.arrives = arrival
        else:
            request.finished = arrival
        self._settle(moved.stream)

    def _settle(self, stream: Stream) -> None:
        """Let the stream do what takes neither a device nor a port."""
        while stream.waiting:
            request = stream.waiting[0]
            if request.kind == "work" or request.arrives is None:
                return
            if request.kind == "receive":
                assert request.way is not None
                if request.position not in request.way.arrived:
                    return
                stream.at = max(stream.at, request.way.arrived.pop(request.position))
            stream.at = max(stream.at, request.arrives)
            self._done(stream)
            if request.kind == "send":
                self._leave(stream, request)
            elif request.kind == "fetch":
                self._leaving[stream.device].append(_Transfer(stream.device, CLIENT, stream.at, request, stream))
            elif request.kind == "ask":
                request.finished = stream.at + self._line(stream.device, CLIENT)[0]

    def _leave(self, stream: Stream, request: Request) -> None:
        assert request.way is not None
        target, request.position = request.way.target, request.way.sent
        request.way.sent += 1
        if target.device != stream.device:
            self._leaving[stream.device].append(_Transfer(stream.device, target.device, stream.at, request, target))
            return
        request.way.arrived[request.position] = stream.at
        if target is not stream:
            self._settle(target)

    def _done(self, stream: Stream) -> None:
        stream.waiting.popleft()
        self.pending -= 1

    def _add(self, span: Span) -> None:
        self.spans.append(span)
        self.latest = max(self.latest, span.finish)

    # --- counting -----------------------------------------------------------------------------------

    def restart(self) -> None:
        """Count from now on, when everything that was asked is done."""
        self.now = self.latest = self.origin = max(self.now, self.latest)
        self.spans.clear()
        self.traffic.clear()
        self.busy = dict.fromkeys(self.busy, 0.0)
