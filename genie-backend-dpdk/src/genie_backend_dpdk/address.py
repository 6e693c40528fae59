"""Addresses of this transport, and the Unix socket of each, at which two processes of one host meet.

``memif:/path`` names the socket itself. ``host:port``, of a host that is this one, stands for a socket in a directory
that this user alone enters: so a node's address is the same, whichever transport leads to it.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from pathlib import Path

from genie.errors import BackendUnavailable, ConfigError

_SCHEME = "memif:"
_LONGEST = 107  # bytes of a Unix socket's path


def path_of(address: str) -> str:
    """Raises :class:`BackendUnavailable` for what another transport may reach, else :class:`ConfigError`."""
    if address.startswith(_SCHEME):
        path = address.removeprefix(_SCHEME)
        if not path.startswith("/"):
            raise ConfigError(
                f"{address!r} has no absolute path", where=address, hint="as in memif:/run/genie/node.sock"
            )
    else:
        path = str(directory() / port_of(address))
    if len(path.encode()) > _LONGEST or "\0" in path:
        raise ConfigError(f"the path of a socket has at most {_LONGEST} bytes", where=address)
    return path


def port_of(address: str) -> str:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise BackendUnavailable(f"{address!r} is no address of memif devices", where=address, hint=_HINT)
    if not _is_here(host.strip("[]")):
        raise BackendUnavailable(
            "memif devices join processes of one host, and this is another", where=address, hint=_HINT
        )
    return str(int(port))


_HINT = 'use host:port of a node on this host; "dpdk,tcp" falls back on TCP for others'


def _is_here(host: str) -> bool:
    try:
        found = ipaddress.ip_address(host)
        return found.is_loopback or found.is_unspecified
    except ValueError:
        return host == "localhost"


def directory() -> Path:
    """One that this user alone may enter."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    # A socket's path is short; a longer directory is no use.
    path = Path(runtime) / "genie-dpdk" if 0 < len(runtime) < 60 else Path(f"/tmp/genie-dpdk-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        seen = path.lstat()
    except OSError as error:
        raise BackendUnavailable(f"no directory for sockets: {error.strerror}", where=str(path)) from error
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.getuid() or seen.st_mode & 0o077:
        raise BackendUnavailable("others can enter the directory for sockets", where=str(path), hint="remove it")
    return path
