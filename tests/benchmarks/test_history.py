"""The history checker finds what can't have been, and nothing else."""

from __future__ import annotations

from collections import defaultdict

import pytest
from campaigns.history import Event, check
from hypothesis import given
from hypothesis import strategies as st


def _append(session: str, value: int, register: str = "a", tenant: str = "red") -> Event:
    return Event(session, tenant, "append", register, value)


def _read(session: str, *seen: int, register: str = "a", tenant: str = "red") -> Event:
    return Event(session, tenant, "read", register, seen=seen)


def _found(*events: Event) -> list[tuple[str, tuple[int, ...]]]:
    return [(found.anomaly, found.values) for found in check(events)]


def test_a_serial_history() -> None:
    swap, copy = Event("s", "red", "swap", "a", other="b"), Event("s", "red", "copy", "c", other="b")
    history = [_append("s", 1), _append("s", 2), swap, _append("s", 3), copy, _append("s", 4, "c")]
    reads = [_read("s", 3), _read("s", 1, 2, register="b"), _read("s", 1, 2, 4, register="c"), _read("s", register="d")]
    assert not _found(*history, *reads)


def test_sessions_are_apart_and_may_be_interleaved() -> None:
    assert not _found(_append("s", 1), _append("t", 2), _read("s", 1), _read("t", 2))


def test_an_error_in_place_of_a_read_proves_nothing() -> None:
    assert not _found(_append("s", 1), Event("s", "red", "read", "a", seen=None))


@pytest.mark.parametrize(
    ("seen", "anomaly", "values"),
    [
        ((1, 3), "lost update", (2,)),
        ((1, 2), "lost update", (3,)),
        ((1, 2, 2, 3), "double execution", (2,)),
        ((1, 3, 2), "reordered", (1, 3, 2)),
        ((1, 2, 3, 9), "garbage read", (9,)),
        ((1, 2, 3, 7), "cross-session read", (7,)),
        ((1, 2, 3, 8), "cross-tenant read", (8,)),
        ((1, 2, 3, 4), "misplaced", (4,)),
    ],
)
def test_what_cannot_have_been(seen: tuple[int, ...], anomaly: str, values: tuple[int, ...]) -> None:
    others = [_append("t", 7), _append("u", 8, tenant="blue"), _append("s", 4, "b")]
    mine = [_append("s", 1), _append("s", 2), _append("s", 3)]
    assert _found(*others, *mine, _read("s", *seen)) == [(anomaly, values)]


def test_an_exchange_done_twice() -> None:
    swap = Event("s", "red", "swap", "a", other="b")
    found = _found(_append("s", 1), _append("s", 2, "b"), swap, _read("s", 1), _read("s", 2, register="b"))
    assert found == [("misplaced", (1,)), ("lost update", (2,)), ("misplaced", (2,)), ("lost update", (1,))]


def test_a_read_that_is_older_than_one_before() -> None:
    assert _found(_append("s", 1), _read("s", 1), _read("s")) == [("lost update", (1,))]


def test_a_history_that_could_prove_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="appended twice"):
        check([_append("s", 1), _append("t", 1)])


_NAMES = st.sampled_from(["a", "b", "c"])
_STEPS = st.lists(
    st.tuples(st.sampled_from(["s", "t"]), st.sampled_from(["append", "swap", "copy", "read"]), _NAMES, _NAMES)
)


def _ran(steps: list[tuple[str, str, str, str]]) -> list[Event]:
    """A node as it should be, done by Python's lists."""
    lists: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    events = []
    for number, (session, what, one, other) in enumerate(steps):
        mine, its = (session, one), (session, other)
        if what == "append":
            lists[mine].append(number)
            events.append(_append(session, number, one))
        elif what == "swap":
            lists[mine], lists[its] = lists[its], lists[mine]
            events.append(Event(session, "red", "swap", one, other=other))
        elif what == "copy":
            lists[mine] = list(lists[its])
            events.append(Event(session, "red", "copy", one, other=other))
        else:
            events.append(_read(session, *lists[mine], register=one))
    return events


@given(_STEPS)
def test_what_a_node_should_do_is_never_found_fault_with(steps: list[tuple[str, str, str, str]]) -> None:
    assert not check(_ran(steps))


@given(_STEPS, st.data())
def test_any_other_read_is_found(steps: list[tuple[str, str, str, str]], data: st.DataObject) -> None:
    events = _ran(steps)
    reads = [place for place, event in enumerate(events) if event.operation == "read"]
    if not reads:
        return
    place = data.draw(st.sampled_from(reads))
    read = events[place]
    seen = data.draw(st.lists(st.integers(0, 20)).map(tuple).filter(lambda seen: seen != read.seen))
    events[place] = Event(read.session, read.tenant, "read", read.register, seen=seen)
    [found, *more] = check(events)
    assert {each.at for each in (found, *more)} == {found.at}
    assert found.seen == seen
