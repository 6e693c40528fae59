"""Addresses: ``host:port``, ``[v6]:port``, ``unix:/path``."""

from __future__ import annotations

import socket
from typing import TypeAlias

from genie.errors import BackendUnavailable, ConfigError

SocketAddress: TypeAlias = str | tuple[str | int, ...]
_LONGEST_UNIX_PATH = 107


def split_host_port(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"address {address!r}: write an IPv6 address in brackets", hint=f"[{host}]:{port}")
    if not colon or not (port.isascii() and port.isdigit()) or int(port[:6]) > 65535:
        raise ConfigError(f"address {address!r} is no host:port", hint="for example 10.0.0.10:8888, or unix:/path")
    return host, int(port)


def resolve(address: str) -> list[tuple[socket.AddressFamily, SocketAddress]]:
    """The socket addresses to try, in order."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not path or len(path.encode()) > _LONGEST_UNIX_PATH:
            raise ConfigError(f"address {address!r}: a socket's path has 1 to {_LONGEST_UNIX_PATH} bytes")
        return [(socket.AF_UNIX, path)]
    host, port = split_host_port(address)
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise BackendUnavailable(
            f"the host of {address!r} is unknown: {error}", where=address, hint="check the spelling of the address"
        ) from error
    return [(family, (str(at[0]), int(at[1]), *map(int, at[2:]))) for family, _, _, _, at in found]


def spell(name: object) -> str:
    """An address as users write it, from what ``getsockname`` and ``getpeername`` say."""
    if isinstance(name, tuple):
        host, port = name[0], name[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    return f"unix:{text}" if text else "unix:"
