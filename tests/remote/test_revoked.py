"""Certificates that were revoked: refused on both planes, and running sessions end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from remote.peers import Node
from security.pki import Pki

from genie.cli import main
from genie.errors import AccessDenied, BackendError, ConfigError
from genie.remote import RemoteBackend
from genie.remote.client.access import Access
from genie.remote.control import ControlClient, ControlPlane
from genie.security import Guard, Identity, RevokedFile, certs, revoked
from genie.testing import Caller
from genie_backend_tcp import TcpTransport


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    made = Pki.make(tmp_path / "lab")
    certs.issue_client(made.directory, "bob")
    (tmp_path / "revoked.json").write_text('{"revoked": []}')
    return made


def test_a_revoked_certificate_opens_nothing(make_node: Callable[..., Node], pki: Pki, tmp_path: Path) -> None:
    path = tmp_path / "revoked.json"
    tls = pki.node(client_ca=True)
    node = make_node(
        transport=TcpTransport(stall_timeout=10.0, tls=tls),
        address="127.0.0.1:0",
        local=False,
        lease_seconds=0.0,
        guard=Guard(revoked=RevokedFile(path)),
    )
    control = ControlPlane(node.server, lambda seconds: None, tls)
    where = f"127.0.0.1:{control.start('127.0.0.1', 0)}"
    backends = []

    def client(name: str) -> Caller:
        mine = pki.client(f"client-{name}")
        transport = TcpTransport(stall_timeout=10.0, tls=mine)
        backends.append(RemoteBackend("tcp", transport, (node.server.address,), access=Access(mine), timeout=10.0))
        return Caller(backends[-1].connect(backends[-1].devices()[0]))

    try:
        alice, bob = client("alice"), client("bob")
        revoked.add(path, pki.directory / "client-alice.pem")
        with pytest.raises(AccessDenied, match="'alice' was revoked"):
            client("alice")
        with (
            ControlClient(where, tls=pki.client("client-alice")) as asked,
            pytest.raises(AccessDenied, match="revoked"),
        ):
            asked.capabilities()
        node.server.housekeep()
        assert node.server.wait_for_sessions(1, 10.0)
        with pytest.raises(BackendError):
            alice.get(alice.put([1]))
        assert bob.get(bob.put([2])) == [2]
        with ControlClient(where, tls=pki.client("client-bob")) as asked:
            assert asked.capabilities().devices
    finally:
        for backend in backends:
            backend.close()
        control.close()


def test_who_is_sent_away_at_work_learns_what_to_do(make_node: Callable[..., Node], pki: Pki, tmp_path: Path) -> None:
    path, tls, mine = tmp_path / "revoked.json", pki.node(client_ca=True), pki.client("client-alice")
    node = make_node(
        transport=TcpTransport(stall_timeout=10.0, tls=tls),
        address="127.0.0.1:0",
        local=False,
        guard=Guard(revoked=RevokedFile(path)),
    )
    transport = TcpTransport(stall_timeout=10.0, tls=mine)
    backend = RemoteBackend("tcp", transport, (node.server.address,), access=Access(mine), timeout=10.0)
    try:
        caller = Caller(backend.connect(backend.devices()[0]))
        value = caller.put([1])
        revoked.add(path, pki.directory / "client-alice.pem")
        node.server.housekeep()
        with pytest.raises(BackendError, match="the certificate of 'alice' was revoked") as caught:
            caller.get(value)
        assert "with a token and certificate that the node takes" in caught.value.hint
    finally:
        backend.close()


def test_a_certificate_without_a_fingerprint_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "revoked.json").write_text('{"revoked": []}')
    guard = Guard(revoked=RevokedFile(tmp_path / "revoked.json"))
    with pytest.raises(AccessDenied, match="cannot be looked up"):
        guard.check_certificate(Identity(certificate="alice"))
    guard.check_certificate(Identity())  # of a Unix socket's


def test_the_command(pki: Pki, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new.json"
    assert main(["certs", "revoke", str(path)]) == 0  # for a node to begin with
    assert not RevokedFile(path).has("0" * 64)
    for _ in range(2):
        assert main(["certs", "revoke", str(path), pki.path("client-alice.pem"), pki.path("client-bob.pem")]) == 0
    entries = revoked.load(path)
    assert [entry.file for entry in entries] == ["client-alice.pem", "client-bob.pem"]
    assert RevokedFile(path).has(entries[0].sha256)
    assert main(["certs", "revoke", str(path), pki.path("client-alice.key")]) == 1
    assert "no certificate in PEM" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[]", '{"revoked": [{}]}', '{"revoked": [], "x": 1}', "[" * 100_000])
def test_lists_that_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "revoked.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="malformed") as caught:
        RevokedFile(path)
    assert caught.value.where == str(path)
