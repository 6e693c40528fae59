"""The ways into a node: what it listens with, as its control plane tells it.

A way names no host. So a node can't send a client elsewhere than to where the user sent it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Protocol, runtime_checkable

import msgspec

from genie.interfaces import Connection, Labelled, Listener

UNIX = "unix"
MOST_WAYS = 16
_SCHEME = "unix:"
_LONGEST_PATH = 107  # bytes of a Unix socket's path

Version = Annotated[int, msgspec.Meta(ge=0, le=255)]


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """By ``transport``, at ``port`` of the node's host, or for ``unix`` at the socket ``path``. ``device`` is what
    carries the packets, ``versions`` are the oldest and newest of the transport's own protocol, if it has any."""

    transport: Annotated[str, msgspec.Meta(pattern=r"\A[a-z][a-z0-9_.-]{0,31}\Z")]
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    path: Annotated[str, msgspec.Meta(max_length=_LONGEST_PATH)] = ""
    device: Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9_.:,=-]{0,64}\Z")] = ""
    versions: tuple[Version, Version] = (0, 0)


Ways = Annotated[tuple[Way, ...], msgspec.Meta(max_length=MOST_WAYS)]


class Carried(msgspec.Struct, frozen=True, kw_only=True):
    """What carries a session of this process: to the ``device`` of which node, and why no better transport does.
    ``protection`` is what keeps others from its data (:mod:`genie.remote.secrecy`)."""

    node: str
    device: str
    transport: str
    protection: str = ""
    passed_over: Mapping[str, str] = {}


@runtime_checkable
class Carrying(Protocol):
    """What a backend may be besides: one that knows what carries its sessions."""

    def carried(self) -> Sequence[Carried]: ...


@runtime_checkable
class Offering(Protocol):
    """What a listener may be besides: one that says itself by which ways it is reached."""

    ways: Sequence[Way]


@runtime_checkable
class Ticketed(Protocol):
    """What a transport may be besides: one whose connections are protected by a ticket's secret from the first byte on,
    and not only from the greeting on (:class:`genie.interfaces.Keyed`). Its connections are :class:`Bound`."""

    def connect_with(self, address: str, timeout: float, session: int, secret: bytes) -> Connection:
        """``session``, of 64 bits, is how the node knows which secret it is."""


@runtime_checkable
class Bound(Protocol):
    """What a connection may be besides: one of a :class:`Ticketed` transport, which knows the ticket it came with."""

    session: int  # of the ticket that protects it from its first byte on; 0 without one


@runtime_checkable
class Admitting(Protocol):
    """What a listener may be besides: one to whom clients of a :class:`Ticketed` transport may come."""

    def expect(self, session: int, secret: bytes, seconds: float) -> None:
        """One will, with this ticket, so soon."""


@runtime_checkable
class Discerning(Protocol):
    """What a transport may be besides: one that tells, before it connects, whether a way of its kind leads there."""

    def address(self, way: Way, host: str, *, here: bool) -> str:
        """What to connect to, for a node at ``host``, which is this one if it is ``here``. Raises
        :class:`genie.errors.BackendUnavailable` with the reason why not."""


def carrier(connection: Connection) -> str:
    """The transport by name, where the connection knows."""
    return connection.transport if isinstance(connection, Labelled) else ""


def ways_of(transport: str, listener: Listener) -> tuple[Way, ...]:
    """How clients reach ``listener``, which is one of the transport of that name."""
    if isinstance(listener, Offering):
        return tuple(listener.ways)
    if listener.address.startswith(_SCHEME):
        return (Way(transport=UNIX, path=listener.address.removeprefix(_SCHEME)),)
    port = listener.address.rpartition(":")[2]
    return (Way(transport=transport, port=int(port) if port.isdecimal() and int(port) < 65536 else 0),)


def is_socket(address: str) -> bool:
    """Whether ``address`` is that of a Unix socket and nothing else: a node says it."""
    path = address.removeprefix(_SCHEME)
    return path != address and path.startswith("/") and "\0" not in path and len(path.encode()) <= _LONGEST_PATH
