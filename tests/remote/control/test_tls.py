"""The control plane over TLS: the same files as the data plane's, and whom both sides believe."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from remote.peers import Node
from security.pki import Pki

from genie.errors import BackendError, TlsFailed
from genie.remote.control import ControlClient, ControlPlane
from genie.security import Tls, certs


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki.make(tmp_path / "lab")


@pytest.fixture
def serve(node: Node) -> Iterator[Callable[[Tls], str]]:
    planes: list[ControlPlane] = []

    def start(tls: Tls) -> str:
        planes.append(ControlPlane(node.server, lambda seconds: None, tls))
        return f"127.0.0.1:{planes[-1].start('127.0.0.1', 0)}"

    yield start
    for plane in planes:
        plane.close()


def test_who_is_believed(pki: Pki, serve: Callable[[Tls], str]) -> None:
    with ControlClient(serve(pki.node()), tls=pki.client()) as client:
        assert client.capabilities().devices
        assert client.healthy()
    with ControlClient(serve(pki.node(client_ca=True)), tls=pki.client("client-alice")) as client:
        assert client.capabilities().devices


def test_who_is_not(pki: Pki, tmp_path: Path, serve: Callable[[Tls], str]) -> None:
    stranger = Pki.make(tmp_path / "stranger")
    address, mutual = serve(pki.node()), serve(pki.node(client_ca=True))
    with ControlClient(address, 2.0, tls=stranger.client()) as client, pytest.raises(TlsFailed, match="no TLS"):
        client.capabilities()
    for where, tls in ((address, None), (mutual, pki.client())):
        with ControlClient(where, 2.0, tls=tls) as client, pytest.raises(BackendError):
            client.capabilities()


def test_a_renewed_certificate_is_used_without_a_restart(pki: Pki, serve: Callable[[Tls], str]) -> None:
    address = serve(pki.node())
    host, port = address.split(":")
    before = ssl.get_server_certificate((host, int(port)), timeout=5)
    issued = certs.issue_node(pki.directory, ["127.0.0.1"])
    after = ssl.get_server_certificate((host, int(port)), timeout=5)
    assert before != after
    assert ssl.PEM_cert_to_DER_cert(after) == ssl.PEM_cert_to_DER_cert(issued.cert.read_text())
