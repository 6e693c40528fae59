"""One session's side of its tenant's quotas: when it may go on. Back-pressure, not errors: a session that waits here
reads nothing, and the transport holds its client back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from genie.errors import ConnectionLost, LimitExceeded
from genie.tenancy.accounts import Account, Tenancy
from genie.tenancy.bucket import Bucket
from genie.tenancy.quotas import Priority

_LOOK_SECONDS = 0.5  # between two looks whether the session was stopped, or its client is gone
_STOPPED = "the session was stopped while its tenant's quota held it back"
_LEFT = "the client is gone, while its tenant's quota held it back"


def _never() -> bool:
    return False


class Pace:
    """By the session's thread, but for :meth:`stop`."""

    def __init__(self, tenancy: Tenancy, account: Account, priority: Priority) -> None:
        self.account = account
        self.priority = priority
        self._tenancy = tenancy
        self._stopped = threading.Event()
        self._at_work = False
        self._plans = 0
        self._plan_bytes = 0

    def arrived(self, size: int, gone: Callable[[], bool] = _never) -> None:
        """A message of ``size`` bytes is here, or its bulk data is about to be read. Raises :class:`ConnectionLost` if
        the session is stopped meanwhile, or its client is ``gone``, which is asked now and then."""
        self._tenancy.now_and_then()
        account = self.account
        if not account.quota.paced:
            return
        self._begin(gone)
        if account.quota.receive:
            self._pay(account.receive, size, gone)

    def answers(self, size: int, gone: Callable[[], bool] = _never) -> None:
        """An answer of ``size`` bytes is to be sent. Raises as :meth:`arrived`."""
        if self.account.quota.send:
            self._pay(self.account.send, size, gone)

    def done(self) -> None:
        """The message is done."""
        if self._at_work:
            account = self.account
            with account.changed:
                self._at_work = False
                account.at_work -= 1
                account.changed.notify()

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """The session waits for another one, which may be its tenant's: that one's message is let in meanwhile."""
        was = self._at_work
        self.done()
        try:
            yield
        finally:
            if was:
                self._begin()

    def plan(self, size: int) -> None:
        """A plan of ``size`` bytes is to be kept. Raises :class:`LimitExceeded`."""
        account = self.account
        with account.changed:
            quota = account.quota
            if quota.plans and account.plans >= quota.plans:
                raise LimitExceeded(
                    f"{account.title} has {account.plans} of {quota.plans} plans",
                    hint="end sessions that are not needed; a program that changes at each step makes many plans",
                )
            if quota.plan_bytes and account.plan_bytes + size > quota.plan_bytes:
                raise LimitExceeded(
                    f"a plan of {size} bytes: {account.title} has {account.plan_bytes} of its {quota.plan_bytes} bytes "
                    "of plans",
                    hint="end sessions that are not needed, or ask the node's operator for a larger quota",
                )
            account.plans += 1
            account.plan_bytes += size
            self._plans += 1
            self._plan_bytes += size

    def stop(self) -> None:
        """From any thread: it waits no longer."""
        self._stopped.set()

    def close(self) -> None:
        """The session is over."""
        self.done()
        account = self.account
        with account.changed:
            account.plans -= self._plans
            account.plan_bytes -= self._plan_bytes
            self._plans = self._plan_bytes = 0

    def _begin(self, gone: Callable[[], bool] = _never) -> None:
        account = self.account
        if self._at_work or not account.quota.in_flight:
            return

        def room() -> bool:
            most = account.quota.in_flight
            return not most or account.at_work < most

        began = 0.0
        while True:
            with account.changed:
                if not room():
                    began = began or time.monotonic()
                    account.changed.wait_for(room, _LOOK_SECONDS)
                if room():
                    account.at_work += 1
                    self._at_work = True
                    account.delayed += time.monotonic() - began if began else 0.0
                    return
            self._check(gone)

    def _check(self, gone: Callable[[], bool]) -> None:
        if self._stopped.is_set():
            raise ConnectionLost(_STOPPED)
        if gone():
            raise ConnectionLost(_LEFT)

    def _pay(self, bucket: Bucket, size: int, gone: Callable[[], bool]) -> None:
        account = self.account
        with account.changed:
            seconds = bucket.wait()
            bucket.take(size)
            account.delayed += seconds
        while seconds > 0:
            began = time.monotonic()
            self._stopped.wait(min(seconds, _LOOK_SECONDS))
            seconds -= time.monotonic() - began
            if seconds > 0 or self._stopped.is_set():
                self._check(gone)
