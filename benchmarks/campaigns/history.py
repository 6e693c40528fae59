"""What sessions did and saw, and what of it can't have been.

In the way of Elle's list-append: each register is a list, each update appends a value that nobody else ever writes, and
a read gives the whole list. So a read tells which updates happened, how often and in which order. A session is one
stream of work of its own: its reads must be those of its updates done one after the other, in the order it asked for
them, and of nothing else. An update after which the session saw no read may have happened or not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Operation: TypeAlias = Literal["append", "swap", "copy", "read"]
Anomaly: TypeAlias = Literal[
    "lost update",
    "double execution",
    "reordered",
    "misplaced",
    "cross-session read",
    "cross-tenant read",
    "garbage read",
]


@dataclass(frozen=True)
class Event:
    """``append`` adds ``value`` to ``register``; ``swap`` exchanges it with ``other``, ``copy`` makes it what ``other``
    is; ``read`` saw ``seen``, or is ``None`` where an error came instead. In the order of the session's calls."""

    session: str
    tenant: str
    operation: Operation
    register: str
    value: int = 0
    other: str = ""
    seen: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Found:
    """``at`` counts the session's events from 0."""

    anomaly: Anomaly
    session: str
    at: int
    register: str
    values: tuple[int, ...]
    due: tuple[int, ...]
    seen: tuple[int, ...]

    def __str__(self) -> str:
        return (
            f"{self.anomaly} in session {self.session}, event {self.at}, register {self.register}: {self.values}; "
            f"{self.seen} where {self.due} was due"
        )


def check(history: Iterable[Event]) -> list[Found]:
    """All that can't have been. Events of different sessions may come in any order. Raises :class:`ValueError` for a
    history that appends a value twice: it could prove nothing."""
    events = list(history)
    writers: dict[int, Event] = {}
    sessions: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        sessions[event.session].append(event)
        if event.operation == "append" and writers.setdefault(event.value, event) is not event:
            raise ValueError(f"the value {event.value} is appended twice")
    return [found for its in sessions.values() for found in _session(its, writers)]


def _session(events: Sequence[Event], writers: dict[int, Event]) -> Iterable[Found]:
    registers: defaultdict[str, tuple[int, ...]] = defaultdict(tuple)
    for at, event in enumerate(events):
        match event.operation:
            case "append":
                registers[event.register] += (event.value,)
            case "swap":
                one, other = registers[event.register], registers[event.other]
                registers[event.register], registers[event.other] = other, one
            case "copy":
                registers[event.register] = registers[event.other]
            case "read" if event.seen is not None and event.seen != registers[event.register]:
                due = registers[event.register]
                for anomaly, values in _differences(event, due, writers):
                    yield Found(anomaly, event.session, at, event.register, values, due, event.seen)


def _differences(
    read: Event, due: tuple[int, ...], writers: dict[int, Event]
) -> Iterable[tuple[Anomaly, tuple[int, ...]]]:
    assert read.seen is not None
    expected, seen = Counter(due), Counter(read.seen)
    more, less = seen - expected, expected - seen
    kinds: defaultdict[Anomaly, list[int]] = defaultdict(list)
    for value in more:
        writer = writers.get(value)
        if writer is None:
            kinds["garbage read"].append(value)
        elif writer.tenant != read.tenant:
            kinds["cross-tenant read"].append(value)
        elif writer.session != read.session:
            kinds["cross-session read"].append(value)
        elif expected[value]:
            kinds["double execution"].append(value)
        else:
            kinds["misplaced"].append(value)
    kinds["lost update"] += less
    if not more and not less:
        kinds["reordered"] += read.seen
    return [(anomaly, tuple(values)) for anomaly, values in kinds.items() if values]
