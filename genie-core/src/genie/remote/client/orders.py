"""What an operator tells a node to do, by its control plane."""

from __future__ import annotations

from genie import config
from genie.errors import NodeError
from genie.interfaces import Transport
from genie.plugins import registry
from genie.remote.client.access import Access
from genie.remote.control import ControlClient


def cancel(address: str, session: str, *, work_only: bool = False) -> None:
    """End a session of the node at ``address``, or stop only what it is at. Raises :class:`NodeError` for one that the
    node does not have."""
    with _control(address) as client:
        if not client.cancel(session, work_only=work_only):
            raise NodeError(
                f"the node has no session {session!r}", where=address, hint="`genie node status` lists its sessions"
            )


def drain(address: str, seconds: float) -> int:
    """Have the node take no more sessions, and end when there are none or after so many seconds. How many there are."""
    with _control(address) as client:
        return client.drain(seconds)


def _control(address: str) -> ControlClient:
    settings = config.resolve().settings
    transport: Transport = registry.make("transport", "tcp", settings)
    return Access.from_settings(settings, transport).control(transport, address, settings.connect_timeout)
