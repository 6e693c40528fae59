"""Who comes in next, where there is no room for all who want to."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Final

import attrs

from genie.errors import BackendUnavailable, ConnectionLost, GenieError, LimitExceeded
from genie.tenancy.accounts import Account, Tenancy
from genie.tenancy.quotas import Priority

MOST_WAITING: Final = 64
_EACH_TENANTS: Final = MOST_WAITING // 4  # while others wait, too, a flood of one tenant's takes no more of the queue
_TOLD_SECONDS = 2.0  # between two signs of life
_LOOK_SECONDS = 0.5  # between two looks whether the client is still there


@attrs.frozen
class Place:
    """Where somebody is in the queue, counted from 1, of how many, for how long, and why there is no room."""

    position: int
    waiting: int
    seconds: float
    tenant: str = ""
    priority: Priority = Priority.INTERACTIVE
    reason: str = ""


@attrs.define(eq=False)
class _Comer:
    account: Account
    priority: Priority
    number: int
    since: float
    admitted: bool = False


class Admission:
    """At most ``most()`` sessions, each within its tenant's quota; whoever finds no room waits if they wish to: by
    priority, then the tenant with fewest sessions for its weight, then who came first. Thread-safe."""

    def __init__(self, tenancy: Tenancy, most: Callable[[], int]) -> None:
        self._tenancy = tenancy
        self._most = most
        self._changed = threading.Condition()
        self._queue: list[_Comer] = []
        self._held = 0
        self._numbers = itertools.count()
        self._closed: GenieError | None = None
        self.waits = 0  # clients that had to wait, ever
        self.waited = 0.0  # seconds, all of them together
        self.gave_up = 0

    def enter(
        self,
        account: Account,
        priority: Priority,
        seconds: float,
        tell: Callable[[Place], None],
        gone: Callable[[], bool],
    ) -> None:
        """Returns when there is room, which is then taken: :meth:`leave` gives it back. Meanwhile ``tell`` is called
        with the place in the queue, whenever it changes and as a sign of life.

        Raises :class:`LimitExceeded` after ``seconds``, or at once when the queue is full, :class:`BackendUnavailable`
        when the node takes nobody any more, :class:`ConnectionLost` when the client is ``gone``, what ``tell`` raises.
        """
        comer = _Comer(account, priority, next(self._numbers), time.monotonic())
        with self._changed:
            self._check_open()
            self._queue.append(comer)
            self._admit()
            if comer not in self._queue:
                return
            try:
                self._check_queue(comer, seconds)
            except LimitExceeded:
                self._queue.remove(comer)
                raise
            self.waits += 1
        try:
            self._await(comer, seconds, tell, gone)
        except BaseException:
            with self._changed:
                self.gave_up += 1
                if comer.admitted:
                    self._give_back(account)
                else:
                    self._queue.remove(comer)
                self._admit()
                self._changed.notify_all()
            raise
        finally:
            with self._changed:
                self.waited += time.monotonic() - comer.since

    def leave(self, account: Account) -> None:
        with self._changed:
            self._give_back(account)
            self._admit()
            self._changed.notify_all()

    def look(self) -> None:
        """Quotas have changed."""
        with self._changed:
            self._admit()
            self._changed.notify_all()

    def close(self, reason: GenieError) -> None:
        """Nobody comes in any more; whoever waits is told the reason."""
        with self._changed:
            self._closed = self._closed or reason
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def places(self) -> tuple[Place, ...]:
        with self._changed:
            now = time.monotonic()
            return tuple(
                Place(index + 1, len(self._queue), now - comer.since, comer.account.tenant, comer.priority)
                for index, comer in enumerate(self._ordered())
            )

    # --- under the lock ---------------------------------------------------------------------------

    def _ordered(self) -> list[_Comer]:
        def key(comer: _Comer) -> tuple[int, float, int]:
            return comer.priority.rank, comer.account.sessions / comer.account.quota.weight, comer.number

        return sorted(self._queue, key=key)

    def _admit(self) -> None:
        while True:
            comer = next((each for each in self._ordered() if not self._full(each.account)), None)
            if comer is None:
                return
            self._queue.remove(comer)
            comer.admitted = True
            comer.account.sessions += 1
            self._held += 1

    def _full(self, account: Account) -> str:
        """Why there is no room; "" if there is."""
        quota = account.quota
        if quota.sessions and account.sessions >= quota.sessions:
            return f"{account.title} has {account.sessions} of {quota.sessions} sessions"
        most = self._most()
        if self._held >= most:
            return f"the node has {self._held} of {most} sessions"
        kept = self._reserved_for_others(account)
        if account.sessions >= quota.reserved and self._held + kept >= most:
            return f"the node has {self._held} of {most} sessions, and {kept} are reserved for other tenants"
        return ""

    def _reserved_for_others(self, account: Account) -> int:
        """Sessions that others have a claim to, and do not use."""
        here = {each.tenant: each.sessions for each in self._tenancy.accounts()}
        return sum(
            max(quota.reserved - here.get(tenant, 0), 0)
            for tenant, quota in self._tenancy.tenants.quotas.items()
            if tenant != account.tenant
        )

    def _give_back(self, account: Account) -> None:
        account.sessions -= 1
        self._held -= 1

    def _check_open(self) -> None:
        if self._closed is not None:
            raise BackendUnavailable(self._closed.message, where=self._closed.where, hint=self._closed.hint)

    def _check_queue(self, comer: _Comer, seconds: float) -> None:
        full = self._full(comer.account)
        if seconds <= 0:
            raise LimitExceeded(full, hint="try again later, or wait: `admission_seconds`")
        mine = sum(each.account is comer.account for each in self._queue)
        if len(self._queue) > MOST_WAITING or mine > _EACH_TENANTS:
            raise LimitExceeded(f"{full}, and {len(self._queue) - 1} clients wait already", hint="try again later")

    def _await(self, comer: _Comer, seconds: float, tell: Callable[[Place], None], gone: Callable[[], bool]) -> None:
        deadline = comer.since + seconds
        told, told_at = 0, 0.0
        while True:
            with self._changed:
                if comer.admitted:
                    return
                self._check_open()
                now = time.monotonic()
                full = self._full(comer.account) or "others are first"
                place = Place(self._ordered().index(comer) + 1, len(self._queue), now - comer.since, reason=full)
            if gone():
                raise ConnectionLost("the client hung up while it waited for a place")
            if now >= deadline:
                raise LimitExceeded(
                    f"{full}; {seconds:g} s were not enough: place {place.position} of {place.waiting} that wait",
                    hint="try again later, use another node, or wait for longer: `admission_seconds`",
                )
            if place.position != told or now - told_at >= _TOLD_SECONDS:
                tell(place)
                told, told_at = place.position, now
            with self._changed:
                if not comer.admitted and self._closed is None and self._ordered().index(comer) + 1 == told:
                    self._changed.wait(max(min(_LOOK_SECONDS, deadline - now), 0.001))
