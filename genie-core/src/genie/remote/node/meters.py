"""What a node counts: plain integers per session, added up when somebody looks.

A session's thread alone writes its meter, without a lock. What the backend's session counts it may be asked one caller
at a time, so whoever looks asks it while its own thread waits for the client, or has that thread ask when its message
is done. Both are kept apart by two flags: each side sets its own, then reads the other's. That holds because the
interpreter runs one thread at a time and does not reorder what it runs.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from time import perf_counter_ns
from typing import Final, Protocol

import attrs
import structlog

from genie.wire import Kind

log = structlog.get_logger("genie.node")

STAGES: Final = ("queue", "receive", "plan", "execute", "fetch", "send")
MOST_TENANTS: Final = 32
OTHER: Final = "other"
_LONGEST_NAME = 64
_LOOK_SECONDS = 0.1  # that a look waits for sessions at work; then what they said last is told

# Bucket k holds what took less than 2**(13 + k) ns: the first ends at 8.2 µs, the last but one at 17 s.
_SHIFT = 13
_BUCKETS = 22
_ROW = 64  # longer than any number of nanoseconds: no check is needed where it is counted; the last entry is the sum
BOUNDS: Final = tuple((1 << (_SHIFT + k)) / 1e9 for k in range(_BUCKETS))

_KINDS = 64
_TIMED: Mapping[int, str] = {Kind.LOAD_PLAN: "plan", Kind.EXECUTE: "execute"}  # from the record's turn to its end
_FETCH = int(Kind.FETCH)

# Of what the backend's sessions count: what is added up over those that ended.
GROWING: Final = ("steps", "failed_steps", "batched_executions", "batched_members")


class Trace(Protocol):
    """Takes what a record took, in nanoseconds of ``perf_counter_ns``."""

    def add(self, kind: int, began: int, ended: int, *, plan: int, failed: bool) -> None: ...


@attrs.define
class Tally:
    """Sums over sessions. ``rows`` has per stage the counts of the buckets (not cumulated) and the nanoseconds."""

    requests: Counter[int] = attrs.field(factory=Counter)  # records by kind
    rows: dict[str, list[int]] = attrs.field(factory=lambda: {stage: [0] * _ROW for stage in STAGES})
    bytes_in: int = 0
    bytes_out: int = 0
    failures: int = 0
    plan_hits: int = 0
    iterations: int = 0
    sessions: int = 0  # ever
    grown: Counter[str] = attrs.field(factory=Counter)

    def add(self, meter: Meter) -> None:
        for kind, count in enumerate(meter.counts):
            if count:
                self.requests[kind] += count
        for stage, row in meter.rows.items():
            mine = self.rows[stage]
            for place, count in enumerate(row):
                if count:
                    mine[place] += count
        self.bytes_in += meter.bytes_in
        self.bytes_out += meter.bytes_out
        self.failures += meter.failures
        self.plan_hits += meter.plan_hits
        self.iterations += meter.iterations
        self.sessions += 1
        for name in GROWING:
            self.grown[name] += meter.said.get(name, 0)

    def copy(self) -> Tally:
        rows = {stage: list(row) for stage, row in self.rows.items()}
        return attrs.evolve(self, requests=Counter(self.requests), rows=rows, grown=Counter(self.grown))


class Meter:
    """Of one session. ``ask`` is what its backend's session says of itself; it is asked by one thread at a time."""

    __slots__ = (
        "_arrival",
        "_ask",
        "_began",
        "_bulk",
        "_busy",
        "_by_kind",
        "_fresh",
        "_lock",
        "_plan",
        "_visited",
        "_wanted",
        "bytes_in",
        "bytes_out",
        "counts",
        "failures",
        "iterations",
        "name",
        "plan_hits",
        "rows",
        "said",
        "tenant",
        "trace",
    )

    def __init__(self, name: str = "", ask: Callable[[], Mapping[str, int]] = dict) -> None:
        self.name = name
        self.tenant = OTHER
        self.counts = [0] * _KINDS
        self.rows = {stage: [0] * _ROW for stage in STAGES}
        self.bytes_in = self.bytes_out = self.failures = self.plan_hits = self.iterations = 0
        self.said: Mapping[str, int] = {}
        self.trace: Trace | None = None
        self._ask = ask
        self._by_kind: list[list[int] | None] = [None] * _KINDS
        for kind, stage in _TIMED.items():
            self._by_kind[kind] = self.rows[stage]
        self._arrival = self._began = self._bulk = 0
        self._plan = -1
        self._fresh: set[int] = set()  # plans that were never used
        self._busy = self._visited = False
        self._wanted: threading.Event | None = None
        self._lock = threading.Lock()

    # --- by the session's thread ------------------------------------------------------------------

    def enter(self) -> int:
        """The session is at work from now on. The time."""
        self._busy = True
        if self._visited:
            with self._lock:  # until the visitor has gone
                pass
        return perf_counter_ns()

    def bulk(self) -> None:
        """A message's bulk data begins to arrive."""
        self._bulk = self._began = self.enter()

    def arrived(self, size: int, bulk: int = 0) -> None:
        self._arrival = self._began = now = self.enter()
        self.bytes_in += size + bulk
        if bulk:
            _count(self.rows["receive"], now - self._bulk)

    def loaded(self, plan: int) -> None:
        self._fresh.add(plan)
        self._plan = plan

    def uses(self, plan: int) -> None:
        self._plan = plan
        if self._fresh and plan in self._fresh:
            self._fresh.remove(plan)
        else:
            self.plan_hits += 1

    def done(self, kind: int) -> None:
        """A record was dealt with."""
        now = perf_counter_ns()
        self.counts[kind] += 1
        row = self._by_kind[kind]
        if row is not None:
            took = now - self._began
            row[(took >> _SHIFT).bit_length()] += 1
            row[-1] += took
        if self.trace is not None:
            self.trace.add(kind, self._began, now, plan=self._plan, failed=False)
        self._began = now

    def answered(self, kind: int, size: int, made: int, failed: bool) -> None:
        """An answer of ``size`` bytes, complete at ``made``, has been sent."""
        now = perf_counter_ns()
        began = self._began
        rows = self.rows
        row, took = rows["queue"], began - self._arrival
        row[(took >> _SHIFT).bit_length()] += 1
        row[-1] += took
        if kind == _FETCH:
            row, took = rows["fetch"], made - began
            row[(took >> _SHIFT).bit_length()] += 1
            row[-1] += took
        row, took = rows["send"], now - made
        row[(took >> _SHIFT).bit_length()] += 1
        row[-1] += took
        self.bytes_out += size
        if failed:
            self.failures += 1
        self.counts[kind] += 1
        if self.trace is not None:
            self.trace.add(kind, began, now, plan=-1, failed=failed)
        self._began = now

    def iterated(self, size: int, made: int) -> None:
        """An iteration of a loop, complete at ``made``, has been told in an answer of ``size`` bytes."""
        now = perf_counter_ns()
        self.iterations += 1
        self.bytes_out += size
        _count(self.rows["execute"], made - self._began)
        _count(self.rows["send"], now - made)
        if self.trace is not None:
            self.trace.add(Kind.LOOPED, self._began, now, plan=self._plan, failed=False)
        self._began = now

    def leave(self) -> None:
        """The message is done; the session waits for the next."""
        while True:
            if self._wanted is not None:
                self._say()
            self._busy = False
            if self._wanted is None:
                return
            self.enter()  # somebody came between the two, saw it at work, and waits

    def end(self) -> None:
        """The last word: nobody asks the backend's session from now on."""
        self.enter()
        self._say()

    def _say(self) -> None:
        wanted, self._wanted = self._wanted, None
        self._hear()
        if wanted is not None:
            wanted.set()

    def _hear(self) -> None:
        try:
            with structlog.contextvars.bound_contextvars(session=self.name):
                self.said = dict(self._ask())
        except Exception as error:  # a session that failed tells no more; what it said before stands
            log.debug("no counters", session=self.name, reason=str(error))

    # --- by those who look ------------------------------------------------------------------------

    def at_work(self) -> bool:
        return self._busy

    def visit(self) -> threading.Event | None:
        """Learn what the backend's session counts. If it is at work: an event, set when it has been told."""
        with self._lock:
            self._visited = True
            try:
                if self.at_work():
                    event = self._wanted = self._wanted or threading.Event()
                    if self.at_work():  # still: it has not missed the wish
                        return event
                    self._wanted = None
                self._hear()
                return None
            finally:
                self._visited = False


