"""Build and run the checks of devices' memory that need no network:
``python genie-backend-dpdk/tools/check_gpumem.py [--sanitize] [CHECK…]``.

It takes Python and a compiler of C++20. What a machine lacks is left out: ``packets`` needs libsodium and xxHash,
``dpdk`` DPDK. Where there is an NVIDIA GPU, ``cuda`` and ``dpdk`` use it; else they say why not. Each prints JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "genie-backend-dpdk" / "csrc"
SANITIZERS = ("-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
CHECKS = ("registrations", "soft", "packets", "dpdk", "cuda")
_PLAIN = ("main", "memory", "registrations", "cuda")


def compiler() -> str:
    return os.environ.get("CXX", "g++").split()[0]


def flags(*libraries: str) -> list[str] | None:
    """How to compile and link with them; nothing where one is not installed."""
    if shutil.which("pkg-config") is None:
        return None
    found = subprocess.run(
        ["pkg-config", "--cflags", "--libs", *libraries], capture_output=True, text=True, check=False
    )
    return found.stdout.split() if found.returncode == 0 else None


def build(*options: str, without: Sequence[str] = ()) -> tuple[Path, list[str]]:
    """The program, and which checks are in it. Ends with the compiler's words if it does not compile."""
    units = [CSRC / "gpumem" / f"{name}.cpp" for name in ("soft", "cuda", "registrations")]
    units += [CSRC / "gpumem" / "check" / f"{name}.cpp" for name in _PLAIN]
    checks = {"registrations", "soft", "cuda"}
    libraries = ["-ldl", "-pthread"]
    if "packets" not in without and (packets := flags("libsodium", "libxxhash")) is not None:
        units += [*CSRC.glob("protocol/*.cpp"), CSRC / "gpumem" / "check" / "packets.cpp"]
        libraries += ["-DGENIE_CHECK_PACKETS", *packets]
        checks.add("packets")
    if "dpdk" not in without and (dpdk := flags("libdpdk")) is not None:
        units += [CSRC / "gpumem" / "gpudev.cpp", CSRC / "gpumem" / "ports.cpp", CSRC / "dpdk_io" / "eal.cpp"]
        units += [CSRC / "gpumem" / "check" / "dpdk.cpp"]
        libraries += ["-DGENIE_CHECK_DPDK", *dpdk]
        checks.add("dpdk")
    command = [compiler(), "-std=c++20", "-O2", "-Wall", "-Wextra", "-Wno-volatile", *options, *map(str, sorted(units))]
    command += libraries
    state = hashlib.sha256(repr(command).encode())
    for source in sorted(CSRC.rglob("*")):
        if source.is_file():
            state.update(source.read_bytes())
    made = ROOT / ".build" / "dpdk-gpumem" / state.hexdigest()[:16]
    if not made.is_file():
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made.parent) as work:
            compiled = Path(work) / "check"
            done = subprocess.run([*command, "-o", str(compiled)], capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            compiled.rename(made)  # at once: another process may be building the same
    return made, [name for name in CHECKS if name in checks]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sanitize", action="store_true", help="with the address and undefined-behaviour sanitizers")
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {', '.join(CHECKS)}; default: all there are")
    given = parser.parse_args()
    if shutil.which(compiler()) is None:
        sys.exit(f"there is no compiler ({compiler()}): install g++, or set CXX")
    program, there = build(*(SANITIZERS if given.sanitize else ()))
    if unknown := set(given.checks) - set(CHECKS):
        sys.exit(f"no such check: {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}")
    status = 0
    for name in given.checks or there:  # each in a process of its own
        status |= subprocess.run([str(program), name], check=False).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
