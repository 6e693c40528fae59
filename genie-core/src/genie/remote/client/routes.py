"""Which ways lead to a node from here, best first: of one that is on this host, its Unix socket before its address."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Protocol

import attrs

import genie
from genie.interfaces import Transport
from genie.remote.client.access import Access, is_loopback
from genie.remote.greeting import Met, farewell, quicker
from genie.ways import UNIX

_UNIX = f"{UNIX}:"


@attrs.frozen
class Route:
    """``name`` is the transport's as people say it: ``unix`` is one."""

    name: str
    transport: Transport
    address: str

    @property
    def label(self) -> str:
        return self.address if self.name in ("tcp", UNIX) else f"{self.name} {self.address}"


@attrs.frozen
class Routes:
    """To one node. ``found`` are those that may work, best first; ``passed_over`` says of what is better why it does
    not. ``met`` is what the node said of itself, on a connection that is closed again; None if it was not asked."""

    found: tuple[Route, ...]
    met: Met | None = None
    passed_over: Mapping[str, str] = attrs.field(factory=dict)


class Guide(Protocol):
    def routes(self, node: str, timeout: float) -> Routes:
        """Asks the node. Raises what :func:`genie.remote.greeting.meet` does where no way leads there."""

    def unasked(self, node: str, timeout: float) -> Routes:
        """The same where the node's devices are known already: it is asked only if its ways can't be told else."""


class Direct:
    """By one transport alone; with ``shortcut`` by the node's Unix socket where the node is on this host."""

    def __init__(self, transport: Transport, access: Access, *, shortcut: bool) -> None:
        self._transport = transport
        self._access = access
        self._shortcut = shortcut

    def routes(self, node: str, timeout: float) -> Routes:
        met = self._access.meet(self._transport, node, -1, timeout, genie=genie.__version__)
        farewell(met)
        found = [self._plainly(node)]
        local = quicker(met.welcome) if self._shortcut else ""
        if local and local != node and is_here(node):
            found.insert(0, Route(UNIX, self._transport, local))
        return Routes(tuple(found), met)

    def unasked(self, node: str, timeout: float) -> Routes:
        return Routes((self._plainly(node),))

    def _plainly(self, node: str) -> Route:
        return Route(UNIX if node.startswith(_UNIX) else self._transport.name, self._transport, node)


def is_here(node: str) -> bool:
    """Whether ``node``'s address is one of this host's. That a node says it is here does not make it so."""
    if node.startswith(_UNIX) or is_loopback(node):
        return True
    host = node.rpartition(":")[0].strip("[]")
    try:
        return all(_is_ours(family, at) for family, _, _, _, at in socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM))
    except (OSError, UnicodeError):
        return False


def _is_ours(family: int, at: object) -> bool:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(at)  # type: ignore[arg-type]  # as getaddrinfo gave it
        except OSError:
            return False
    return True
