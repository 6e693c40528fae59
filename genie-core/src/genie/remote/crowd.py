"""How many connections may be there that have not said who they are: of all, and of one host."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from genie.interfaces import Connection
from genie.tenancy.admission import MOST_WAITING


def crowded(comer: Connection, greeting: Collection[Connection], waiting: int, sessions: int, most: int) -> bool:
    """Whether ``comer`` has to go, where there may be ``most`` sessions. Of those in ``greeting`` so many are
    ``waiting`` for a place: they have said who they are, and their queue is bounded."""
    if len(greeting) - waiting + sessions >= 2 * most:
        return True
    host = host_of(comer)
    return bool(host) and sum(host_of(each) == host for each in greeting) >= most + MOST_WAITING


def host_of(connection: Connection) -> str:
    """The peer's; "" for this machine, where all clients have the same, and where there is no telling."""
    host = str(getattr(connection, "peer", "")).rpartition(":")[0].strip("[]")
    try:
        return "" if ipaddress.ip_address(host).is_loopback else host
    except ValueError:
        return ""
