"""Who is told what of a node's memory."""

from __future__ import annotations

import pytest

from genie.remote import NodeServer
from genie.remote.seen.holdings import holdings
from genie.remote.seen.metrics import Metrics
from genie.security import Identity, Scope
from genie.tenancy.seats import Usage
from genie.testing import MemoryTransport, NullBackend


def test_the_swap_by_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant is told of its own part, an operator of all."""
    used = {"alice": Usage(swap_bytes=5), "bob": Usage(swap_bytes=7), "carol": Usage(memory_bytes=9)}
    with NodeServer(NullBackend(), MemoryTransport(), "node:0") as node:
        monkeypatch.setattr(node.reception, "usage", lambda: used)
        assert holdings(node).swapped == {"alice": 5, "bob": 7}
        assert holdings(node, Identity(tenant="bob", scopes=frozenset({Scope.USE}))).swapped == {"bob": 7}
        assert holdings(node, Identity(scopes=frozenset({Scope.ADMIN}))).swapped == {"alice": 5, "bob": 7}
        assert b"# TYPE genie_tenant_swap_bytes gauge" in Metrics(node).text()
