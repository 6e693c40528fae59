"""The suite over two ends of a veth pair in one network namespace, as ``namespaces.one`` makes it."""

from __future__ import annotations

import pytest

from genie.interfaces import Connection, Listener
from genie.testing.transport_suite import TransportSuite
from genie_backend_dpdk import DpdkTransport
from genie_backend_dpdk.device import Device


class Ends:
    """Listens at one end of the pair, and connects from the other."""

    name = "dpdk"

    def __init__(self) -> None:
        self._node = DpdkTransport(Device("node0"), stall_timeout=10.0)
        self._client = DpdkTransport(Device("client0"), stall_timeout=10.0)

    def listen(self, address: str) -> Listener:
        return self._node.listen(address)

    def connect(self, address: str, timeout: float) -> Connection:
        return self._client.connect(address, timeout)


class TestAfPacket(TransportSuite):
    @pytest.fixture
    def transport(self) -> Ends:
        return Ends()

    def test_the_device_outlives_its_transport(self, transport: Ends, listener: Listener) -> None:
        """Two devices of one process on an interface would each get a part of what comes."""
        links = []
        for _ in range(2):
            links.append(Ends().connect(listener.address, 10.0))
            links.append(listener.accept(10.0))
        for link in links:
            link.close()

    @pytest.fixture
    def address(self) -> str:
        return "10.71.0.1:0"
