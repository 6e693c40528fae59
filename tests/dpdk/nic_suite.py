"""The way of a NIC with addresses of its own, but for the PCI bus: over DPDK's af_packet devices by name, on the ends
of a veth pair as ``namespaces.one`` makes it. The kernel has other addresses there."""

from __future__ import annotations

import ipaddress
import itertools
import os
from pathlib import Path

import pytest

from genie.errors import BackendUnavailable
from genie.interfaces import Connection, Listener
from genie.testing.transport_suite import TransportSuite
from genie_backend_dpdk import DpdkTransport, _native, environment, nic
from genie_backend_dpdk.device import Device, Nic, Stated
from genie_backend_dpdk.polling import Polling

SECONDS = 10.0
_names = (f"net_af_packet{number}" for number in itertools.count(1000))


def driven(interface: str, address: str, mtu: int = 1400) -> Device:
    stated = Stated(ipaddress.IPv4Interface(address), None, mtu)
    return Device(busy=True, nic=Nic(next(_names), stated, "vdev", f"iface={interface}"))


NODE, CLIENT = driven("node0", "10.72.0.1/24"), driven("client0", "10.72.0.2/24")


class Ends:
    name = "dpdk"

    def __init__(self) -> None:
        self._node = DpdkTransport(NODE, stall_timeout=SECONDS)
        self._client = DpdkTransport(CLIENT, stall_timeout=SECONDS)

    def listen(self, address: str) -> Listener:
        return self._node.listen(address)

    def connect(self, address: str, timeout: float) -> Connection:
        return self._client.connect(address, timeout)


class TestNic(TransportSuite):
    @pytest.fixture
    def transport(self) -> Ends:
        return Ends()

    @pytest.fixture
    def address(self) -> str:
        return "10.72.0.1:0"


def make(
    name: str, arguments: str, *, mtu: int = 1400, shared: bool = False, link_wait: float = SECONDS
) -> _native.Port:
    found = nic.known(Nic(name, Stated(ipaddress.IPv4Interface("10.72.0.9/24"), None, mtu), "vdev"))
    asked = _native.Nic(bus="vdev", mtu=mtu, shared=shared, asks=True, link_wait=link_wait)
    return nic.interface.port(found, Polling(0, True), 1.0, device=name, arguments=arguments, nic=asked)


@pytest.mark.parametrize(
    ("driver", "arguments", "wanted", "reason"),
    [
        ("net_af_packet", "iface=node0", {"mtu": 70000 - 5000}, "MTU"),
        ("net_af_packet", "iface=none0", {}, "its driver gives it up"),
        ("net_null", "", {"shared": True}, "it can't be shared with the kernel"),
        ("net_no_such_driver", "", {}, "DPDK makes no such device"),
    ],
    ids=["MTU", "no interface", "no isolated mode", "no driver"],
)
def test_what_can_not_be_driven(driver: str, arguments: str, wanted: dict[str, int], reason: str) -> None:
    """Again and again: nothing is left of it."""
    environment.start()
    before = None
    for _ in range(3):
        with pytest.raises(RuntimeError, match=reason):
            make(environment.device_name(driver), arguments, **wanted)
        left = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
        assert before in (None, left)
        before = left


def test_a_nic_without_a_link(tmp_path: Path) -> None:
    """Nobody is at the other end of memif's."""
    environment.start()
    arguments = f"role=server,id=0,socket={tmp_path / 'memif'},socket-abstract=no"
    with pytest.raises(RuntimeError, match="it has no link within 1 s"):
        make(environment.device_name("net_memif"), arguments, link_wait=1)


def test_dpdk_does_not_start_anew_for_a_nic() -> None:
    environment.start()
    with pytest.raises(BackendUnavailable, match="started in this process without NICs"):
        environment.start(environment.NICS)
