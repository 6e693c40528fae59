"""Builds the simulator of the protocol, once for each state of its sources. It needs no DPDK."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "genie-backend-dpdk" / "csrc"
LIBRARIES = ("libsodium", "libxxhash")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def build(*options: str) -> Path:
    """The simulator's executable, compiled with ``options``; a skip says what it would take."""
    compiler = os.environ.get("CXX", "g++").split()[0]
    if shutil.which("pkg-config") is None or shutil.which(compiler) is None:
        pytest.skip(f"the protocol's simulator needs pkg-config and {compiler}")
    found = subprocess.run(["pkg-config", "--cflags", "--libs", *LIBRARIES], capture_output=True, text=True)
    if found.returncode:
        pytest.skip("the protocol's simulator needs libsodium and xxHash: `apt install libsodium-dev libxxhash-dev`")
    sources = sorted([*CSRC.glob("protocol/*"), *CSRC.glob("simulator/*")])
    state = hashlib.sha256(repr((compiler, options, found.stdout)).encode())
    for source in sources:
        state.update(source.read_bytes())
    made = ROOT / ".build" / "dpdk-simulator" / state.hexdigest()[:16]
    if not made.is_file():
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made.parent) as work:
            compiled = Path(work) / "simulator"
            units = [str(source) for source in sources if source.suffix == ".cpp"]
            command = [compiler, "-std=c++20", "-O2", *options, *units, "-o", str(compiled), *found.stdout.split()]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            compiled.rename(made)  # at once: another process may be building the same
    return made


def simulate(simulator: Path, scenario: str, *, timeout: float = 150.0, **arguments: float) -> Any:
    """What happened; fails with what the simulator, or a sanitizer, has to say."""
    words = [f"{name}={value}" for name, value in arguments.items()]
    done = subprocess.run([str(simulator), scenario, *words], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{scenario} {' '.join(words)}: {done.stdout}{done.stderr}"
    return json.loads(done.stdout)
