"""`genie serve` as operators run it: closed unless told otherwise, one line for what is wrong, two nodes over TLS."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
import pytest
from security.pki import Pki, days_ago

from genie import config
from genie.errors import AccessDenied, TlsFailed
from genie.plugins import registry
from genie.remote import RemoteBackend, status
from genie.security import certs, tokens
from genie.testing import Caller

_GENIE = [sys.executable, "-c", "import sys; from genie.cli import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    pki = Pki.make(tmp_path_factory.mktemp("pki"))
    with days_ago(30):
        certs.issue_node(pki.directory, ["late.example"], days=10)
    tokens.add(pki.directory / "tokens.json", "somebody")
    (pki.directory / "half.json").write_text((pki.directory / "tokens.json").read_text()[:50])
    (pki.directory / "token").write_text(tokens.add(pki.directory / "tokens.json", "alice"))
    return pki


TLS = ["--cert", "node-127.0.0.1.pem", "--key", "node-127.0.0.1.key"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--host", "0.0.0.0"], "lacks TLS"),
        (["--host", "::"], "lacks TLS"),
        (["--host", "0.0.0.0", "--tokens", "tokens.json"], "lacks TLS"),
        (["--host", "0.0.0.0", *TLS], "a way to tell clients"),
        (["--cert", "node-127.0.0.1.pem"], "'cert' is given without 'key'"),
        (["--cert", "missing.pem", "--key", "node-127.0.0.1.key"], "cannot read"),
        (["--cert", "node-127.0.0.1.pem", "--key", "client-alice.key"], "cannot be used together"),
        (["--cert", "node-late.example.pem", "--key", "node-late.example.key"], "expired"),
        (["--client-ca", "ca.pem"], "without 'cert'"),
        ([*TLS, "--client-ca", "tokens.json"], "no certificates"),
        (["--tokens", "missing.json"], "No such file"),
        (["--tokens", "half.json"], "malformed"),
        (["--audit-log", "none/audit"], "audit log"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_node_does_not_start_with(pki: Pki, options: list[str], reason: str) -> None:
    command = [*_GENIE, "serve", "--port", "0", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=pki.directory, check=False)
    assert done.returncode == 1
    assert done.stdout == ""  # nothing was served
    first, *rest = done.stderr.strip().splitlines()
    assert reason in first, done.stderr
    assert all(line.startswith(("  where:", "  hint:")) for line in rest), done.stderr


@contextmanager
def serving(pki: Pki, *options: str) -> Iterator[tuple[dict[str, object], Path]]:
    errors = pki.directory / "errors"
    with errors.open("w") as file:
        node = subprocess.Popen(
            [*_GENIE, "serve", "--port", "0", "--json", "--device", "cpu", *options],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            cwd=pki.directory,
        )
        try:
            assert node.stdout is not None
            line = node.stdout.readline()
            assert line, errors.read_text()
            yield json.loads(line), errors
            node.send_signal(signal.SIGTERM)
            assert node.wait(30) == 0
        finally:
            node.kill()
            node.wait(10)
            assert node.stdout is not None
            node.stdout.close()


def test_insecure_says_so(pki: Pki) -> None:
    with serving(pki, "--host", "0.0.0.0", "--insecure") as (_, errors):
        assert "WARNING: INSECURE" in errors.read_text()


def _backend(pki: Pki, *addresses: object, **more: object) -> RemoteBackend:
    given = {"nodes": tuple(map(str, addresses)), "ca": pki.ca, "unix_sockets": False, **more}
    backend: RemoteBackend = registry.make("backend", "tcp", config.resolve(given).settings)
    return backend


def test_a_node_that_others_reach(pki: Pki) -> None:
    with serving(pki, "--host", "0.0.0.0", *TLS, "--tokens", "tokens.json", "--audit-log", "audit") as (ready, _):
        address = f"127.0.0.1:{str(ready['address']).rpartition(':')[2]}"
        backend = _backend(pki, address, token_file=pki.path("token"))
        caller = Caller(backend.connect(backend.devices()[0]))
        assert caller.get(caller.put([1, 2])) == [1, 2]
        with pytest.raises(AccessDenied, match="who has a token"):
            _backend(pki, address).devices()
        with pytest.raises(AccessDenied, match="without"):
            _backend(pki, address, ca="").devices()
        backend.close()
        answer = subprocess.run(
            [*_GENIE, "node", "status", address, "--json"],
            env={**os.environ, "GENIE_CA": pki.ca, "GENIE_TOKEN_FILE": pki.path("token")},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert json.loads(answer.stdout)["control"] == "serving"
    events = [json.loads(line)["event"] for line in Path(pki.path("audit")).read_text().splitlines()]
    assert {"opened", "closed", "refused"} <= set(events)


def test_nodes_send_each_other_values_over_tls(pki: Pki) -> None:
    """Both ask for certificates, so the sender showed its own, and for tokens, of which a channel needs none."""
    options = (*TLS, "--client-ca", "ca.pem", "--tokens", "tokens.json")
    mine = {"cert": pki.path("client-alice.pem"), "key": pki.path("client-alice.key"), "token_file": pki.path("token")}
    with serving(pki, *options) as (one, _), serving(pki, *options) as (two, _):
        backend = _backend(pki, one["address"], two["address"], **mine)
        first, second = (Caller(backend.connect(device)) for device in backend.devices())
        outlet = first.session.outlet(inlet := second.session.inlet("one"))
        values = numpy.arange(100_000, dtype=numpy.float32)
        handle = first.put(values.tolist())
        first.session.send(outlet, handle)
        second.session.receive(inlet, 0, 77)
        assert second.get(77) == values.tolist()
        backend.close()
        with pytest.raises(TlsFailed, match="asks for a certificate"):
            _backend(pki, one["address"], token_file=pki.path("token")).devices()
        with pytest.raises(TlsFailed, match="asks for a certificate"):
            status(
                str(one["address"]),
                transport=registry.make("transport", "tcp", config.resolve({"ca": pki.ca}).settings),
            )
