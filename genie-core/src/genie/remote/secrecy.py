"""What keeps others from a session's data, by what carries it."""

from __future__ import annotations

from collections.abc import Iterable

from genie.errors import BackendUnavailable
from genie.interfaces import Connection, Listener, Transport, encrypts
from genie.remote.joined import JoinedTransport, parts
from genie.ways import UNIX, Ticketed

TLS = "TLS"
AUTHENTICATED = "authenticated, not encrypted"
HERE = "this host alone"
NONE = "none"


def protection(label: str, transports: Iterable[Transport], *, tickets: bool) -> str:
    """Of data that ``label`` carries, one of ``transports``, of a node that gives ``tickets`` or not; "" if it is none
    of them."""
    if label == UNIX:
        return HERE
    found = next((each for each in transports if each.name == label), None)
    if found is None:
        return ""
    if encrypts(found):
        return TLS
    return AUTHENTICATED if tickets and isinstance(found, Ticketed) else NONE


def encrypting(transport: Transport) -> Transport:
    """What of ``transport`` speaks TLS, for what no ticket protects."""
    found = [each for each in parts(transport) if encrypts(each)]
    if len(found) == len(parts(transport)):
        return transport
    if not found:
        return _NoTls(transport.name)
    return found[0] if len(found) == 1 else JoinedTransport(found)


class _NoTls:
    """In place of a transport that speaks TLS, where there is none."""

    def __init__(self, name: str) -> None:
        self.name = name

    def connect(self, address: str, timeout: float) -> Connection:
        raise self._none(address)

    def listen(self, address: str) -> Listener:
        raise self._none(address)

    def _none(self, address: str) -> BackendUnavailable:
        return BackendUnavailable(
            f"values go from node to node over TLS, which {self.name} does not speak",
            where=address,
            hint=f"start both nodes with `--transport {self.name},tcp`",
        )
