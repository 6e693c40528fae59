"""A laboratory's certificates, and the settings that name files."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from security.pki import Pki, days_ago

from genie.cli import main
from genie.errors import ConfigError
from genie.security import Tls, TlsFiles, certs


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.make(tmp_path_factory.mktemp("pki") / "lab")


def test_what_is_made(pki: Pki) -> None:
    node = x509.load_pem_x509_certificate(Path(pki.path("node-127.0.0.1.pem")).read_bytes())
    names = node.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    client = x509.load_pem_x509_certificate(Path(pki.path("client-alice.pem")).read_bytes())
    usage = list(client.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert usage == [ExtendedKeyUsageOID.CLIENT_AUTH]  # a client cannot pose as a node
    authority = x509.load_pem_x509_certificate(Path(pki.ca).read_bytes())
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    for each in (node, client):
        each.verify_directly_issued_by(authority)
        assert not each.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert 364 <= (each.not_valid_after_utc - each.not_valid_before_utc).days <= 366


@pytest.mark.parametrize("name", ["ca.key", "node-127.0.0.1.key", "client-alice.key"])
def test_keys_are_for_their_owner_alone(pki: Pki, name: str) -> None:
    assert stat.S_IMODE(os.stat(pki.path(name)).st_mode) == 0o600


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab = str(tmp_path / "lab")
    assert (
        main(["certs", "init", lab, "--node", "gpu1.lab,10.0.0.10", "--node", "::1", "--client", "bob", "--json"]) == 0
    )
    made = json.loads(capsys.readouterr().out)
    assert [Path(each["cert"]).name for each in made] == [
        "ca.pem",
        "node-gpu1.lab.pem",
        "node-__1.pem",
        "client-bob.pem",
    ]
    assert main(["certs", "node", lab, "gpu2.lab", "10.0.0.11"]) == 0
    assert main(["certs", "client", lab, "carol", "--days", "7"]) == 0
    assert (tmp_path / "lab" / "client-carol.key").is_file()
    assert main(["certs", "init", lab]) == 1
    assert "authority already" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--node", "a b"], ["--node", ","], ["--client", "../x"]])
def test_a_command_that_fails_leaves_nothing(tmp_path: Path, wrong: list[str]) -> None:
    assert main(["certs", "init", str(tmp_path / "lab"), *wrong]) == 1
    assert not (tmp_path / "lab").exists()


def test_an_authority_is_not_replaced(pki: Pki) -> None:
    before = Path(pki.ca).read_bytes()
    with pytest.raises(ConfigError, match="authority already"):
        certs.create_authority(pki.directory)
    assert Path(pki.ca).read_bytes() == before


def test_a_certificate_is_renewed(tmp_path: Path) -> None:
    pki = Pki.make(tmp_path)
    before = Path(pki.path("node-127.0.0.1.pem")).read_bytes()
    issued = certs.issue_node(tmp_path, ["127.0.0.1"])
    assert issued.cert.read_bytes() != before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("host", ["", "no spaces", "host:8888", "-", "a" * 64, "../x"])
def test_hosts_that_are_none(pki: Pki, host: str) -> None:
    with pytest.raises(ConfigError):
        certs.issue_node(pki.directory, [host])


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a" * 65])
def test_clients_that_are_none(pki: Pki, name: str) -> None:
    with pytest.raises(ConfigError):
        certs.issue_client(pki.directory, name)


def test_an_authority_that_is_not_there_damaged_or_expired(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the authority"):
        certs.issue_client(tmp_path / "none", "a")
    Pki.make(tmp_path / "a")
    (tmp_path / "a" / "ca.pem").write_text("nonsense")
    with pytest.raises(ConfigError, match="damaged"):
        certs.issue_client(tmp_path / "a", "a")
    with days_ago(4000):
        certs.create_authority(tmp_path / "b")
    with pytest.raises(ConfigError, match="expired"):
        certs.issue_client(tmp_path / "b", "a")


def test_settings_that_cannot_be_used(pki: Pki, tmp_path: Path) -> None:
    good = pki.files("node-127.0.0.1")
    missing = str(tmp_path / "missing.pem")
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for files, match in [
        (TlsFiles(cert=good.cert), "'cert' is given without 'key'"),
        (TlsFiles(key=good.key), "'key' is given without 'cert'"),
        (TlsFiles(client_ca=pki.ca), "'client_ca' is given without"),
        (TlsFiles(cert=missing, key=good.key), "cannot read .*'cert'.*No such file"),
        (TlsFiles(cert=good.cert, key=missing), "cannot read .*'key'.*No such file"),
        (TlsFiles(cert=good.cert, key=str(tmp_path)), "'key'"),
        (TlsFiles(ca=missing), "cannot read .*'ca'"),
        (TlsFiles(ca=str(nonsense)), "'ca': no certificates"),
        (TlsFiles(ca=str(empty)), "'ca': no certificates"),
        (TlsFiles(ca=pki.path("client-alice.pem")), "no authority's certificate"),
        (TlsFiles(cert=good.cert, key=pki.path("client-alice.key")), "cannot be used together: .*mismatch"),
        (TlsFiles(cert=str(nonsense), key=good.key), "cannot be used together"),
    ]:
        with pytest.raises(ConfigError, match=match) as caught:
            Tls(files)
        assert "\n" not in caught.value.message


def test_an_expired_certificate_is_not_served(tmp_path: Path) -> None:
    certs.create_authority(tmp_path)
    with days_ago(30):
        certs.issue_node(tmp_path, ["127.0.0.1"], days=10)
    with pytest.raises(ConfigError, match="expired"):
        Tls(Pki(tmp_path).files("node-127.0.0.1"))


def test_a_key_with_a_password_does_not_ask_for_it(pki: Pki, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    path = pki.path("node-127.0.0.1.key")
    key = serialization.load_pem_private_key(Path(path).read_bytes(), None)
    secret = tmp_path / "secret.key"
    encryption = serialization.BestAvailableEncryption(b"secret")
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    with pytest.raises(ConfigError, match="encrypted"):
        Tls(TlsFiles(cert=pki.path("node-127.0.0.1.pem"), key=str(secret)))


def test_a_pair_that_changes_one_after_the_other(tmp_path: Path) -> None:
    """Between the two writes the files do not fit: what was there stays."""
    pki = Pki.make(tmp_path / "lab")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    told: list[tuple[str, str]] = []
    cert.write_bytes(Path(pki.path("node-127.0.0.1.pem")).read_bytes())
    key.write_bytes(Path(pki.path("node-127.0.0.1.key")).read_bytes())
    tls = Tls(TlsFiles(cert=str(cert), key=str(key)), lambda what, problem: told.append((what, problem)))
    before = tls.server()
    issued = certs.issue_node(pki.directory, ["127.0.0.1"])
    cert.write_bytes(issued.cert.read_bytes())
    assert tls.server() is before
    assert told[0][0] == "certificates" and "cannot be used together" in told[0][1]
    key.write_bytes(issued.key.read_bytes())
    assert tls.server() is not before
    assert told[1:] == [("certificates", "")]
