"""Operators' and users' mistakes: one clear line each, a status that is not 0, and nothing is served."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from remote.peers import Node
from security.pki import Pki, days_ago

from genie.cli import main
from genie.remote.control import ControlPlane
from genie.remote.node import serve as serving
from genie.security import Guard, Scope, TokenFile, certs, tokens
from genie_backend_tcp import TcpTransport

HALF = "half"
LONG = "x" * 300  # no file system has such a name


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    pki = Pki.make(tmp_path_factory.mktemp("pki"))
    directory = pki.directory
    with days_ago(30):
        certs.issue_node(directory, ["late.example"], days=10)
    tokens.add(directory / "tokens.json", "somebody")
    for name in ("tokens.json", "ca.pem", "node-127.0.0.1.pem", "node-127.0.0.1.key"):
        whole = (directory / name).read_text()
        (directory / f"{HALF}-{name}").write_text(whole[: len(whole) // 2])
    (directory / f"{HALF}-revoked.json").write_text('{"revoked": [{"sha')
    (directory / f"{HALF}.toml").write_text('timeout = 3\nbackend = "tc')
    (directory / f"{HALF}.yaml").write_text("cluster:\n  devices:\n    - {id: a, addr")
    (directory / "unknown.toml").write_text("time_out = 3\n")
    (directory / "negative.toml").write_text("timeout = -3\n")
    (directory / "digits.toml").write_text(f"timeout = {'3' * 5000}\n")
    os.mkfifo(directory / "pipe")
    (directory / "folder").mkdir()
    return pki


@pytest.fixture(autouse=True)
def place(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the files are; and whoever gets so far as to serve fails the test instead of serving for ever."""

    def served(*_: object, **__: object) -> None:
        raise AssertionError("it served")

    monkeypatch.chdir(pki.directory)
    monkeypatch.setattr(serving, "_ready", served)
    for name in [name for name in os.environ if name.startswith("GENIE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    def check(reason: str, *command: str, status: int = 1) -> None:
        assert main(list(command)) == status
        out, err = capsys.readouterr()
        assert out == ""
        if status == 1:
            first, *rest = [line for line in err.strip().splitlines() if not _is_warning(line)]
            assert reason in first, err
            assert all(line.startswith(("  where:", "  hint:", "  stage:")) for line in rest), err
        else:  # as the parser of the command's line says it
            assert reason in err, err

    return check


def _is_warning(line: str) -> bool:
    return line.startswith("WARNING: INSECURE") or "[warning" in line


TLS = ("--cert", "node-127.0.0.1.pem", "--key", "node-127.0.0.1.key")
CONFIG = "GENIE_CONFIG"


@pytest.mark.parametrize(
    ("reason", "options", "environment"),
    [
        ("cannot be used together", ("--cert", "tokens.json", "--key", "node-127.0.0.1.key"), {}),
        ("cannot be used together", ("--cert", "node-127.0.0.1.pem", "--key", "client-alice.key"), {}),
        ("cannot be used together", ("--cert", f"{HALF}-node-127.0.0.1.pem", "--key", "node-127.0.0.1.key"), {}),
        ("cannot be used together", ("--cert", "node-127.0.0.1.pem", "--key", f"{HALF}-node-127.0.0.1.key"), {}),
        ("cannot read the file of setting 'key'", ("--cert", "node-127.0.0.1.pem", "--key", "none.key"), {}),
        ("setting 'key'", ("--cert", "node-127.0.0.1.pem", "--key", "folder"), {}),
        ("'key' is given without 'cert'", ("--key", "node-127.0.0.1.key"), {}),
        ("certificate has expired", ("--cert", "node-late.example.pem", "--key", "node-late.example.key"), {}),
        ("'client_ca': no certificates", (*TLS, "--client-ca", f"{HALF}-ca.pem"), {}),
        ("no authority's certificate", (*TLS, "--client-ca", "client-alice.pem"), {}),
        ("cannot read the file of setting 'ca'", (*TLS, "--ca", "none.pem"), {}),
        ("the tokens file is malformed", ("--tokens", f"{HALF}-tokens.json"), {}),
        ("cannot read the tokens file", ("--tokens", "none.json"), {}),
        ("cannot read the tokens file", ("--tokens", "folder"), {}),
        ("revoked certificates is malformed", (*TLS, "--client-ca", "ca.pem", "--revoked", f"{HALF}-revoked.json"), {}),
        ("cannot read the list of revoked", (*TLS, "--client-ca", "ca.pem", "--revoked", "none.json"), {}),
        ("--port and --control-port are the same port, 7", ("--port", "7", "--control-port", "7"), {}),
        ("--port and --metrics-port are the same port, 7", ("--port", "7", "--metrics-port", "7"), {}),
        ("--metrics-host is given", ("--metrics-host", "127.0.0.1"), {}),
        ("not asked for certificates", (*TLS, "--revoked", f"{HALF}-revoked.json"), {}),
        ("lacks TLS", ("--host", "0.0.0.0"), {}),
        ("others reach the metrics", ("--metrics-port", "0", "--metrics-host", "0.0.0.0"), {}),
        ("no host 'no-such-host.invalid'", ("--host", "no-such-host.invalid"), {}),
        ("no host 'no-such-host.invalid'", ("--metrics-port", "0", "--metrics-host", "no-such-host.invalid"), {}),
        ("no host '::12345'", ("--host", "::12345"), {}),
        ("cannot listen", ("--host", "192.0.2.1", "--insecure"), {}),
        ("cannot write the audit log", ("--audit-log", "none/audit"), {}),
        ("cannot write the audit log", ("--audit-log", "folder"), {}),
        ("cannot write the audit log", ("--audit-log", "pipe"), {}),
        ("cannot read the tokens file", ("--tokens", LONG), {}),
        ("cannot write the audit log", ("--audit-log", LONG), {}),
        ("there is no device 'cuda:77'", ("--device", "cuda:77"), {}),
        ("'loacl'", ("--backend", "loacl"), {}),
        ("cannot listen", ("--unix", "none/socket"), {}),
        ("cannot listen", ("--unix", "tokens.json"), {}),
        ("a socket's path has", ("--unix", "/tmp/" + "x" * 120), {}),
        ("the configuration is not TOML", (), {CONFIG: f"{HALF}.toml"}),
        ("cannot read the configuration", (), {CONFIG: "none.toml"}),
        ("YAML", (), {CONFIG: f"{HALF}.yaml"}),
        ("the configuration is not TOML", (), {CONFIG: "digits.toml"}),
        ("unknown setting 'time_out'", (), {CONFIG: "unknown.toml"}),
        ("setting 'timeout'", (), {CONFIG: "negative.toml"}),
        ("unknown setting GENIE_TIMEOUTT", (), {"GENIE_TIMEOUTT": "3"}),
        ("setting 'lease_seconds'", (), {"GENIE_LEASE_SECONDS": "-1"}),
        ("setting 'execution_seconds'", (), {"GENIE_EXECUTION_SECONDS": "nan"}),
        ("setting 'memory_limit_gb'", (), {"GENIE_MEMORY_LIMIT_GB": "-2"}),
        ("setting 'heartbeat_seconds'", (), {"GENIE_HEARTBEAT_SECONDS": "soon"}),
    ],
    ids=lambda value: (
        " ".join(value)[:60] if isinstance(value, tuple) else str(value) if isinstance(value, dict) else None
    ),
)
def test_what_a_node_does_not_start_with(
    refused: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    reason: str,
    options: tuple[str, ...],
    environment: dict[str, str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    refused(reason, "serve", "--port", "0", *options)


@pytest.mark.parametrize(
    "options",
    [("--port", "-1"), ("--port", "65536"), ("--threads", "-1"), ("--execution-seconds", "-1"), ("--prot", "1")],
    ids=" ".join,
)
def test_options_that_are_none(refused: Callable[..., None], options: tuple[str, ...]) -> None:
    refused(options[0], "serve", *options, status=2)


@pytest.mark.parametrize("option", ["--port", "--control-port", "--metrics-port"])
def test_a_port_that_is_taken(refused: Callable[..., None], option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        rest = () if option == "--port" else ("--port", "0")
        refused(port, "serve", option, port, *rest)


def test_a_control_port_that_is_not_for_us(refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    class Forbidden(socket.socket):
        def bind(self, address: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "socket", Forbidden)
    refused("cannot listen at 127.0.0.1:81: Permission denied", "serve", "--port", "0", "--control-port", "81")


@pytest.mark.parametrize("options", [("--host", "[::1]"), ("--metrics-port", "0", "--metrics-host", "[::1]")])
def test_an_address_of_ipv6_may_have_its_brackets(options: tuple[str, ...]) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this host has no IPv6")
    with pytest.raises(AssertionError, match="it served"):
        main(["serve", "--port", "0", "--device", "cpu", *options])


def test_a_key_that_others_may_read(pki: Pki, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said, and no reason not to serve."""
    key = tmp_path / "key"
    key.write_bytes((pki.directory / "node-127.0.0.1.key").read_bytes())
    key.chmod(0o644)
    with pytest.raises(AssertionError, match="it served"):
        main(["serve", "--port", "0", "--device", "cpu", "--cert", "node-127.0.0.1.pem", "--key", str(key)])
    assert "others may read a secret" in capsys.readouterr().err


def test_a_certificate_that_expires_soon(pki: Pki, capsys: pytest.CaptureFixture[str]) -> None:
    issued = certs.issue_node(pki.directory, ["soon.example"], days=5)
    with pytest.raises(AssertionError, match="it served"):
        main(["serve", "--port", "0", "--device", "cpu", "--cert", str(issued.cert), "--key", str(issued.key)])
    assert "expires soon" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reason", "command"),
    [
        ("there is an authority already", ("certs", "init", ".")),
        ("cannot make the directory", ("certs", "init", LONG)),
        ("is no name for an authority", ("certs", "init", "new", "--name", "")),
        ("is no name for an authority", ("certs", "init", "new", "--name", "x" * 65)),
        ("a certificate for 9999 days", ("certs", "init", "new", "--node", "gpu1", "--days", "9999")),
        ("is no name of a host", ("certs", "node", ".", "a b")),
        ("cannot read the authority", ("certs", "node", "folder", "gpu1")),
        ("is no name for a client", ("certs", "client", ".", "")),
        ("a certificate for 9999 days", ("certs", "client", ".", "carol", "--days", "9999")),
        ("cannot read the certificate", ("certs", "revoke", "list.json", "none.pem")),
        ("no certificate in PEM", ("certs", "revoke", "list.json", "tokens.json")),
        ("malformed", ("certs", "revoke", f"{HALF}-revoked.json", "client-alice.pem")),
        ("there is a token 'somebody' already", ("tokens", "add", "tokens.json", "somebody")),
        ("no name for a token", ("tokens", "add", "tokens.json", "a b")),
        ("there is no such directory", ("tokens", "add", "none/tokens.json", "alice")),
        ("malformed", ("tokens", "add", f"{HALF}-tokens.json", "alice")),
        ("cannot read the tokens file", ("tokens", "list", "none.json")),
        ("there is no token 'nobody'", ("tokens", "revoke", "tokens.json", "nobody")),
        ("there is no tokens file", ("tokens", "revoke", "none.json", "alice")),
        ("cannot write the tokens file", ("tokens", "revoke", LONG, "alice")),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else None,
)
def test_certs_and_tokens(refused: Callable[..., None], reason: str, command: tuple[str, ...]) -> None:
    refused(reason, *command)
    assert not Path("new").exists()  # no authority that would be in the way of the next try


# --- the client's side ------------------------------------------------------------------------------


@pytest.fixture
def guarded(make_secret_node: Callable[..., Node], pki: Pki) -> Iterator[str]:
    """A node over TLS that asks for tokens."""
    tls = pki.node()
    node = make_secret_node(
        transport=TcpTransport(stall_timeout=5.0, tls=tls),
        address="127.0.0.1:0",
        local=False,
        guard=Guard(TokenFile(pki.directory / "tokens.json")),
    )
    control = ControlPlane(node.server, lambda seconds: None, tls)
    node.server.control_port = control.start("127.0.0.1", 0)
    yield node.server.address
    control.close()


@pytest.fixture
def make_secret_node() -> Iterator[Callable[..., Node]]:
    from genie.remote import NodeServer
    from genie.testing import NullBackend

    made: list[NodeServer] = []

    def make(transport: Any, **options: Any) -> Node:
        local = NullBackend()
        made.append(NodeServer(local, transport, **options))
        made[-1].start()
        return Node(made[-1], local, transport)

    yield make
    for server in made:
        server.close()


def token(pki: Pki, name: str, *scopes: Scope, days: float = 1.0) -> str:
    path = pki.directory / f"{name}.token"
    if not path.exists():
        path.write_text(tokens.add(pki.directory / "tokens.json", name, scopes or (Scope.USE,), days))
        path.chmod(0o600)
    return str(path)


def test_what_a_client_brings(
    refused: Callable[..., None], guarded: str, pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = Pki.make(tmp_path / "stranger")
    (tmp_path / "unknown").write_text("genie_" + "x" * 43)
    (tmp_path / "empty").write_text("")
    good = token(pki, "alice")
    monkeypatch.setenv("GENIE_UNIX_SOCKETS", "0")

    def status(reason: str, *command: str, **settings: str) -> None:
        with monkeypatch.context() as patched:
            for name, value in {"ca": pki.ca, "token_file": good, **settings}.items():
                patched.setenv(f"GENIE_{name.upper()}", value)
            refused(reason, *(command or ("node", "status", guarded)))

    status("cannot read the token", token_file=str(tmp_path / "none"))
    status("Is a directory", token_file=str(tmp_path))
    status("there is no token in the file", token_file=str(tmp_path / "empty"))
    status("the token is unknown", token_file=str(tmp_path / "unknown"))
    status("has expired", token_file=token(pki, "old", days=1e-9))
    status("has no scope 'use'", token_file=token(pki, "scraper", Scope.METRICS))
    status("has no scope 'admin'", "node", "cancel", guarded, "some-session")
    status("cannot read the file of setting 'ca'", ca=str(tmp_path / "none"))
    status("is not believed", ca=stranger.ca)
    status("client came without", ca="", token_file="")
    boss = token(pki, "boss", Scope.USE, Scope.ADMIN)
    status("no session 'some-session'", "node", "cancel", guarded, "some-session", token_file=boss)
    status("unknown", "node", "status", "no-such-host.invalid:1")


def test_a_clock_that_is_wrong(
    make_secret_node: Callable[..., Node],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A certificate made where the clock is ahead is not valid yet where it is right."""
    from genie.security import Tls, TlsFiles
    from genie.security import tls as module

    with days_ago(-2):
        ahead = Pki.make(tmp_path / "ahead")
    monkeypatch.setattr(module, "_check_own", lambda files: None)  # the node's own clock is ahead, too
    files = TlsFiles(ca=ahead.ca, cert=ahead.path("node-127.0.0.1.pem"), key=ahead.path("node-127.0.0.1.key"))
    node = make_secret_node(TcpTransport(stall_timeout=5.0, tls=Tls(files)), address="127.0.0.1:0", local=False)
    monkeypatch.setenv("GENIE_CA", ahead.ca)
    assert main(["node", "status", node.server.address]) == 1
    err = capsys.readouterr().err
    assert "not yet valid" in err
    assert "a clock is wrong" in err
