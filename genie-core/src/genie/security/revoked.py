"""Certificates that are not believed any more, though they have not expired: a list for nodes, by fingerprint.

Not the authority's own list (CRL): gRPC's Python library, which has the control plane, cannot read one.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from genie.errors import ConfigError
from genie.security.editing import edited
from genie.security.files import Watched, read_small

_HASH = re.compile(r"[0-9a-f]{64}")
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``sha256`` is of the certificate in DER (``openssl x509 -fingerprint -sha256``); ``file`` is for people."""

    sha256: str
    file: str
    time: datetime.datetime

    def __post_init__(self) -> None:
        if not _HASH.fullmatch(self.sha256):
            raise ConfigError("sha256 must be 64 hexadecimal digits")


class _Contents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    revoked: tuple[Entry, ...] = ()


class RevokedFile:
    """The list as the file says now: no restart is needed when it changes."""

    def __init__(self, path: str | Path, told: Callable[[str, str], None] | None = None) -> None:
        found = Path(path)
        self._watched = Watched(
            "revoked certificates", (found,), lambda: frozenset(entry.sha256 for entry in load(found)), told
        )

    def has(self, fingerprint: str) -> bool:
        return fingerprint in self._watched.get()


def fingerprint(der: bytes | None) -> str:
    """Of a certificate; "" of none."""
    return hashlib.sha256(der).hexdigest() if der else ""


def fingerprint_of_pem(pem: bytes, where: str = "") -> str:
    """Of the first certificate in it. Raises :class:`ConfigError`."""
    found = _PEM.search(pem)
    try:
        if found is not None:
            return fingerprint(ssl.PEM_cert_to_DER_cert(found[0].decode("ascii")))
    except ValueError:
        pass
    raise ConfigError("there is no certificate in PEM", where=where)


def load(path: Path) -> tuple[Entry, ...]:
    """Raises :class:`ConfigError` naming the file and what is wrong in it."""
    data = read_small(path, "the list of revoked certificates", hint="`genie certs revoke FILE` makes an empty one")
    try:
        return msgspec.json.decode(data, type=_Contents).revoked
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"the list of revoked certificates is malformed: {text}",
            where=str(path),
            hint="`genie certs revoke` writes it",
        ) from error


def begin(path: Path) -> None:
    """An empty list, if there is none: a node that is started with it need not be started again to revoke."""
    with edited(path, "the list of revoked certificates", load, _dump):
        pass


def add(path: Path, cert: Path) -> None:
    """Put a certificate, a file in PEM, on the list; the list is made if there is none."""
    sha256 = fingerprint_of_pem(read_small(cert, "the certificate"), str(cert))
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    with edited(path, "the list of revoked certificates", load, _dump) as entries:
        if all(entry.sha256 != sha256 for entry in entries):
            entries.append(Entry(sha256=sha256, file=cert.name, time=now))


def _dump(entries: Sequence[Entry]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(_Contents(tuple(entries))), indent=2)
