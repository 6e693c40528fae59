"""What keeps DPDK from a PCI device, read from the kernel before DPDK is asked: its own errors name none of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from genie.errors import BackendUnavailable

MEMORY_MB = 256  # of huge pages
_NETWORK = "0x02"  # a PCI class
_SHARED = "mlx5_core"  # its devices stay the kernel's while DPDK drives them
_VFIO = "vfio-pci"
_ROOT = Path("/")


@dataclass(frozen=True)
class Function:
    """``shared``: it is the kernel's too, where its ``interfaces`` are."""

    shared: bool
    interfaces: tuple[str, ...] = ()


def ready(name: str) -> Function:
    """Raises :class:`BackendUnavailable` where DPDK could not drive it, with what there is to do."""
    device = _ROOT / "sys/bus/pci/devices" / name
    if not device.exists():
        raise _refused(f"this host has no PCI device {name}", "`lspci -D` lists them")
    if not _line(device / "class").startswith(_NETWORK):
        raise _refused(f"the PCI device {name} is no network device", "`lspci -D` lists them")
    driver = (device / "driver").resolve().name if (device / "driver").exists() else ""
    if driver == _SHARED:
        found = _shared(name, device)
    else:
        _owned(name, device, driver)
        found = Function(shared=False)
    return found


def _shared(name: str, device: Path) -> Function:
    verbs = [_ROOT / "dev/infiniband" / each.name for each in device.glob("infiniband_verbs/*")]
    if not verbs:
        raise _refused(f"{name} has no verbs device, over which DPDK drives it", "`modprobe mlx5_ib`")
    if not all(os.access(each, os.R_OK | os.W_OK) for each in verbs):
        raise _refused(f"this user may not open {verbs[0]}", "run as root, or let this user read and write it")
    return Function(True, tuple(sorted(each.name for each in device.glob("net/*"))))


def _owned(name: str, device: Path, driver: str) -> None:
    bind = f"`dpdk-devbind.py --bind={_VFIO} {name}` gives it to DPDK, and takes it from the kernel"
    if driver != _VFIO:
        if not (_ROOT / "sys/bus/pci/drivers" / _VFIO).exists():
            bind = f"`modprobe {_VFIO}`; then {bind}"
        has = f"the kernel's driver {driver} has" if driver else "no driver has"
        raise _refused(f"{has} the PCI device {name}, and DPDK drives it through {_VFIO}", bind)
    group = device / "iommu_group"
    if not group.exists() or (group / "type").exists() and _line(group / "type").startswith("noiommu"):
        raise _refused(
            f"{name} is behind no IOMMU, which is what lets it reach this process's memory and no other",
            "switch it on in the firmware and on the kernel's command line (`intel_iommu=on`)",
        )
    access = _ROOT / "dev/vfio" / group.resolve().name
    if not os.access(access, os.R_OK | os.W_OK):
        raise _refused(f"this user may not open {access}", "run as root, or let this user read and write it")


def check_huge_pages() -> None:
    """Raises :class:`BackendUnavailable` where DPDK could not start for a NIC."""
    free_kb = 0
    for pages in (_ROOT / "sys/kernel/mm/hugepages").glob("hugepages-*kB"):
        free_kb += int(pages.name.removeprefix("hugepages-").removesuffix("kB")) * int(
            _line(pages / "free_hugepages") or 0
        )
    if free_kb < MEMORY_MB << 10:
        raise _refused(
            f"a NIC needs {MEMORY_MB} MB of huge pages, and {free_kb >> 10} MB are free",
            "`dpdk-hugepages.py --setup 2G` reserves them",
        )


def _line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _refused(what: str, todo: str) -> BackendUnavailable:
    return BackendUnavailable(
        what,
        where="setting 'dpdk_device'",
        hint=f'{todo}; or use vdev:af_packet,iface=NAME, which goes through the kernel, or the backend "tcp"',
    )
