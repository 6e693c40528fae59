"""The file that says what tenants may have: what it means, what is refused, and that it may change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from genie.errors import ConfigError
from genie.security import Identity
from genie.tenancy.accounts import Tenancy, tenant_of
from genie.tenancy.quotas import Priority, Quota, TenantsFile, load, priority_of

GOOD = """
default: {sessions: 4, memory: 8GiB, weight: 2}
model: 1.5 GB
tenants:
  alice: {memory: 40GiB, weight: 4, receive: 100MB, send: 0, priority: realtime, reserved: 2, share_weights: true}
  bob: {in_flight: 3, plans: 100, plan_bytes: 1048576, priority: batch}
"""


def written(directory: Path, text: str) -> Path:
    path = directory / "tenants.yaml"
    path.write_text(text)
    return path


def test_what_a_file_says(tmp_path: Path) -> None:
    tenants = load(written(tmp_path, GOOD), most_sessions=2)
    assert tenants.default == tenants.of("carol") == Quota(sessions=4, memory=8 << 30, weight=2)
    assert tenants.of("alice") == Quota(
        sessions=4,
        memory=40 << 30,
        weight=4,
        receive=100_000_000,
        priority=Priority.REALTIME,
        reserved=2,
        share_weights=True,
    )
    assert tenants.of("bob") == Quota(
        sessions=4, memory=8 << 30, weight=2, in_flight=3, plans=100, plan_bytes=1 << 20, priority=Priority.BATCH
    )
    assert load(written(tmp_path, "{}")).of("anybody") == Quota()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD[:60], "malformed"),
        ("", "malformed"),
        ("default: {}\ntenants: {alice: {weight: 1", "line 2, column"),
        ("tenants: {alice: {memory: 1TB, memry: 2}}", "memry"),
        ("tenants: {alice: {memory: lots}}", "alice: memory: 'lots' is no size"),
        ("tenants: {alice: {memory: -1}}", "no size"),
        (f"tenants: {{alice: {{memory: {'9' * 400}GiB}}}}", "no size"),
        ("tenants: {alice: {weight: !!bool maybe}}", "malformed"),
        ("tenants: {alice: {weight: !!timestamp soon}}", "malformed"),
        ("tenants: {alice: {sessions: !!int ''}}", "malformed"),
        ("tenants: {alice: {memory: 1000}}", "alice: memory is 1000; the least is 1048576"),
        ("tenants: {alice: {send: 10kB}}", "least is 65536"),
        ("tenants: {alice: {weight: 0}}", "0.01"),
        ("tenants: {alice: {weight: .nan}}", "malformed"),
        ("tenants: {alice: {priority: urgent}}", "urgent"),
        ("tenants: {alice: {}, bob: {weight: heavy}, carol: {}}", "'bob': Expected `float"),
        ("tenants: {alice: {sessions: 2, reserved: 3}}", "alice: 3 sessions are reserved of at most 2"),
        ("tenants: {alice: {reserved: 9}}", "9 sessions are reserved of the 8"),
        ("default: {reserved: 1}", "not for everybody"),
        ("tenants: {'a b': {}}", "no name for a tenant"),
        ("{model: 2GiB, tenants: {alice: {memory: 1GiB}}}", "alice: a memory quota of 1073741824 bytes has no room"),
        ("{model: 2GiB, default: {memory: 1GiB}}", "default: a memory quota"),
    ],
)
def test_what_is_no_tenants_file(tmp_path: Path, text: str, reason: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path, most_sessions=8)
    assert reason in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.where == str(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        TenantsFile(tmp_path / "none.yaml")


def test_changes_hold_for_those_who_are_here_and_mistakes_change_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, "tenants: {alice: {weight: 2}}")
    told: list[tuple[str, str]] = []
    tenancy = Tenancy(TenantsFile(path, lambda what, problem: told.append((what, problem))))
    heard: list[str] = []
    tenancy.told = lambda account: heard.append(account.tenant)
    alice, bob = (tenancy.account(Identity(tenant=name)) for name in ("alice", "bob"))
    assert alice.quota.weight == 2

    def change(text: str) -> None:
        new = path.with_suffix(".new")
        new.write_text(text)
        os.replace(new, path)
        tenancy.refresh()

    change("tenants: {alice: {weight: 5, send: 1MB}}")
    assert (alice.quota.weight, alice.quota.send, bob.quota) == (5, 1_000_000, Quota())
    assert heard == ["alice"]
    change("tenants: {alice: {weight")
    assert alice.quota.weight == 5
    assert [what for what, problem in told if problem] == ["tenants"]
    path.unlink()
    tenancy.refresh()
    assert alice.quota.weight == 5
    assert heard == ["alice"]


def test_a_priority_is_never_higher_than_the_tenants() -> None:
    quota = Quota(priority=Priority.INTERACTIVE)
    assert priority_of(quota, "") is priority_of(quota, "realtime") is Priority.INTERACTIVE
    assert priority_of(quota, "batch") is Priority.BATCH
    with pytest.raises(ConfigError, match="no priority"):
        priority_of(quota, "urgent")


def test_whose_a_session_is() -> None:
    assert tenant_of(Identity(name="t1", tenant="lab", certificate="ws3")) == "lab"
    assert tenant_of(Identity(certificate="ws3")) == "ws3"
    assert tenant_of(Identity(peer="10.0.0.7:51422")) == ""
