"""What an operator tells a node to do, by its control plane."""

from __future__ import annotations

from genie import config
from genie.errors import NodeError
from genie.interfaces import Transport
from genie.plugins import registry
from genie.remote.access import Access


def cancel(
    address: str,
    session: str,
    *,
    work_only: bool = False,
    transport: Transport | None = None,
    timeout: float | None = None,
) -> None:
    """End a session of the node at ``address``, or stop only what it is at. Raises :class:`NodeError` for one that the
    node does not have."""
    settings = config.resolve().settings
    timeout = settings.connect_timeout if timeout is None else timeout
    transport = registry.make("transport", "tcp", settings) if transport is None else transport
    with Access.from_settings(settings, transport).control(transport, address, timeout) as client:
        if not client.cancel(session, work_only=work_only):
            raise NodeError(
                f"the node has no session {session!r}", where=address, hint="`genie node status` lists its sessions"
            )
