"""Memory of devices: what needs no Python or no DPDK here, what needs both in processes of their own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from functools import cache
from types import ModuleType

import pytest
from dpdk import suites

pytestmark = pytest.mark.timeout(400)  # it compiles
TOOL = suites.HERE.parents[1] / "genie-backend-dpdk" / "tools" / "check_gpumem.py"


@cache
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_gpumem", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(name: str, *options: str) -> dict[str, object]:
    """What a check says, of a build that has only what it takes. DPDK's own libraries are not sanitized."""
    program, there = tool().build(*options, without=("packets",) if name == "dpdk" else ("dpdk",))
    if name not in there:
        pytest.skip(f"the check {name!r} was left out: its libraries are not here")
    done = subprocess.run([str(program), name], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize("name", ["registrations", "soft", "packets", "cuda"])
def test_sanitized(name: str) -> None:
    assert check(name, *tool().SANITIZERS)["check"] == name


@pytest.mark.skipif(not os.environ.get("GENIE_TEST_FULL"), reason="GENIE_TEST_FULL=1 builds it with DPDK, too")
def test_dpdk_knows_it() -> None:
    """Its GPUDev is as it was declared, and it registers memory and makes buffers in it: the suite needs all that."""
    assert check("dpdk", "-O0")["check"] == "dpdk"


def test_messages_into_and_out_of_it(subtests: pytest.Subtests) -> None:
    with suites.ordinary_user() as process:
        suites.run(process, "gpumem_suite.py", subtests)


TOUCHED = """
import ctypes
from genie_backend_dpdk import gpumem
buffer = gpumem.soft(guarded=True).allocate(4)
buffer.write(b"data")
print(buffer.read().decode(), flush=True)
ctypes.string_at(buffer.address, 4)
"""


def test_guarded_memory_can_not_be_touched() -> None:
    """So that nothing in its tests passes by reading it where it lies."""
    with suites.own_process() as process:
        done = process.python("-c", TOUCHED, timeout=60)
    assert done.stdout == "data\n"
    assert done.returncode < 0


WITHOUT_DRIVER = """
from genie.errors import BackendUnavailable
from genie_backend_dpdk import gpumem
try:
    gpumem.cuda(1000)
except BackendUnavailable as error:
    print(error.message)
memory = gpumem.soft()
print(len(memory.allocate(7)))
"""


def test_without_such_a_gpu_there_is_one_reason_and_all_else_works() -> None:
    with suites.own_process() as process:
        done = process.python("-c", WITHOUT_DRIVER, timeout=60)
    assert done.returncode == 0, done.stderr
    reason, works = done.stdout.splitlines()
    assert "NVIDIA driver" in reason or "there is no GPU 1000" in reason
    assert works == "7"
