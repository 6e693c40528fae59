"""What this machine offers, as the system reports it."""

from __future__ import annotations

import os
import platform
import re
import socket
from pathlib import Path

import torch

from genie.device import Device

# Dense 16-bit multiply-adds per clock and multiprocessor, by compute capability.
_TENSOR_CORE = {(7, 0): 512, (7, 5): 512, (8, 0): 1024, (8, 6): 512, (8, 9): 512, (9, 0): 2048, (10, 0): 4096}
_DEFAULT_TENSOR_CORE = 1024
_GIB = 1 << 30


def devices() -> tuple[Device, ...]:
    """Every CUDA device, then the CPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return (*(_cuda(index) for index in range(count)), _cpu(count))


def _cpu(index: int) -> Device:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Device(
        id="cpu",
        type="CPU",
        memory_gb=min(memory, _memory_quota()) / _GIB,
        compute_tflops=_cpu_tflops(),
        index=index,
        hardware=_hardware(_cpu_model(), f"{len(os.sched_getaffinity(0))} cores", f"{torch.get_num_threads()} threads"),
    )


def _hardware(*what: str) -> str:
    """What kernels' times depend on, and the host: machines of one model are not one machine."""
    parts = [*what, f"torch {torch.__version__}", socket.gethostname()]
    return "".join(each for each in ", ".join(parts) if each.isprintable())[:512]


def _memory_quota() -> float:
    """The bytes this control group may use."""
    try:
        return float(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return float("inf")


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)", _cpuinfo(), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _cpu_tflops() -> float:
    """Peak single-precision: cores x clock x (two fused multiply-adds of the widest vectors)."""
    text = _cpuinfo()
    lanes = 16 if "avx512f" in text else 8 if "avx2" in text else 4
    clock = re.search(r"^cpu MHz\s*:\s*([0-9.]+)", text, re.MULTILINE)
    ghz = float(clock[1]) / 1e3 if clock else 2.0
    return len(os.sched_getaffinity(0)) * ghz * lanes * 4 / 1e3


def _cuda(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    clock = getattr(properties, "clock_rate", 0) * 1e3 or 1.5e9
    per_clock = _TENSOR_CORE.get((properties.major, properties.minor), _DEFAULT_TENSOR_CORE)
    bandwidth = getattr(properties, "memory_clock_rate", 0) * 1e3 * 2 * getattr(properties, "memory_bus_width", 0) / 8
    return Device(
        id=f"cuda:{index}",
        type="GPU",
        memory_gb=properties.total_memory / _GIB,
        compute_tflops=properties.multi_processor_count * clock * per_clock * 2 / 1e12,
        memory_bandwidth_gb_s=bandwidth / 1e9 or None,
        index=index,
        hardware=_hardware(properties.name, f"{properties.multi_processor_count} multiprocessors"),
    )
