"""DPDK over a network interface: a veth pair, in network namespaces of the test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("genie_backend_dpdk", reason="genie-backend-dpdk is not installed: it needs DPDK")

from dpdk import namespaces

HERE = Path(__file__).parent


def environment(**settings: str) -> dict[str, str]:
    return {**os.environ, **settings, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])}


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_the_conformance_suite(mtu: int) -> None:
    with namespaces.one(mtu) as name:
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / "af_packet_suite.py")]
        done = subprocess.run(
            namespaces.inside(name, sys.executable, "-m", "pytest", *options),
            env=environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout
        assert " passed" in done.stdout
        assert "skipped" not in done.stdout


GENERATING = """
import genie, genie_pytorch
from integration import tiny_lm
model = tiny_lm.model().to("remote_accelerator:0")
assert tiny_lm.generate(model) == tiny_lm.generate(tiny_lm.model())
print(sorted(name for name in genie.get_stats() if name.startswith("devices_")))
"""


def test_a_session_between_two_namespaces() -> None:
    device = "vdev:af_packet,iface="
    serve = ["--host", "10.71.0.1", "--insecure", "--device", "cpu", "--threads", "1", "--json"]
    with namespaces.two() as (node, client):
        serving = subprocess.Popen(
            namespaces.inside(
                node,
                *(sys.executable, "-m", "genie", "serve", *serve),
                *("--transport", "dpdk", "--dpdk-device", device + "node0"),
            ),
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert serving.stdout is not None
            address = json.loads(serving.stdout.readline())["address"]
            assert address == "10.71.0.1:8888"
            program = subprocess.run(
                namespaces.inside(client, sys.executable, "-c", GENERATING),
                env=environment(GENIE_NODES=address, GENIE_BACKEND="dpdk", GENIE_DPDK_DEVICE=device + "client0"),
                capture_output=True,
                text=True,
                timeout=100,
            )
            assert (program.returncode, program.stdout) == (0, "['devices_dpdk']\n"), program.stderr
        finally:
            serving.kill()
            serving.wait(30)
            if serving.stdout is not None:
                serving.stdout.close()


def test_between_two_namespaces() -> None:
    """Two kernels' worth of network: ARP, the UDP ports, and who sends what to whom."""
    with namespaces.two() as (node, client):
        peer = str(HERE / "peer.py")
        serving = subprocess.Popen(
            namespaces.inside(node, sys.executable, peer, "listen", "10.71.0.1:0", "receive", "node0"),
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert serving.stdout is not None
            address = serving.stdout.readline().strip()
            calling = subprocess.run(
                namespaces.inside(client, sys.executable, peer, "connect", address, "send_some", "client0"),
                env=environment(),
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert calling.returncode == 0, calling.stderr
            assert calling.stdout == "sent\n"
        finally:
            serving.kill()
            serving.wait(30)
            if serving.stdout is not None:
                serving.stdout.close()
