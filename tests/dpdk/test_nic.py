"""NICs that DPDK drives: what keeps it from them, what it asks of them, and how packets find them."""

from __future__ import annotations

from pathlib import Path

import pytest

from genie.errors import BackendUnavailable, ConfigError

pytest.importorskip("genie_backend_dpdk", reason="genie-backend-dpdk is not installed: it needs DPDK")

from dpdk import namespaces, suites

from genie_backend_dpdk import DpdkTransport, _native, device, environment, nic, pci

FUNCTION = "0000:3b:00.0"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host of the test's own, with a network device that no driver has."""
    monkeypatch.setattr(pci, "_ROOT", tmp_path)
    write(tmp_path / "sys/bus/pci/devices" / FUNCTION / "class", "0x020000")
    return tmp_path


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def link(path: Path, to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)


def bind(root: Path, driver: str, group: str = "") -> Path:
    function = root / "sys/bus/pci/devices" / FUNCTION
    link(function / "driver", root / "sys/bus/pci/drivers" / driver)
    if group:
        link(function / "iommu_group", root / "sys/kernel/iommu_groups" / group)
    return function


def refused() -> BackendUnavailable:
    with pytest.raises(BackendUnavailable) as caught:
        pci.ready(FUNCTION)
    assert caught.value.where == "setting 'dpdk_device'"
    assert caught.value.hint
    return caught.value


def test_no_network_device(root: Path) -> None:
    write(root / "sys/bus/pci/devices" / FUNCTION / "class", "0x030200")
    assert "is no network device" in refused().message


def test_no_driver(root: Path) -> None:
    said = refused()
    assert f"no driver has the PCI device {FUNCTION}" in said.message
    assert "`modprobe vfio-pci`; then `dpdk-devbind.py --bind=vfio-pci 0000:3b:00.0`" in str(said.hint)


def test_another_driver(root: Path) -> None:
    (root / "sys/bus/pci/drivers/vfio-pci").mkdir(parents=True)
    bind(root, "ice")
    said = refused()
    assert "the kernel's driver ice has the PCI device" in said.message
    assert "modprobe" not in str(said.hint)


def test_no_iommu(root: Path) -> None:
    bind(root, "vfio-pci")
    assert "behind no IOMMU" in refused().message


def test_an_iommu_that_is_none(root: Path) -> None:
    """VFIO's mode without one: memory has other addresses there than the ones packets are sent with."""
    function = bind(root, "vfio-pci", "7")
    write(function / "iommu_group/type", "noiommu")
    assert "behind no IOMMU" in refused().message


def test_no_right_to_it(root: Path) -> None:
    bind(root, "vfio-pci", "7")
    assert f"may not open {root}/dev/vfio/7" in refused().message
    write(root / "dev/vfio/7")
    assert pci.ready(FUNCTION) == pci.Function(shared=False)


def test_one_that_the_kernel_keeps(root: Path) -> None:
    function = bind(root, "mlx5_core")
    assert "no verbs device" in refused().message
    (function / "infiniband_verbs/uverbs0").mkdir(parents=True)
    assert "may not open" in refused().message
    write(root / "dev/infiniband/uverbs0")
    assert pci.ready(FUNCTION) == pci.Function(True)
    (function / "net/ens1np0").mkdir(parents=True)
    assert pci.ready(FUNCTION) == pci.Function(True, ("ens1np0",))


@pytest.mark.parametrize(
    ("free", "enough"), [({}, False), ({2048: 127}, False), ({2048: 128}, True), ({1 << 20: 1}, True)]
)
def test_huge_pages(root: Path, free: dict[int, int], enough: bool) -> None:
    for size, count in free.items():
        write(root / f"sys/kernel/mm/hugepages/hugepages-{size}kB/free_hugepages", str(count))
    if enough:
        pci.check_huge_pages()
    else:
        with pytest.raises(BackendUnavailable, match="256 MB of huge pages"):
            pci.check_huge_pages()


@pytest.mark.parametrize("interfaces", [(), ("ens1np0", "ens1np1")])
def test_an_address_that_is_not_known(root: Path, interfaces: tuple[str, ...]) -> None:
    function = bind(root, "mlx5_core")
    (function / "infiniband_verbs/uverbs0").mkdir(parents=True)
    write(root / "dev/infiniband/uverbs0")
    for each in interfaces:
        (function / "net" / each).mkdir(parents=True)
    with pytest.raises(BackendUnavailable, match="so its address is not known"):
        nic.known(device.Nic(FUNCTION))
    meant = device.parse(f"pci:{FUNCTION},ip=10.0.0.7/24,gateway=10.0.0.1,mtu=9000").nic
    assert meant is not None
    found = nic.known(meant)
    assert (found.segment, found.known) == (8192, False)
    assert found.reach("10.9.9.9:7") == (10 << 24 | 9 << 16 | 9 << 8 | 9) << 16 | 7


