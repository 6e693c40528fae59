"""What tenants have and may have at one moment, as values: part of what a node is seen as."""

from __future__ import annotations

import msgspec

from genie.remote.node.reception import Reception
from genie.tenancy.accounts import Account
from genie.tenancy.seats import Usage

ANONYMOUS = "anonymous"  # all who have no name that was shown to be theirs


class AccountView(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant. Of each ``…_quota`` 0 is no limit. ``share`` is its part of the device time that all tenants had
    since the node started; ``delayed`` the seconds for which its messages were held back."""

    tenant: str
    priority: str
    weight: float
    sessions: int = 0
    sessions_quota: int = 0
    waiting: int = 0  # for a place
    memory_bytes: int = 0  # what is shared by its sessions counts once
    memory_quota: int = 0
    swap_bytes: int = 0  # of its values that left their device
    at_work: int = 0  # messages, where they have a quota
    in_flight_quota: int = 0
    plans: int = 0
    plans_quota: int = 0
    plan_bytes: int = 0
    plan_bytes_quota: int = 0
    receive_quota: int = 0  # bytes per second
    send_quota: int = 0
    device_seconds: float = 0.0
    share: float = 0.0
    delayed_seconds: float = 0.0


class WaitingView(msgspec.Struct, frozen=True, kw_only=True):
    """A client that waits for a place; ``position`` counts from 1."""

    position: int
    tenant: str
    priority: str
    seconds: float


class ReceptionView(msgspec.Struct, frozen=True, kw_only=True):
    """``waits``, ``waited_seconds`` and ``gave_up`` count from the node's start: clients that had to wait for a place,
    how long they did together, and those that did not get one."""

    accounts: tuple[AccountView, ...] = ()
    queue: tuple[WaitingView, ...] = ()
    waits: int = 0
    waited_seconds: float = 0.0
    gave_up: int = 0


def see(reception: Reception) -> ReceptionView:
    usage = reception.usage()
    total = sum(each.seconds for each in usage.values())
    queue = tuple(
        WaitingView(
            position=place.position,
            tenant=place.tenant or ANONYMOUS,
            priority=place.priority.value,
            seconds=place.seconds,
        )
        for place in reception.admission.places()
    )
    admission = reception.admission
    return ReceptionView(
        accounts=tuple(
            _account(account, usage.get(account.tenant, Usage()), total, queue)
            for account in reception.tenancy.accounts()
        ),
        queue=queue,
        waits=admission.waits,
        waited_seconds=admission.waited,
        gave_up=admission.gave_up,
    )


def _account(account: Account, used: Usage, total: float, queue: tuple[WaitingView, ...]) -> AccountView:
    quota, name = account.quota, account.tenant or ANONYMOUS
    return AccountView(
        tenant=name,
        priority=quota.priority.value,
        weight=quota.weight,
        sessions=account.sessions,
        sessions_quota=quota.sessions,
        waiting=sum(each.tenant == name for each in queue),
        memory_bytes=used.memory_bytes,
        memory_quota=quota.memory,
        swap_bytes=used.swap_bytes,
        at_work=account.at_work,
        in_flight_quota=quota.in_flight,
        plans=account.plans,
        plans_quota=quota.plans,
        plan_bytes=account.plan_bytes,
        plan_bytes_quota=quota.plan_bytes,
        receive_quota=quota.receive,
        send_quota=quota.send,
        device_seconds=used.seconds,
        share=used.seconds / total if total else 0.0,
        delayed_seconds=account.delayed,
    )
