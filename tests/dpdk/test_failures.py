"""What keeps DPDK from starting, each in a process of its own: a clear error, and the process goes on without."""

from __future__ import annotations

import pytest
from dpdk import suites

pytest.importorskip("genie_backend_dpdk", reason="genie-backend-dpdk is not installed: it needs DPDK")

BEGINNING = """
import os, sys
from genie.errors import BackendUnavailable
from genie_backend_dpdk import DpdkTransport, environment
from genie_backend_tcp import TcpTransport

def descriptors():
    return len(os.listdir("/proc/self/fd"))
"""
TRYING = """
for _ in range(2):
    try:
        DpdkTransport().listen("127.0.0.1:0")
    except BackendUnavailable as error:
        print("refused:", error.message)
        print("hint:", error.hint)
TcpTransport().listen("127.0.0.1:0").close()
print("alive")
"""
STARTED_BY_OTHERS = """
import ctypes
path = next(line.split()[-1] for line in open("/proc/self/maps") if "librte_eal.so" in line)
words = [b"others", b"--no-huge", b"--no-shconf", b"--no-pci", b"--no-telemetry", b"-m64", b"--log-level=*:critical"]
assert ctypes.CDLL(path).rte_eal_init(len(words), (ctypes.c_char_p * len(words))(*words)) >= 0
"""
LITTLE_MEMORY = """
environment._ARGUMENTS = tuple("-m40" if each.startswith("-m") else each for each in environment._ARGUMENTS)
environment.start.__defaults__ = (environment._ARGUMENTS,)
"""
NO_ADDRESS_SPACE = """
import resource
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + (200 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
"""
FOR_A_NIC = """
def start_for_a_nic():
    try:
        environment.start(environment.NICS)
    except BackendUnavailable as error:
        return error.message
first = start_for_a_nic()
assert first and first == start_for_a_nic(), first
"""
CHILD = """
DpdkTransport().listen("127.0.0.1:0").close()
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (STARTED_BY_OTHERS, "already"),
        (LITTLE_MEMORY, "no memory for packets: Cannot allocate memory"),
        (NO_ADDRESS_SPACE, "DPDK does not start here: EAL: Cannot init memory"),
        (NO_ADDRESS_SPACE + FOR_A_NIC, "DPDK does not start here: EAL: Cannot "),
        (CHILD, "this process was forked from one that uses DPDK"),
    ],
    ids=["started by others", "little memory", "no address space", "for a NIC", "in a child"],
)
def test_dpdk_does_not_start(before: str, reason: str) -> None:
    with suites.own_process() as process:
        done = process.python("-c", BEGINNING + before + TRYING, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    *refused, alive = done.stdout.splitlines()
    assert len(refused) == 4, done.stdout
    assert reason in refused[0]
    assert refused[0] == refused[2]
    assert "tcp" in refused[1]
    assert alive == "alive"


NO_DESCRIPTOR = """
import resource, tempfile, threading
from genie_backend_dpdk import _native
with tempfile.TemporaryDirectory() as directory:
    transport = DpdkTransport()
    listener = transport.listen(f"memif:{directory}/node.sock")
    accepting = threading.Thread(target=listener.accept, args=(30.0,))
    accepting.start()
    connection = transport.connect(listener.address, 30.0)
    accepting.join()
(port,) = transport._links.values()
_native.add_device(environment.device_name("net_null"), "")  # then DPDK's own thread has done what it had to do
before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))
port.drain(1.0)
resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
print("alive")
"""


def test_what_has_nothing_to_wait_for_needs_no_descriptor() -> None:
    """A port waits so when it ends, on a thread where nobody could be told."""
    with suites.own_process() as process:
        done = process.python("-c", BEGINNING + NO_DESCRIPTOR, timeout=60)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
