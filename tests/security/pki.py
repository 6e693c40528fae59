"""An authority with a node and a client, made once, and a second one that nobody believes."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import attrs

from genie.security import Tls, TlsFiles, certs


@attrs.frozen
class Pki:
    directory: Path

    @classmethod
    def make(cls, directory: Path) -> Pki:
        certs.create_authority(directory)
        certs.issue_node(directory, ["127.0.0.1", "localhost"])
        certs.issue_client(directory, "alice")
        return cls(directory)

    def path(self, name: str) -> str:
        return str(self.directory / name)

    @property
    def ca(self) -> str:
        return self.path("ca.pem")

    def files(self, name: str = "", *, ca: bool = False, client_ca: bool = False) -> TlsFiles:
        cert, key = (self.path(f"{name}.pem"), self.path(f"{name}.key")) if name else ("", "")
        return TlsFiles(ca=self.ca if ca else "", cert=cert, key=key, client_ca=self.ca if client_ca else "")

    def node(self, *, client_ca: bool = False) -> Tls:
        return Tls(self.files("node-127.0.0.1", ca=True, client_ca=client_ca))

    def client(self, name: str = "") -> Tls:
        return Tls(self.files(name, ca=True))


@contextmanager
def days_ago(days: int) -> Iterator[None]:
    """Certificates are made as if it were then."""

    then = datetime.datetime.now(datetime.UTC).replace(microsecond=0) - datetime.timedelta(days=days)
    with mock.patch.object(certs, "_now", return_value=then):
        yield
