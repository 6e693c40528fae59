"""What a node is and does, for people and monitors."""

from __future__ import annotations

import msgspec

from genie import config
from genie.device import Device
from genie.errors import AccessDenied, BackendError, TlsFailed
from genie.interfaces import Transport
from genie.plugins import registry
from genie.remote.client.access import Access, control_address
from genie.remote.greeting import farewell
from genie.remote.node.session.info import SessionInfo
from genie.remote.seen.accounts import AccountView
from genie.ways import Way
from genie.wire import Limits


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """``control`` is ``serving``, ``not serving`` or ``unreachable``; with the last, what only the control plane
    knows is empty. ``ways`` are how clients come in, ``account`` is of the tenant who asks, ``waiting`` the clients
    that wait for a place."""

    address: str
    genie: str
    protocol: str
    control: str
    devices: tuple[Device, ...]
    limits: Limits
    local_address: str = ""
    control_address: str = ""
    transports: tuple[str, ...] = ()
    ways: tuple[Way, ...] = ()
    versions: dict[str, str] = {}
    sessions: tuple[SessionInfo, ...] = ()
    content: dict[str, int] = {}
    account: AccountView | None = None
    waiting: int = 0
    draining: bool = False


def status(address: str, *, transport: Transport | None = None, timeout: float | None = None) -> NodeStatus:
    """Ask the node at ``address`` (of its data port) who it is, then its control plane for the rest."""
    settings = config.resolve().settings
    timeout = settings.connect_timeout if timeout is None else timeout
    transport = registry.make("transport", "tcp", settings) if transport is None else transport
    access = Access.from_settings(settings, transport)
    met = access.meet(transport, address, -1, timeout)
    farewell(met)
    welcome = met.welcome
    known = NodeStatus(
        address=address,
        genie=welcome.genie,
        protocol=f"{welcome.major}.{welcome.minor}",
        control="unreachable",
        devices=welcome.devices,
        limits=welcome.limits,
        local_address=welcome.local_address,
    )
    if not welcome.control_port:
        return known
    control = control_address(address, welcome.control_port)
    try:
        with access.control_at(control, timeout) as client:
            capabilities = client.capabilities()
            return msgspec.structs.replace(
                known,
                control="serving" if client.healthy() else "not serving",
                control_address=control,
                transports=capabilities.transports,
                ways=capabilities.ways,
                versions=capabilities.versions,
                sessions=client.sessions(),
                content=capabilities.content,
                account=capabilities.account,
                waiting=capabilities.waiting,
                draining=capabilities.draining,
            )
    except (AccessDenied, TlsFailed):
        raise
    except BackendError:
        return known
