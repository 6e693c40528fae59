"""TLS 1.3 by files of PEM: checked before anything is served, loaded again when they change."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

import attrs

from genie.config import Settings
from genie.errors import ConfigError, TlsFailed
from genie.security.files import Watched, read_small, warn_if_exposed
from genie.telemetry import get_logger

log = get_logger("genie.security")

_SOON = datetime.timedelta(days=14)


@attrs.frozen
class TlsFiles:
    """Paths; "" is none. ``ca`` is what the peers we connect to are verified by, ``cert`` and ``key`` are who we are,
    ``client_ca`` is what those are verified by who connect to us: given, a certificate is asked of them (mTLS)."""

    ca: str = ""
    cert: str = ""
    key: str = ""
    client_ca: str = ""

    @classmethod
    def of(cls, settings: Settings) -> TlsFiles:
        return cls(ca=settings.ca, cert=settings.cert, key=settings.key, client_ca=settings.client_ca)


class Pems(NamedTuple):
    """The files' contents, for gRPC."""

    ca: bytes | None
    cert: bytes | None
    key: bytes | None
    client_ca: bytes | None


# What two ends may agree on, once it is clear that both are Genie's: a transport that seals large data by itself (the
# data plane over TCP does) goes by it.
DATA_PLANE = "genie-sealed/1"


class _Loaded(NamedTuple):
    server: ssl.SSLContext | None
    client: ssl.SSLContext | None
    pems: Pems


class Tls:
    """One side's certificates, those it believes, and the contexts made of them. Raises :class:`ConfigError` for files
    that cannot be used."""

    def __init__(self, files: TlsFiles, told: Callable[[str, str], None] | None = None) -> None:
        self.files = files
        self._check_settings()
        paths = [Path(path) for path in attrs.astuple(files) if path]
        self._watched = Watched("certificates", paths, self._load, told)

    @property
    def serves(self) -> bool:
        """Who connects to us must speak TLS."""
        return bool(self.files.cert)

    @property
    def connects(self) -> bool:
        """We speak TLS to whom we connect. A side that has a certificate and believes nobody's connects to nobody."""
        return bool(self.files.ca or self.files.cert)

    @property
    def asks_for_certificates(self) -> bool:
        return bool(self.files.client_ca)

    def server(self) -> ssl.SSLContext:
        context = self._watched.get().server
        assert context is not None, "asked only where `serves`"
        return context

    def client(self) -> ssl.SSLContext:
        context = self._watched.get().client
        if context is None:
            _believes_nobody()
        return context

    def pems(self) -> Pems:
        return self._watched.get().pems

    def _check_settings(self) -> None:
        files = self.files
        if bool(files.cert) != bool(files.key):
            given, missing = ("cert", "key") if files.cert else ("key", "cert")
            raise ConfigError(f"setting {given!r} is given without {missing!r}")
        if files.client_ca and not files.cert:
            raise ConfigError("setting 'client_ca' is given without 'cert' and 'key'", hint="a node needs its own, too")

    def _load(self) -> _Loaded:
        files = self.files
        pems = Pems(
            *(
                read_small(Path(path), f"the file of setting {name!r}") if path else None
                for name, path in attrs.asdict(files).items()
            )
        )
        server = client = None
        if files.cert:
            warn_if_exposed(Path(files.key), "the private key")
            server = _context(ssl.PROTOCOL_TLS_SERVER)
            server.num_tickets = 0  # a session of Genie's outlives any saving by TLS's resumption
            _load_own(server, files)
            if files.client_ca:
                _believe(server, files.client_ca, "client_ca")
                server.verify_mode = ssl.CERT_REQUIRED
            _check_own(files)
        if ca := files.ca or files.client_ca:
            client = _context(ssl.PROTOCOL_TLS_CLIENT)
            _believe(client, ca, "ca" if files.ca else "client_ca")
            if files.cert:
                _load_own(client, files)
        return _Loaded(server, client, pems)


def _believes_nobody() -> NoReturn:
    raise TlsFailed(
        "this side has a certificate, and none to verify others by",
        hint="set `ca` (`genie serve --ca`) to the certificate of the authority that the other node's is from",
    )


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([DATA_PLANE])
    return context


def _believe(context: ssl.SSLContext, path: str, setting: str) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"setting {setting!r}: no certificates in PEM: {_reason(error)}", where=path) from error
    if not context.cert_store_stats()["x509_ca"]:
        raise ConfigError(f"setting {setting!r}: the file has no authority's certificate", where=path)


