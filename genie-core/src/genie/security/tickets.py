"""Tickets: how a client that showed who it is on the control plane is known on the data plane.

The control plane gives a ticket: an id, a key and half a minute. HELLO comes with the id and, to show that its sender
has the key, an HMAC-SHA256 by it over the greeting; WELCOME with one over both. The key itself never travels on the
data plane. A ticket opens one thing, once: whatever comes of it, it is gone.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import Counter
from typing import Generic, TypeVar

import attrs

from genie.errors import AccessDenied, LimitExceeded

ID_BYTES = 16
KEY_BYTES = 32
PROOF_BYTES = 32
SECONDS = 30.0
_MOST_EACH = 256  # that one holder of a token may have waiting
_HELLO = b"genie: hello\0"
_WELCOME = b"genie: welcome\0"

_T = TypeVar("_T")


@attrs.frozen
class Ticket:
    """What the client has. ``key`` is the session's secret. One that is ``bound`` is good for nothing but a connection
    that it protects from its first packet on: who heard it in the greeting can't use it elsewhere."""

    id: bytes
    key: bytes = attrs.field(repr=False)
    bound: bool = False

    @property
    def session(self) -> int:
        """Of 64 bits: how a transport's packets name it."""
        return int.from_bytes(self.id[:8], "little") or 1


def prove_hello(ticket: Ticket, hello: bytes | memoryview) -> bytes:
    """The client's proof: it has the key, and this is its greeting."""
    return _proof(ticket.key, _HELLO, ticket.id, hello)


def prove_welcome(ticket: Ticket, hello: bytes | memoryview, welcome: bytes | memoryview) -> bytes:
    """The node's: it gave the ticket, got this greeting and answers so."""
    return _proof(ticket.key, _WELCOME, ticket.id, hello, welcome)


def _proof(key: bytes, label: bytes, *parts: bytes | memoryview) -> bytes:
    code = hmac.new(key, label, hashlib.sha256)
    for part in parts:
        code.update(len(part).to_bytes(8, "little"))
        code.update(part)
    return code.digest()


@attrs.frozen
class _Given(Generic[_T]):
    ticket: Ticket
    device: int
    holder: str
    owner: _T
    expires: float  # monotonic


class Tickets(Generic[_T]):
    """A node's tickets that wait to be used. ``owner`` is whatever the node knows of the holder."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._given: dict[bytes, _Given[_T]] = {}

    def give(self, device: int, holder: str, owner: _T, *, bound: bool = False) -> Ticket:
        """For device number ``device``. Raises :class:`LimitExceeded` for a holder who lets too many lie."""
        ticket = Ticket(secrets.token_bytes(ID_BYTES), secrets.token_bytes(KEY_BYTES), bound)
        now = time.monotonic()
        with self._lock:
            for each in [key for key, given in self._given.items() if given.expires <= now]:
                del self._given[each]
            if Counter(given.holder for given in self._given.values())[holder] >= _MOST_EACH:
                raise LimitExceeded(
                    f"{_MOST_EACH} tickets of {holder!r} are unused", hint="use them, or wait half a minute"
                )
            self._given[ticket.id] = _Given(ticket, device, holder, owner, now + self.seconds)
        return ticket

    def redeem(
        self, ticket: bytes, device: int, hello: bytes | memoryview, proof: bytes, *, session: int = 0
    ) -> tuple[Ticket, _T]:
        """Whose it was. ``session`` is that of the ticket which protects the connection, 0 for none. Raises
        :class:`AccessDenied`, with no word on which part was wrong but to who has the key."""
        with self._lock:
            given = self._given.get(ticket)
            if given is not None and (given.ticket.bound or session) and given.ticket.session != session:
                # Heard on its way: it stays its owner's, who has a connection under it.
                raise AccessDenied("the ticket is not the one that protects this connection")
            self._given.pop(ticket, None)
        if given is None:
            raise AccessDenied("the ticket is unknown, used or expired", hint="ask the control plane for a new one")
        if not hmac.compare_digest(prove_hello(given.ticket, hello), proof):
            raise AccessDenied("the greeting does not fit its ticket")
        if given.expires <= time.monotonic():
            raise AccessDenied("the ticket is unknown, used or expired", hint="ask the control plane for a new one")
        if given.device != device:
            raise AccessDenied(f"the ticket is for device {given.device}, not {device}")
        return given.ticket, given.owner
