"""Closed by default: whom a node would serve, before it serves anybody."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Sequence

from genie.errors import ConfigError
from genie.interfaces import Backend, Transport, encrypts
from genie.remote.joined import parts
from genie.security import Tls
from genie.tenancy.quotas import TenantsFile
from genie.tenancy.seats import Tenanting
from genie.ways import Ticketed

_HOW = (
    "`genie certs init` and `genie tokens add` make what --cert, --key and --tokens need (docs/security.md); "
    "--insecure serves anybody, unencrypted"
)


def check_open(
    host: str, tls: Tls, tokens: bool, transport: Transport, *, insecure: bool, plain_data: bool = False
) -> None:
    """Raises :class:`ConfigError` for a node at ``host`` that others reach and that does not ask who they are, and for
    one with a certificate that would serve without TLS; with ``plain_data`` tickets may stand in for it."""
    _check_host(host, "--host")
    plain = [each for each in parts(transport) if not encrypts(each)] if tls.serves else []
    if plain:
        _check_plain(plain, tokens or tls.asks_for_certificates, plain_data)
        names = ", ".join(each.name for each in plain)
        told = (
            f"WARNING: PLAIN DATA: this node, at {host or 'every address'}, does not encrypt what {names} carries. "
            "Tickets authenticate it: who is on that network can read it, and who can change packets there may forge "
            "data (docs/security.md)."
        )
        print(told, file=sys.stderr, flush=True)
    if is_local(host):
        return
    missing = []
    if not tls.serves:
        missing.append("TLS (--cert, --key)")
    if not tokens and not tls.asks_for_certificates:
        missing.append("a way to tell clients (--tokens, or --client-ca)")
    if not missing:
        return
    if not insecure:
        raise ConfigError(
            f"others reach {host or 'every address'}, and this node lacks {' and '.join(missing)}", hint=_HOW
        )
    told = (
        f"WARNING: INSECURE: this node, at {host or 'every address'}, lacks {' and '.join(missing)}. Whoever "
        "reaches it can run programs on it and read what others send."
    )
    print(told, file=sys.stderr, flush=True)


def _check_plain(plain: Sequence[Transport], asks: bool, plain_data: bool) -> None:
    names = ", ".join(each.name for each in plain if not isinstance(each, Ticketed))
    if names:
        raise ConfigError(
            f"--cert is given, and the transport does not speak TLS, nor takes tickets in its place: {names}",
            hint="use --transport tcp",
        )
    names = ", ".join(each.name for each in plain)
    if not plain_data:
        raise ConfigError(
            f"--cert is given, and the transport does not speak TLS: {names}",
            hint=f"use --transport tcp; or allow {names} to carry data unencrypted, protected by tickets: --plain-data "
            "(docs/security.md)",
        )
    if not asks:
        raise ConfigError(
            f"--plain-data is given, and no way to tell clients, so no ticket protects what {names} carries",
            hint="give --tokens, or --client-ca: `genie tokens add` makes the former",
        )


def check_ports(host: str, port: int, control_port: int | None, metrics_host: str, metrics_port: int | None) -> None:
    """Raises :class:`ConfigError` for one port that is given for two things at one address."""
    given = {"--port": port, "--control-port": control_port}
    if metrics_host == host:
        given["--metrics-port"] = metrics_port
    taken: dict[int, str] = {}
    for option, number in given.items():
        if not number:
            continue
        if number in taken:
            raise ConfigError(f"{taken[number]} and {option} are the same port, {number}", hint="give each its own")
        taken[number] = option


def check_metrics(host: str, tokens: bool, *, insecure: bool) -> None:
    """Raises :class:`ConfigError` for metrics that others reach and that nobody is asked a token for."""
    _check_host(host, "--metrics-host")
    if not (is_local(host) or tokens or insecure):
        raise ConfigError(
            f"others reach the metrics at {host or 'every address'}, and this node has no --tokens to ask for",
            where="--metrics-host",
            hint="`genie tokens add FILE NAME --scope metrics` makes one for the scraper; --insecure tells anybody",
        )


def _check_host(host: str, where: str) -> None:
    try:
        socket.getaddrinfo(host.strip("[]") or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(
            f"there is no host {host!r} to listen at: {reason}",
            where=where,
            hint="a name or address of this machine; 127.0.0.1 is this machine alone, 0.0.0.0 and :: are every address",
        ) from error


def check_quotas(backend: Backend, tenants: TenantsFile | None) -> None:
    """Raises :class:`ConfigError` where tenants have quotas that nobody would keep."""
    if tenants is not None and not isinstance(backend, Tenanting):
        raise ConfigError(
            f"the backend {backend.name!r} knows no tenants, so their memory and time would not be kept",
            where="--tenants",
            hint="use the backend local",
        )


def is_local(host: str) -> bool:
    """Whether what listens at ``host`` is reached from this machine alone."""
    if not host:
        return False
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        pass
    try:
        found = {str(at[0]) for _, _, _, _, at in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False  # it cannot be listened at either, which then says why
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)