def _load_own(context: ssl.SSLContext, files: TlsFiles) -> None:
    def no_password() -> str:
        raise ConfigError("setting 'key': the private key is encrypted", where=files.key, hint="give it without")

    try:
        context.load_cert_chain(files.cert, files.key, password=no_password)
    except ConfigError:
        raise
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"settings 'cert' and 'key' cannot be used together: {_reason(error)}",
            where=f"{files.cert}, {files.key}",
            hint="both in PEM, the certificate's own first, the key its own and without a password",
        ) from error


def _check_own(files: TlsFiles) -> None:
    """That others will accept it: by a handshake with ourselves, in memory, believing this certificate alone."""
    node = bool(files.client_ca) or not files.ca  # else perhaps a client's, which may be good for clients alone
    probe = _context(ssl.PROTOCOL_TLS_CLIENT)
    probe.check_hostname = False
    probe.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    alone = _context(ssl.PROTOCOL_TLS_SERVER)
    try:
        probe.load_verify_locations(cafile=files.cert)
        alone.load_cert_chain(files.cert, files.key, password="")
        found = _handshake(probe, alone)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _PURPOSE and not node:
            return
        raise ConfigError(
            f"setting 'cert': others will not accept it: {error.verify_message}",
            where=files.cert,
            hint="`genie certs node` makes a new one" if error.verify_code == _EXPIRED else "",
        ) from error
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"setting 'cert': {_reason(error)}", where=files.cert) from error
    if node and not found.get("subjectAltName"):
        log.warning("the certificate names no host: clients will refuse it", path=files.cert)
    until = datetime.datetime.fromtimestamp(ssl.cert_time_to_seconds(str(found["notAfter"])), datetime.UTC)
    if until - datetime.datetime.now(datetime.UTC) < _SOON:
        log.warning("the certificate expires soon", until=until.isoformat(), path=files.cert)


_NOT_YET = 9  # X509_V_ERR_CERT_NOT_YET_VALID
_EXPIRED = 10  # X509_V_ERR_CERT_HAS_EXPIRED
_PURPOSE = 26  # … INVALID_PURPOSE
_NO_AUTHORITY = (18, 19, 20, 21)  # self-signed, or issued by somebody unknown


def _handshake(probe: ssl.SSLContext, server: ssl.SSLContext) -> dict[str, object]:
    """The server's certificate as the client sees it."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_side = probe.wrap_bio(back, there)
    server_side = server.wrap_bio(there, back, server_side=True)
    for _ in range(4):
        for side in (client_side, server_side):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return dict(client_side.getpeercert() or {})


def _reason(error: OSError) -> str:
    """Of OpenSSL's text the part for people."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return error.strerror or str(error)


def common_name(certificate: object) -> str:
    """Of the subject of what ``getpeercert`` gave; "" if there is none."""
    if not isinstance(certificate, dict):
        return ""
    for relative in certificate.get("subject", ()):
        for key, value in relative:
            if key == "commonName":
                return str(value)
    return ""


def explain(error: OSError, peer: str, *, client: bool) -> TlsFailed:
    """What a failed handshake, or an alert after it, means to people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        who = "the node" if client else "the client"
        hint = ""
        if error.verify_code in _NO_AUTHORITY:
            setting = "ca" if client else "client_ca"
            hint = f"`{setting}` must be the authority that the certificate of {who} is from"
        elif error.verify_code == _NOT_YET:
            hint = "a clock is wrong: this machine's, or that where the certificate was made; `genie doctor` compares"
        elif error.verify_code == _EXPIRED:
            hint = "a new one is needed, or a clock is wrong"
        elif "mismatch" in error.verify_message.lower():
            hint = "use an address that the certificate names, or make one for this address"
        return TlsFailed(f"{who} is not believed: {error.verify_message}", where=peer, hint=hint)
    reason = (getattr(error, "reason", None) or "").upper()
    if reason in ("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"):
        return TlsFailed(
            "the peer does not speak TLS",
            where=peer,
            hint="start the node with --cert and --key; this client will not speak to it without" if client else "",
        )
    if "CERTIFICATE_REQUIRED" in reason:
        return TlsFailed(
            "the node asks for a certificate, and this client has none", where=peer, hint="set `cert` and `key`"
        )
    if "PEER_DID_NOT_RETURN_A_CERTIFICATE" in reason:
        return TlsFailed("the client has no certificate", where=peer)
    if "UNKNOWN_CA" in reason or "CERTIFICATE_UNKNOWN" in reason or "BAD_CERTIFICATE" in reason:
        other = "the node" if client else "the client"
        hint = (
            "it must be from the authority of the node's `--client-ca`" if client else "its `ca` must be our authority"
        )
        return TlsFailed(f"{other} does not accept this side's certificate", where=peer, hint=hint)
    if "CERTIFICATE_EXPIRED" in reason:
        return TlsFailed("the peer says that this side's certificate has expired", where=peer)
    return TlsFailed(f"TLS failed: {_reason(error)}", where=peer)
