"""DPDK over a network interface: a veth pair, in network namespaces of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("genie_backend_dpdk", reason="genie-backend-dpdk is not installed: it needs DPDK")

from dpdk import namespaces

HERE = Path(__file__).parent


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_the_conformance_suite(mtu: int) -> None:
    with namespaces.one(mtu) as name:
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / "af_packet_suite.py")]
        done = subprocess.run(
            namespaces.inside(name, sys.executable, "-m", "pytest", *options),
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout
        assert " passed" in done.stdout
        assert "skipped" not in done.stdout


def test_between_two_namespaces() -> None:
    """Two kernels' worth of network: ARP, the UDP ports, and who sends what to whom."""
    with namespaces.two() as (node, client):
        peer = str(HERE / "peer.py")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])}
        serving = subprocess.Popen(
            namespaces.inside(node, sys.executable, peer, "listen", "10.71.0.1:0", "receive", "node0"),
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert serving.stdout is not None
            address = serving.stdout.readline().strip()
            calling = subprocess.run(
                namespaces.inside(client, sys.executable, peer, "connect", address, "send_some", "client0"),
                env=environment,
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
