"""A session with a node over memif devices, both in this process; ``test_ordinary_user.py`` runs it."""

from __future__ import annotations

import pytest
from integration import tiny_lm

import genie
import genie_pytorch  # noqa: F401  (makes the device)
from genie.remote import NodeServer
from genie_backend_dpdk import DpdkTransport
from genie_backend_local import LocalBackend


@pytest.mark.usefixtures("fresh_runtime")
def test_a_model_generates_the_same_tokens() -> None:
    with NodeServer(LocalBackend(), DpdkTransport(stall_timeout=20.0), "127.0.0.1:0") as node:
        genie.init(nodes=[node.address], backend="dpdk")
        model = tiny_lm.model().to("remote_accelerator:0")
        assert tiny_lm.generate(model) == tiny_lm.generate(tiny_lm.model())
        assert "devices_dpdk" in genie.get_stats()
        assert [session.transport for session in node.sessions()] == ["dpdk"]
        genie.shutdown()
