"""Who comes in, who waits, in which order, and how waiting ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from genie.errors import BackendUnavailable, ConnectionLost, GenieError, LimitExceeded
from genie.security import Identity
from genie.tenancy.accounts import Account, Tenancy
from genie.tenancy.admission import MOST_WAITING, Admission, Place
from genie.tenancy.quotas import Priority, TenantsFile

DEADLINE = 20.0
REALTIME, INTERACTIVE, BATCH = Priority


class Comer:
    """A client that waits on a thread of its own; ``came`` is in the order in which they got in."""

    def __init__(
        self,
        admission: Admission,
        account: Account,
        came: list[str],
        name: str,
        priority: Priority = INTERACTIVE,
        seconds: float = DEADLINE,
    ) -> None:
        self.places: list[int] = []
        self._news = threading.Condition()
        self.left = False
        self.error: GenieError | None = None
        self._thread = threading.Thread(target=self._enter, args=(admission, account, came, name, priority, seconds))
        self._thread.start()

    def _enter(
        self,
        admission: Admission,
        account: Account,
        came: list[str],
        name: str,
        priority: Priority,
        seconds: float,
    ) -> None:
        try:
            admission.enter(account, priority, seconds, self._tell, lambda: self.left)
            came.append(name)
            admission.leave(account)
        except GenieError as error:
            self.error = error

    def _tell(self, place: Place) -> None:
        with self._news:
            self.places.append(place.position)
            self._news.notify_all()

    def waits(self, position: int = 0) -> Comer:
        """Returns when it has been told a place, or that it is at this one."""
        with self._news:
            assert self._news.wait_for(lambda: self.places and position in (0, self.places[-1]), DEADLINE)
        return self

    def ends(self) -> Comer:
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        return self


@pytest.fixture
def tenancy(tmp_path: Path) -> Callable[[str], Tenancy]:
    def make(text: str) -> Tenancy:
        path = tmp_path / "tenants.yaml"
        path.write_text(text)
        return Tenancy(TenantsFile(path))

    return make


def account(tenancy: Tenancy, name: str) -> Account:
    return tenancy.account(Identity(tenant=name))


def enter(admission: Admission, account: Account, priority: Priority = INTERACTIVE) -> None:
    """At once, or not at all."""
    admission.enter(account, priority, 0.0, lambda place: None, lambda: False)


def test_priority_goes_first_then_weight_then_who_came_first(tenancy: Callable[[str], Tenancy]) -> None:
    known = tenancy("tenants: {heavy: {weight: 4}, light: {weight: 1}}")
    admission = Admission(known, lambda: 5)
    heavy, light = account(known, "heavy"), account(known, "light")
    for each in (heavy, heavy, light, light, light):
        enter(admission, each)
    came: list[str] = []
    comers = [
        Comer(admission, light, came, "batch", BATCH).waits(),
        Comer(admission, light, came, "light 1").waits(),
        Comer(admission, light, came, "light 2").waits(),
        Comer(admission, heavy, came, "heavy").waits(),
        Comer(admission, light, came, "realtime", REALTIME).waits(),
    ]
    assert [place.priority for place in admission.places()] == [REALTIME, *[INTERACTIVE] * 3, BATCH]
    assert [place.tenant for place in admission.places()][:2] == ["light", "heavy"]
    comers[0].waits(5)  # it is told that others go first
    admission.leave(heavy)
    for comer in comers:
        comer.ends()
    assert came == ["realtime", "heavy", "light 1", "light 2", "batch"]
    assert comers[0].places[0] == 1
    assert admission.waiting == 0
    assert admission.waits == 5


def test_a_tenant_that_is_full_does_not_hold_up_others(tenancy: Callable[[str], Tenancy]) -> None:
    known = tenancy("tenants: {small: {sessions: 1}}")
    admission = Admission(known, lambda: 3)
    small, other = account(known, "small"), account(known, "other")
    enter(admission, small)
    came: list[str] = []
    waiting = Comer(admission, small, came, "small").waits()
    enter(admission, other)
    with pytest.raises(LimitExceeded, match="'small' has 1 of 1 sessions"):
        enter(admission, small)
    admission.leave(small)
    waiting.ends()
    assert came == ["small"]


def test_reserved_sessions_are_kept(tenancy: Callable[[str], Tenancy]) -> None:
    known = tenancy("tenants: {vip: {reserved: 2}}")
    admission = Admission(known, lambda: 3)
    vip, other = account(known, "vip"), account(known, "other")
    enter(admission, other)
    with pytest.raises(LimitExceeded, match="1 of 3 sessions, and 2 are reserved"):
        enter(admission, other)
    enter(admission, vip)
    enter(admission, vip)
    with pytest.raises(LimitExceeded, match="the node has 3 of 3 sessions"):
        enter(admission, vip)


def test_time_is_out(tenancy: Callable[[str], Tenancy]) -> None:
    known = tenancy("{}")
    admission = Admission(known, lambda: 1)
    whose = account(known, "a")
    enter(admission, whose)
    comer = Comer(admission, whose, [], "late", seconds=0.05).ends()
    assert isinstance(comer.error, LimitExceeded)
    assert "place 1 of 1" in comer.error.message
    assert "admission_seconds" in comer.error.hint
    assert (admission.waiting, admission.gave_up, whose.sessions) == (0, 1, 1)
    admission.leave(whose)
    enter(admission, whose)  # nothing was lost


def test_a_client_that_leaves_makes_place_for_others(tenancy: Callable[[str], Tenancy]) -> None:
    known = tenancy("{}")
    admission = Admission(known, lambda: 1)
    whose = account(known, "a")
    enter(admission, whose)
    came: list[str] = []
    first, second = (Comer(admission, whose, came, name).waits() for name in ("first", "second"))
    first.left = True
    assert isinstance(first.ends().error, ConnectionLost)
    second.waits(1)
    admission.leave(whose)
    second.ends()
    assert came == ["second"]


def test_a_node_that_drains_lets_nobody_wait(tenancy: Callable[[str], Tenancy]) -> None:
    known = tenancy("{}")
    admission = Admission(known, lambda: 1)
    whose = account(known, "a")
    enter(admission, whose)
    comer = Comer(admission, whose, [], "late").waits()
    admission.close(BackendUnavailable("shutting down"))
    assert isinstance(comer.ends().error, BackendUnavailable)
    with pytest.raises(BackendUnavailable, match="shutting down"):
        enter(admission, whose)


def test_a_tenants_flood_leaves_room_in_the_queue(tenancy: Callable[[str], Tenancy]) -> None:
    known = tenancy("{}")
    admission = Admission(known, lambda: 1)
    flood, other = account(known, "flood"), account(known, "other")
    enter(admission, other)
    crowd = [Comer(admission, flood, [], "flood").waits() for _ in range(MOST_WAITING // 4)]
    one_more = Comer(admission, flood, [], "too many").ends()
    assert isinstance(one_more.error, LimitExceeded)
    assert "clients wait already" in one_more.error.message
    came: list[str] = []
    let_in = Comer(admission, other, came, "other").waits()
    admission.close(BackendUnavailable("over"))
    for comer in (*crowd, let_in):
        comer.ends()


def test_a_larger_quota_lets_in_who_waits(tenancy: Callable[[str], Tenancy], tmp_path: Path) -> None:
    known = tenancy("tenants: {a: {sessions: 1}}")
    admission = Admission(known, lambda: 9)
    known.told = lambda _: admission.look()
    whose = account(known, "a")
    enter(admission, whose)
    came: list[str] = []
    comer = Comer(admission, whose, came, "a").waits()
    (tmp_path / "tenants.yaml").write_text("tenants: {a: {sessions: 22}}")
    known.refresh()
    comer.ends()
    assert came == ["a"]