def _count(row: list[int], took: int) -> None:
    row[(took >> _SHIFT).bit_length()] += 1
    row[-1] += took


class Meters:
    """Of a node: its sessions' meters, and the sums of those that have ended. Any thread may call."""

    def __init__(self) -> None:
        self.started = time.time()
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._open: dict[str, Meter] = {}
        self._ended: dict[str, Tally] = {}  # by tenant
        self._refused: Counter[str] = Counter()
        self._resumed = 0
        self._largest: dict[str, int] = {}  # by device: the most memory a session that ended ever had
        self._devices: dict[str, str] = {}

    def opened(self, meter: Meter, tenant: str, device: str) -> None:
        with self._lock:
            meter.tenant = self._tenant(tenant)
            self._open[meter.name] = meter
            self._devices[meter.name] = device

    def closed(self, meter: Meter) -> None:
        with self._lock:
            if self._open.pop(meter.name, None) is None:
                return
            device = self._devices.pop(meter.name)
            self._ended.setdefault(meter.tenant, Tally()).add(meter)
            self._largest[device] = max(self._largest.get(device, 0), meter.said.get("peak_memory_bytes", 0))

    def refused(self, reason: str) -> None:
        """``reason`` is one of few: a class of :mod:`genie.errors`."""
        with self._lock:
            self._refused[reason] += 1

    def came_back(self) -> None:
        """A client, to its session."""
        with self._lock:
            self._resumed += 1

    def _tenant(self, name: str) -> str:
        known = {*self._ended, *(meter.tenant for meter in self._open.values())} - {OTHER}
        return name if name in known or len(known) < MOST_TENANTS else OTHER

    def look(self) -> Look:
        """All of it now. Sessions at work are waited for shortly: of those the look has what they said last."""
        with self._looking:  # one at a time, or two would wait for one event each
            with self._lock:
                meters = list(self._open.values())
            deadline = time.monotonic() + _LOOK_SECONDS
            for event in [event for meter in meters if (event := meter.visit()) is not None]:
                event.wait(max(deadline - time.monotonic(), 0.0))
            with self._lock:
                tenants = {tenant: tally.copy() for tenant, tally in self._ended.items()}
                largest = dict(self._largest)
                for name, meter in self._open.items():
                    tenants.setdefault(meter.tenant, Tally()).add(meter)
                    device, peak = self._devices[name], meter.said.get("peak_memory_bytes", 0)
                    largest[device] = max(largest.get(device, 0), peak)
                return Look(dict(self._open), tenants, dict(self._refused), largest, self._resumed)


@attrs.frozen
class Look:
    """``open`` by session; ``tenants`` with their sessions that ended; ``largest`` peak of memory by device;
    ``resumed``: how often clients came back."""

    open: Mapping[str, Meter]
    tenants: Mapping[str, Tally]
    refused: Mapping[str, int]
    largest: Mapping[str, int]
    resumed: int


def named(client: str) -> str:
    """Whose session it is, as far as a client says itself: its name without the number of the process."""
    name, _, process = client.rpartition(":")
    name = name if name and process.isdigit() else client
    text = "".join(each for each in name[:_LONGEST_NAME] if each.isprintable() and each not in '"\\')
    return text or OTHER


def cumulated(row: list[int]) -> tuple[tuple[int, ...], int, float]:
    """Of a tally's row: how many took at most each of ``BOUNDS``, how many there were, and the sum in seconds."""
    counts, total = [], 0
    for count in row[:_BUCKETS]:
        total += count
        counts.append(total)
    return tuple(counts), total + sum(row[_BUCKETS:-1]), row[-1] / 1e9
