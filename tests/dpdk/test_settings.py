"""What cannot be: each a clear error, and the process goes on."""

from __future__ import annotations

import tempfile
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from types import SimpleNamespace

import pytest

from genie import config
from genie.errors import BackendUnavailable, ConfigError
from genie.plugins import registry

pytest.importorskip("genie_backend_dpdk", reason="genie-backend-dpdk is not installed: it needs DPDK")

from genie_backend_dpdk import DpdkTransport, device, environment
from genie_backend_dpdk.device import Device, Nic, Stated


@pytest.mark.parametrize(
    "device",
    [
        "",
        "memif",
        "vdev:",
        "vdev:nonsense",
        "vdev:memif,socket=/tmp/x",
        "vdev:memif,",
        "vdev:memif,polling",
        "vdev:memif,polling=always",
        "vdev:memif,polling=busy,polling=busy",
        "vdev:memif,iface=eth0",
        "vdev:af_packet",
        "vdev:af_packet,iface=",
        "vdev:af_packet,iface=a b",
        "vdev:af_packet,iface=a/../b",
        "vdev:af_packet,iface=a,qpairs=2",
        "vdev:af_packet,iface=longer-than-linux-has",
        "vdev:net_pcap,iface=a",
        "pci:",
        "pci:3b:00.0",
        "pci:0000:3b:00.9",
        "pci:../../../etc",
        "pci:0000:3b:00.0,ip=10.0.0.1",
        "pci:0000:3b:00.0,ip=10.0.0.0/24",
        "pci:0000:3b:00.0,ip=10.0.0.255/24",
        "pci:0000:3b:00.0,ip=224.0.0.1/24",
        "pci:0000:3b:00.0,ip=10.0.0.300/24",
        "pci:0000:3b:00.0,ip=fe80::1/64",
        "pci:0000:3b:00.0,ip=10.0.0.1/24,gateway=10.1.0.1",
        "pci:0000:3b:00.0,ip=10.0.0.1/24,gateway=10.0.0.1",
        "pci:0000:3b:00.0,ip=10.0.0.1/24,mtu=500",
        "pci:0000:3b:00.0,ip=10.0.0.1/24,mtu=-1500",
        "pci:0000:3b:00.0,ip=10.0.0.1/24,mtu=70000",
        "pci:0000:3b:00.0,ip=10.0.0.1/24,ip=10.0.0.2/24",
        "pci:0000:3b:00.0,gateway=10.0.0.1",
        "pci:0000:3b:00.0,mtu=9000",
        "pci:0000:3b:00.0,polling=adaptive",
        "pci:0000:3b:00.0,iface=eth0",
        "pciexpress:0000:3b:00.0",
        "vdev:memif\0",
    ],
)
def test_a_malformed_device(device: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.make("transport", "dpdk", config.resolve({"dpdk_device": device}).settings)
    assert caught.value.where == "setting 'dpdk_device'"


def test_a_device_that_is_not_there() -> None:
    transport = DpdkTransport(device.parse("pci:ffff:3b:00.0"))
    with pytest.raises(BackendUnavailable, match="this host has no PCI device ffff:3b:00.0"):
        transport.connect("192.0.2.7:8888", 1.0)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("vdev:memif", Device()),
        ("vdev:memif,polling=busy", Device(busy=True)),
        ("vdev:memif,polling=adaptive", Device()),
        ("vdev:af_packet,iface=eth0.7@x", Device("eth0.7@x")),
        ("vdev:af_packet,polling=busy,iface=eth0", Device("eth0", busy=True)),
        ("pci:0000:3b:00.0", Device(busy=True, nic=Nic("0000:3b:00.0"))),
        (
            "pci:0000:3b:00.0,ip=10.0.0.1/24",
            Device(busy=True, nic=Nic("0000:3b:00.0", Stated(IPv4Interface("10.0.0.1/24")))),
        ),
        (
            "pci:0000:3b:00.1,mtu=9000,ip=10.0.0.1/31,gateway=10.0.0.0,polling=busy",
            Device(
                busy=True,
                nic=Nic("0000:3b:00.1", Stated(IPv4Interface("10.0.0.1/31"), IPv4Address("10.0.0.0"), 9000)),
            ),
        ),
    ],
)
def test_a_device(text: str, meant: Device) -> None:
    assert device.parse(text) == meant


def test_an_interface_that_is_not_there() -> None:
    settings = config.resolve({"dpdk_device": "vdev:af_packet,iface=none0"}).settings
    transport = registry.make("transport", "dpdk", settings)
    with pytest.raises(BackendUnavailable, match="'none0' can't be used"):
        transport.connect("192.0.2.7:8888", 1.0)
    with pytest.raises(ConfigError, match="'none0' can't be used"):
        transport.listen("192.0.2.7:8888")


def test_by_name() -> None:
    assert registry.make("transport", "dpdk", config.resolve({}).settings).name == "dpdk"


def test_an_address_elsewhere() -> None:
    transport = DpdkTransport()
    with pytest.raises(BackendUnavailable, match="another"):
        transport.connect("192.0.2.7:8888", 1.0)
    with pytest.raises(ConfigError, match="another"):
        transport.listen("192.0.2.7:8888")


def test_others_may_not_enter_the_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="genie") as runtime:  # its path is short, as a socket's must be
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        shared = Path(runtime) / "genie-dpdk"
        shared.mkdir()
        shared.chmod(0o777)
        with pytest.raises(BackendUnavailable, match="others can enter"):
            DpdkTransport().connect("127.0.0.1:8888", 1.0)


def test_ports_share_the_time_that_an_end_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    class Port:
        def drain(self, patience: float) -> None:
            """It never comes to its end."""
            nonlocal now
            now += patience

    monkeypatch.setattr(environment, "_ports", [Port() for _ in range(50)])
    monkeypatch.setattr(environment, "time", SimpleNamespace(monotonic=lambda: now))
    environment._drain()
    assert now == pytest.approx(102.0)
