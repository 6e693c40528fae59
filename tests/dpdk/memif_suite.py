"""DPDK over memif, as an ordinary user."""

from __future__ import annotations

from pathlib import Path

import pytest

from genie.testing.transport_suite import TransportSuite

pytest.importorskip("genie_backend_dpdk", reason="genie-backend-dpdk is not installed: it needs DPDK")

from genie_backend_dpdk import DpdkTransport


class TestMemif(TransportSuite):
    @pytest.fixture
    def transport(self) -> DpdkTransport:
        return DpdkTransport(stall_timeout=10.0)

    @pytest.fixture
    def address(self, tmp_path: Path) -> str:
        return f"memif:{tmp_path / 'node.sock'}"
