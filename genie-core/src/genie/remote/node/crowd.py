"""How many connections may be there that have not said who they are: of all, and of one host."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from genie.interfaces import Connection


def crowded(comer: Connection, strangers: Collection[Connection], sessions: int, most: int) -> bool:
    """Whether ``comer`` has to go, where there may be ``most`` sessions: of twice as many connections one host has at
    most half of those that have not greeted."""
    if len(strangers) + sessions >= 2 * most:
        return True
    host = host_of(comer)
    return bool(host) and sum(host_of(each) == host for each in strangers) >= most


def host_of(connection: Connection) -> str:
    """The peer's; "" for this machine, where all clients have the same, and where there is no telling."""
    host = str(getattr(connection, "peer", "")).rpartition(":")[0].strip("[]")
    try:
        return "" if ipaddress.ip_address(host).is_loopback else host
    except ValueError:
        return ""