def test_who_asks_for_it(root: Path) -> None:
    """A program falls back; a node says why it does not start."""
    transport = DpdkTransport(device.parse(f"pci:{FUNCTION},ip=10.0.0.7/24"))
    with pytest.raises(BackendUnavailable, match="no driver has"):
        transport.connect("10.0.0.8:8888", 1.0)
    with pytest.raises(ConfigError, match="no driver has"):
        transport.listen("10.0.0.7:8888")


def test_dpdk_touches_no_other_device() -> None:
    assert "--no-huge" not in environment.NICS
    assert [each for each in environment.NICS if each.startswith("--allow")] == ["--allow=ffff:ff:1f.7"]


# --- what a NIC is asked for ----------------------------------------------------------------------

MLX5_RECEIVES = {"BUFFER_SPLIT", "SCATTER", "IPV4_CKSUM", "UDP_CKSUM", "VLAN_STRIP", "RSS_HASH", "TIMESTAMP"}
MLX5_SENDS = {"MULTI_SEGS", "IPV4_CKSUM", "UDP_CKSUM", "MBUF_FAST_FREE", "VLAN_INSERT"}


def test_chains_of_buffers_are_never_freed_at_once() -> None:
    """Their buffers are of two kinds, and others may hold their memory."""
    assert _native.plan_nic(receiving=MLX5_RECEIVES, sending=MLX5_SENDS) == ({"IPV4_CKSUM"}, {"MULTI_SEGS"}, False, "")
    assert _native.plan_nic(receiving=set(), sending={"MBUF_FAST_FREE"})[1] == {"MBUF_FAST_FREE"}
    assert _native.plan_nic(receiving=set(), sending=set()) == (set(), set(), False, "")


@pytest.mark.parametrize(
    ("can", "pools", "segments", "splits"),
    [
        (MLX5_RECEIVES, True, 32, True),
        (MLX5_RECEIVES, False, 32, False),
        (MLX5_RECEIVES, True, 1, False),
        (MLX5_RECEIVES - {"SCATTER"}, True, 32, False),
        (MLX5_RECEIVES - {"BUFFER_SPLIT"}, True, 32, False),
    ],
)
def test_payloads_of_their_own(can: set[str], pools: bool, segments: int, splits: bool) -> None:
    wanted = _native.plan_nic(receiving=can, sending=MLX5_SENDS, pools=pools, segments=segments, split=True)
    assert wanted[2] == splits
    assert (wanted[0] >= {"BUFFER_SPLIT", "SCATTER"}) == splits


@pytest.mark.parametrize(
    ("mtu", "problem"), [(1500, ""), (9000, ""), (9001, "its largest MTU is 9000"), (60, "its least MTU is 68")]
)
def test_its_mtu(mtu: int, problem: str) -> None:
    said = _native.plan_nic(receiving=set(), sending=set(), mtu=mtu)[3]
    assert said.startswith(problem)
    assert bool(said) == bool(problem)


# --- the bus --------------------------------------------------------------------------------------

ON_THE_BUS = """
import ipaddress, os
from genie.errors import BackendUnavailable
from genie_backend_dpdk import DpdkTransport, device, environment, nic, pci
from genie_backend_dpdk.polling import Polling

environment.start([each for each in environment.NICS if each != "--in-memory"] + ["--no-huge", "--no-shconf"])
pci.ready = lambda name: pci.Function(shared=False)
meant = device.parse("pci:ffff:3b:00.0,ip=10.0.0.7/24").nic
before = None
for _ in range(3):
    try:
        nic.make(meant, nic.known(meant), Polling(0, True), 1.0)
    except BackendUnavailable as error:
        print(error.message)
    left = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    assert before in (None, left), (before, left)
    before = left
DpdkTransport().listen("127.0.0.1:0").close()
print("alive")
"""


def test_a_device_that_the_bus_does_not_have() -> None:
    """DPDK with its PCI bus, but for the huge pages."""
    with suites.own_process() as process:
        done = process.python("-c", ON_THE_BUS, timeout=60)
    reason = "DPDK does not drive the NIC ffff:3b:00.0: DPDK sees no such device, or its driver gives it up"
    assert (done.returncode, done.stdout.splitlines()) == (0, [reason] * 3 + ["alive"]), done.stderr


# --- over devices that are there ------------------------------------------------------------------


def test_over_devices_by_name(subtests: pytest.Subtests) -> None:
    with namespaces.one(1500) as name, suites.own_process(*namespaces.inside(name)) as process:
        suites.run(process, "nic_suite.py", subtests)


def test_nobody_has_the_address() -> None:
    """The kernel asks for it: ``test_af_packet.py`` has those that answer."""
    peer = str(suites.HERE / "peer.py")
    with namespaces.two() as (_, client), suites.own_process(*namespaces.inside(client)) as process:
        done = process.python(peer, "connect", "10.71.0.77:7", "send_some", "nic:client0", timeout=60)
    assert "nobody on the network of client0 has the address 10.71.0.77" in done.stderr
