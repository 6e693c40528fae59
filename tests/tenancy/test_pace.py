"""What holds a session back, and what it is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from genie.errors import ConnectionLost, LimitExceeded
from genie.security import Identity
from genie.tenancy.accounts import Account, Tenancy
from genie.tenancy.bucket import Bucket
from genie.tenancy.pace import Pace
from genie.tenancy.quotas import Priority, TenantsFile

DEADLINE = 20.0


@pytest.fixture
def session(tmp_path: Path) -> Callable[[str], Callable[[], Pace]]:
    """Sessions of one tenant with that quota."""

    def make(quota: str) -> Callable[[], Pace]:
        path = tmp_path / "tenants.yaml"
        path.write_text(f"default: {quota}")
        tenancy = Tenancy(TenantsFile(path))
        account = tenancy.account(Identity(tenant="a"))
        return lambda: Pace(tenancy, account, Priority.INTERACTIVE)

    return make


def on_a_thread(work: Callable[[], None]) -> tuple[threading.Thread, list[BaseException]]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except ConnectionLost as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def test_a_bucket_lets_its_rate_through() -> None:
    now = 0.0
    bucket = Bucket(100, clock=lambda: now)
    assert bucket.wait() == 0
    bucket.take(350)  # one second's worth was saved
    assert bucket.wait() == pytest.approx(2.5)
    now = 2.0
    assert bucket.wait() == pytest.approx(0.5)
    now = 60.0
    bucket.take(150)  # no more than a second's is saved
    assert bucket.wait() == pytest.approx(0.5)
    bucket.set_rate(200)
    assert bucket.wait() == pytest.approx(0.25)
    bucket.set_rate(0)
    bucket.take(1 << 40)
    assert bucket.wait() == 0


def test_so_many_messages_at_a_time(session: Callable[[str], Callable[[], Pace]]) -> None:
    make = session("{in_flight: 1}")
    first, second = make(), make()
    first.arrived(10)
    first.arrived(10)  # more of the same message
    thread, errors = on_a_thread(lambda: second.arrived(10))
    thread.join(0.05)
    assert thread.is_alive()
    first.done()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert not errors
    account: Account = first.account
    assert account.at_work == 1
    assert account.delayed > 0
    second.close()
    assert account.at_work == 0


def test_who_waits_for_another_session_lets_it_in(session: Callable[[str], Callable[[], Pace]]) -> None:
    make = session("{in_flight: 1}")
    first, second = make(), make()
    first.arrived(1)
    with first.elsewhere():
        second.arrived(1)
        second.done()
    assert first.account.at_work == 1
    first.done()


def test_stopping_ends_every_wait(session: Callable[[str], Callable[[], Pace]]) -> None:
    make = session("{in_flight: 1, receive: 64KiB}")
    first, second = make(), make()
    first.arrived(1 << 30)  # lets itself be paid for hours
    busy, errors = on_a_thread(lambda: second.arrived(1))
    owing, owing_errors = on_a_thread(lambda: first.arrived(1))
    for each in (first, second):
        each.stop()
    for thread in (busy, owing):
        thread.join(DEADLINE)
        assert not thread.is_alive()
    assert len(errors) == len(owing_errors) == 1


def test_plans_are_a_tenants_all_sessions_together(session: Callable[[str], Callable[[], Pace]]) -> None:
    make = session("{plans: 3, plan_bytes: 1000}")
    first, second = make(), make()
    first.plan(400)
    second.plan(400)
    with pytest.raises(LimitExceeded, match="800 of its 1000 bytes"):
        second.plan(300)
    second.plan(100)
    with pytest.raises(LimitExceeded, match="3 of 3 plans"):
        first.plan(1)
    second.close()
    first.plan(300)


def test_without_quotas_nothing_is_counted() -> None:
    tenancy = Tenancy()
    pace = Pace(tenancy, tenancy.account(Identity()), Priority.BATCH)
    pace.arrived(1 << 40)
    pace.answers(1 << 40)
    pace.plan(1 << 40)
    pace.done()
    assert pace.account.at_work == 0
