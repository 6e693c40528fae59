"""What root runs here goes as an ordinary user too: no capability, no huge pages, no group."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("genie_backend_dpdk", reason="genie-backend-dpdk is not installed: it needs DPDK")

HERE = Path(__file__).parent
NOBODY = 65534
AS_NOBODY = [
    "setpriv",
    f"--reuid={NOBODY}",
    f"--regid={NOBODY}",
    "--clear-groups",
    "--inh-caps=-all",
    "--bounding-set=-all",
    "--no-new-privs",
]
SUITES = {
    "the conformance suite": "test_transport.py",
    "a session": "session_suite.py",
}


REFUSED = """
from genie.errors import BackendUnavailable
from genie_backend_dpdk import DpdkTransport
from genie_backend_dpdk.device import Device
try:
    DpdkTransport(Device("lo")).connect("127.0.0.2:8888", 5.0)
except BackendUnavailable as error:
    print("refused:", error.message, error.hint)
DpdkTransport().listen("127.0.0.1:0").close()
print("usable")
"""


def python_as_nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
    if os.geteuid() != 0:
        pytest.skip("this is an ordinary user already")
    if shutil.which("setpriv") is None:
        pytest.skip("there is no setpriv (util-linux) to become another user with")
    python = [*AS_NOBODY, sys.executable]
    if subprocess.run([*python, "-c", f"open({__file__!r})"], capture_output=True).returncode:
        pytest.skip("other users can't read these tests, or Python")
    with tempfile.TemporaryDirectory(prefix="genie") as home:
        os.chown(home, NOBODY, NOBODY)
        return subprocess.run(
            [*python, *arguments],
            env={
                **{name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"},
                "HOME": home,
                "TMPDIR": home,
                "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path]),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            cwd=HERE.parent.parent,
            capture_output=True,
            text=True,
            timeout=150,
        )


@pytest.mark.parametrize("what", SUITES)
def test_as_an_ordinary_user(what: str) -> None:
    done = python_as_nobody("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / SUITES[what]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_an_interface_needs_a_capability() -> None:
    """Without it one clear reason, and the process goes on."""
    done = python_as_nobody("-c", REFUSED)
    assert done.returncode == 0, done.stderr
    refused, usable = done.stdout.splitlines()
    assert "Operation not permitted" in refused
    assert "CAP_NET_RAW" in refused
    assert usable == "usable"
