"""What cannot be: each a clear error, and the process goes on."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from genie import config
from genie.errors import BackendUnavailable, ConfigError
from genie.plugins import registry

pytest.importorskip("genie_backend_dpdk", reason="genie-backend-dpdk is not installed: it needs DPDK")

from genie_backend_dpdk import DpdkTransport


@pytest.mark.parametrize("device", ["", "memif", "vdev:nonsense", "vdev:memif,socket=/tmp/x"])
def test_a_malformed_device(device: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.make("transport", "dpdk", config.resolve({"dpdk_device": device}).settings)
    assert caught.value.where == "setting 'dpdk_device'"


@pytest.mark.parametrize("device", ["vdev:af_packet,iface=eth0", "pci:0000:3b:00.0"])
def test_a_device_that_is_not_driven_yet(device: str) -> None:
    with pytest.raises(BackendUnavailable) as caught:
        registry.make("transport", "dpdk", config.resolve({"dpdk_device": device}).settings)
    assert device in caught.value.message


def test_by_name() -> None:
    assert registry.make("transport", "dpdk", config.resolve({}).settings).name == "dpdk"


def test_an_address_elsewhere() -> None:
    transport = DpdkTransport()
    with pytest.raises(BackendUnavailable, match="another"):
        transport.connect("192.0.2.7:8888", 1.0)
    with pytest.raises(ConfigError, match="another"):
        transport.listen("192.0.2.7:8888")


def test_a_port_of_ones_own() -> None:
    transport = DpdkTransport()
    listener = transport.listen("127.0.0.1:0")
    host, _, port = listener.address.rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0
    listener.close()


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ConfigError):
        DpdkTransport().listen(f"memif:{path}")
    assert path.read_text() == "data"


def test_others_may_not_enter_the_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="genie") as runtime:  # its path is short, as a socket's must be
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        shared = Path(runtime) / "genie-dpdk"
        shared.mkdir()
        shared.chmod(0o777)
        with pytest.raises(BackendUnavailable, match="others can enter"):
            DpdkTransport().connect("127.0.0.1:8888", 1.0)


def test_what_dpdk_refuses() -> None:
    """In a process of its own, where DPDK has not started yet; afterwards it starts."""
    program = """
from genie.errors import BackendUnavailable
from genie_backend_dpdk import DpdkTransport, environment
try:
    environment.start(["--no-such-argument"])
except BackendUnavailable as error:
    print("refused:", error.message, error.hint)
listener = DpdkTransport().listen("127.0.0.1:0")
listener.close()
print("usable")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "refused: DPDK does not start here: EAL: " in done.stdout
    assert done.stdout.endswith("usable\n")
