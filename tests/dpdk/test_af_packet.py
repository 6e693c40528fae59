"""DPDK over a network interface: a veth pair, in network namespaces of the test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("genie_backend_dpdk", reason="genie-backend-dpdk is not installed: it needs DPDK")

from dpdk import namespaces

from genie.security import certs, tokens

HERE = Path(__file__).parent


def environment(**settings: str) -> dict[str, str]:
    return {**os.environ, **settings, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])}


GENERATING = """
import genie, genie_pytorch
from integration import tiny_lm
model = tiny_lm.model().to("remote_accelerator:0")
assert tiny_lm.generate(model) == tiny_lm.generate(tiny_lm.model())
(session,) = genie.get_stats()["transports"]
print(session["transport"], session["protection"])
"""
DEVICE = "vdev:af_packet,iface="


@contextmanager
def serving(namespace: str, *options: str) -> Iterator[str]:
    """A node's address, 10.71.0.1:8888."""
    serve = ["--host", "10.71.0.1", "--device", "cpu", "--threads", "1", "--json", "--dpdk-device", f"{DEVICE}node0"]
    node = subprocess.Popen(
        namespaces.inside(namespace, sys.executable, "-m", "genie", "serve", *serve, *options),
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert node.stdout is not None
        address = json.loads(node.stdout.readline())["address"]
        assert address == "10.71.0.1:8888"
        yield address
    finally:
        node.kill()
        node.wait(30)
        if node.stdout is not None:
            node.stdout.close()


def program(namespace: str, address: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        namespaces.inside(namespace, sys.executable, "-c", GENERATING),
        env=environment(GENIE_NODES=address, GENIE_DPDK_DEVICE=f"{DEVICE}client0", **settings),
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_a_session_between_two_namespaces() -> None:
    with namespaces.two() as (node, client), serving(node, "--insecure", "--transport", "dpdk") as address:
        done = program(client, address, GENIE_BACKEND="dpdk")
        assert (done.returncode, done.stdout) == (0, "dpdk none\n"), done.stderr


def test_data_in_clear_under_tickets_that_came_over_tls(tmp_path: Path) -> None:
    certs.create_authority(tmp_path)
    certs.issue_node(tmp_path, ["10.71.0.1"])
    (tmp_path / "token").write_text(tokens.add(tmp_path / "tokens.json", "alice"))
    own = ["--cert", str(tmp_path / "node-10.71.0.1.pem"), "--key", str(tmp_path / "node-10.71.0.1.key")]
    asking = ["--tokens", str(tmp_path / "tokens.json"), "--plain-data", "--transport", "dpdk,tcp"]
    mine = {"GENIE_CA": str(tmp_path / "ca.pem"), "GENIE_TOKEN_FILE": str(tmp_path / "token")}
    with namespaces.two() as (node, client), serving(node, *own, *asking) as address:
        for backend, plain_data, carried in (
            ("dpdk", "1", "dpdk authenticated, not encrypted"),
            ("auto", "1", "dpdk authenticated, not encrypted"),
            ("auto", "0", "tcp TLS"),
        ):
            done = program(client, address, GENIE_BACKEND=backend, GENIE_PLAIN_DATA=plain_data, **mine)
            assert (done.returncode, done.stdout) == (0, f"{carried}\n"), done.stderr


@pytest.mark.parametrize("way", ["", "nic:"], ids=["af_packet", "a NIC that the kernel keeps"])
def test_between_two_namespaces(way: str) -> None:
    """Two kernels' worth of network: ARP, the UDP ports, and who sends what to whom."""
    with namespaces.two() as (node, client):
        peer = str(HERE / "peer.py")
        serving = subprocess.Popen(
            namespaces.inside(node, sys.executable, peer, "listen", "10.71.0.1:0", "receive", f"{way}node0"),
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert serving.stdout is not None
            address = serving.stdout.readline().strip()
            calling = subprocess.run(
                namespaces.inside(client, sys.executable, peer, "connect", address, "send_some", f"{way}client0"),
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
