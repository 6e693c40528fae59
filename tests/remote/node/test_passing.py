"""A session that sends what others are slow to take holds up none of its tenant's other sessions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from genie.remote.node.session.failures import Failures
from genie.remote.node.session.passing import Passing
from genie.security import Identity
from genie.tenancy.accounts import Account, Tenancy
from genie.tenancy.pace import Pace
from genie.tenancy.quotas import Priority, TenantsFile
from genie.testing import NullBackend
from genie.wire import channels, snapshots


class _Channels:
    """Where a send may wait: it says how many of the tenant's messages are at work meanwhile."""

    told: object = None

    def __init__(self, account: Account) -> None:
        self.at_work: list[int] = []
        self._account = account

    def send(self, number: int, look: Callable[[], object], gone: Callable[[], bool]) -> None:
        self.at_work.append(self._account.at_work)


@pytest.mark.parametrize("memory", [False, True], ids=["value", "memory"])
def test_what_waits_for_a_receiver_is_not_at_work(tmp_path: Path, memory: bool) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text("default: {in_flight: 1}")
    tenancy = Tenancy(TenantsFile(path))
    account = tenancy.account(Identity(tenant="a"))
    pace = Pace(tenancy, account, Priority.INTERACTIVE)
    backend = NullBackend()
    session = backend.connect(backend.devices()[0])
    its = _Channels(account)
    none = cast(Any, None)
    passing = Passing(session, cast(Any, its), none, none, Failures(session.device), pace, lambda: False)
    pace.arrived(10)
    assert account.at_work == 1
    if memory:
        passing.send_memory(memoryview(snapshots.put_send(1, 2, 3)))
    else:
        passing.send(memoryview(channels.put_send(1, 2)))
    assert its.at_work == [0]
    assert account.at_work == 1
    session.close()
