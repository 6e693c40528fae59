"""Addresses of this transport: ``memif:/path`` is a Unix socket at which two processes of one host meet."""

from __future__ import annotations

from genie.errors import ConfigError

_SCHEME = "memif:"
_LONGEST = 107  # bytes of a Unix socket's path


def path_of(address: str) -> str:
    path = address.removeprefix(_SCHEME)
    if not address.startswith(_SCHEME) or not path.startswith("/"):
        raise ConfigError(
            f"{address!r} is no address of the transport 'dpdk'",
            where=address,
            hint="give the absolute path of a socket, as in memif:/run/user/1000/genie.sock",
        )
    if len(path.encode()) > _LONGEST:
        raise ConfigError(f"the path of a socket has at most {_LONGEST} bytes", where=address)
    return path
