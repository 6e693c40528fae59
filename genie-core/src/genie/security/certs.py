"""A laboratory's own certificates: one authority, and certificates for its nodes and clients.

For those who have no authority. Certificates of any other, in PEM, do as well: the rest of Genie does not know the
difference. Needs the library ``cryptography``: ``pip install 'genie-core[certs]'``.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from genie.errors import ConfigError

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as error:
    raise ConfigError(
        "making certificates needs the library 'cryptography'",
        hint="pip install 'genie-core[certs]'; nodes and clients work without it",
    ) from error

CA_DAYS = 3650
DAYS = 365
_MOST_DAYS = 825  # what common verifiers take of a certificate that is no authority's
_LONGEST_NAME = 64  # of who a certificate is for
_SKEW = datetime.timedelta(minutes=5)  # of the clocks of a laboratory
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_HOST = re.compile(
    r"(\*\.)?([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
)


class Issued(NamedTuple):
    """Where a certificate and its key are. ``until`` is the last moment it holds."""

    cert: Path
    key: Path
    until: datetime.datetime


def create_authority(directory: Path, name: str = "Genie lab CA", days: int = CA_DAYS) -> Issued:
    """``ca.pem`` and ``ca.key`` in ``directory``, which is made. Raises :class:`ConfigError` if there are some: a new
    authority would make every certificate of the old one worthless."""
    _authority_name(name)
    cert_path, key_path = directory / "ca.pem", directory / "ca.key"
    for path in (cert_path, key_path):
        if os.path.exists(path):
            raise ConfigError(
                f"there is an authority already: {path}",
                where=str(directory),
                hint="`genie certs node` and `genie certs client` use it; a new one goes to another directory",
            )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the directory: {error.strerror}", where=str(directory)) from error
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    builder, until = _builder(subject, subject, key.public_key(), days)
    usage = _usage(key_cert_sign=True, crl_sign=True)
    cert = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(key_path, _private(key), 0o600)
    _write(cert_path, cert.public_bytes(serialization.Encoding.PEM), 0o644)
    return Issued(cert_path, key_path, until)


def check(nodes: Sequence[Sequence[str]], clients: Sequence[str], days: int) -> None:
    """Raises :class:`ConfigError` for what :func:`issue_node` and :func:`issue_client` would not take."""
    for hosts in nodes:
        _hosts(hosts)
    for name in clients:
        _client(name)
    if nodes or clients:
        _lasting(days)


def issue_node(directory: Path, hosts: Sequence[str], days: int = DAYS) -> Issued:
    """For the node that clients reach by any of ``hosts`` (names or IP addresses); the first names the files. An older
    one of the same name is replaced."""
    names = _hosts(hosts)
    # Nodes send each other values: towards another node, a node is a client.
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return _issue(directory, f"node-{_file_name(hosts[0])}", hosts[0], names, purposes, days)


def issue_client(directory: Path, name: str, days: int = DAYS) -> Issued:
    """For the client ``name``, which the audit log will call so. An older one of the same name is replaced."""
    _client(name)
    return _issue(directory, f"client-{name}", name, [], [ExtendedKeyUsageOID.CLIENT_AUTH], days)


def _issue(
    directory: Path,
    file_name: str,
    name: str,
    alternatives: Sequence[x509.GeneralName],
    purposes: Sequence[x509.ObjectIdentifier],
    days: int,
) -> Issued:
    _lasting(days)
    ca, ca_key = _authority(directory)
    key = ec.generate_private_key(ec.SECP256R1())
    builder, until = _builder(
        _subject(name[:_LONGEST_NAME]), ca.subject, key.public_key(), days, ca.not_valid_after_utc
    )
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    cert = builder.sign(ca_key, hashes.SHA256())
    cert_path, key_path = directory / f"{file_name}.pem", directory / f"{file_name}.key"
    _write(key_path, _private(key), 0o600)
    _write(cert_path, cert.public_bytes(serialization.Encoding.PEM), 0o644)
    return Issued(cert_path, key_path, until)


def _authority(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    cert_path, key_path = directory / "ca.pem", directory / "ca.key"
    try:
        cert = x509.load_pem_x509_certificate(cert_path.read_bytes())
        key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(
            f"cannot read the authority: {error.strerror}",
            where=str(error.filename),
            hint=f"`genie certs init {directory}` makes one",
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"the authority is damaged: {error}", where=str(directory)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != cert.public_key():
        raise ConfigError("ca.key is not the key of ca.pem", where=str(directory))
    if cert.not_valid_after_utc <= _now():
        raise ConfigError(
            f"the authority expired on {cert.not_valid_after_utc:%Y-%m-%d}",
            where=str(cert_path),
            hint="make a new one in another directory with `genie certs init`",
        )
    return cert, key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    days: int,
    latest: datetime.datetime | None = None,
) -> tuple[x509.CertificateBuilder, datetime.datetime]:
    now = _now()
    until = now + datetime.timedelta(days=days)
    if latest is not None:
        until = min(until, latest)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
    return builder, until


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _lasting(days: int) -> None:
    if not 0 < days <= _MOST_DAYS:
        raise ConfigError(f"a certificate for {days} days", hint=f"1 to {_MOST_DAYS}: renew it in time instead")


def _authority_name(name: str) -> None:
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise ConfigError(f"{name[:_LONGEST_NAME]!r} is no name for an authority", hint="at most 64 characters")


def _client(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name[:64]!r} is no name for a client", hint="letters, digits, dots, dashes; at most 64")


def _hosts(hosts: Sequence[str]) -> list[x509.GeneralName]:
    if not hosts:
        raise ConfigError("a node's certificate needs the names or addresses that clients reach it by")
    return [_host(host) for host in hosts]


def _host(host: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise ConfigError(f"{host[:64]!r} is no name of a host and no IP address", hint="give it without a port")
    return x509.DNSName(host)


def _file_name(host: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "_", host.strip("[]"))


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """All of it or nothing, and never readable for others in between."""
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), mode)
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise ConfigError(f"cannot write: {error.strerror}", where=str(path)) from error
