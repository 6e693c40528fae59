"""A client's way into a node: by a ticket of its control plane, where the node wants one."""

from __future__ import annotations

import ipaddress
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from genie.config import Settings
from genie.errors import (
    AccessDenied,
    BackendUnavailable,
    ConfigError,
    ConnectionLost,
    DeadlineExceeded,
    GenieError,
    TlsFailed,
)
from genie.interfaces import Transport, encrypts
from genie.remote.client.retrying import connected
from genie.remote.greeting import Met, Wish, farewell, meet
from genie.security import Ticket, Tls, TlsFiles
from genie.security.files import warn_if_exposed
from genie.security.guard import NEEDED, NEEDED_HINT
from genie.security.tokens import read_token
from genie.ways import Ticketed
from genie.wire.messages import Back

if TYPE_CHECKING:
    from genie.remote.control import ControlClient


_ALLOW = "; or set `plain_data`: its data may go unencrypted, protected by a ticket (docs/security.md)"


class Access:
    """Who a client is to nodes: its token, read anew each time, and its certificates. With ``plain_data`` a transport
    that does not speak TLS may carry its sessions, with tickets that its control plane gave over TLS."""

    def __init__(self, tls: Tls | None = None, token_file: str = "", *, plain_data: bool = False) -> None:
        self.tls = tls
        self._token_file = token_file
        self._plain_data = plain_data
        self._lock = threading.Lock()
        self._controls: dict[str, str] = {}  # nodes' addresses → their control planes'

    @classmethod
    def from_settings(cls, settings: Settings, transport: Transport) -> Access:
        """Raises :class:`ConfigError` for a ``transport`` that would not keep what the settings ask for."""
        access = cls(Tls(TlsFiles.of(settings)), settings.token_file, plain_data=settings.plain_data)
        if access.unfit(transport):
            helps = isinstance(transport, Ticketed)
            raise ConfigError(
                f"settings 'ca' and 'cert' ask for TLS, which the transport {transport.name!r} does not speak",
                hint=f"use the backend tcp, or leave them out{_ALLOW if helps else ''}",
            )
        if settings.token_file:
            warn_if_exposed(Path(settings.token_file), "the token")
        return access

    def plain(self, transport: Transport) -> bool:
        """Whether nodes are to be spoken to by TLS, and ``transport`` does not speak it."""
        return self.tls is not None and self.tls.connects and not encrypts(transport)

    def unfit(self, transport: Transport) -> str:
        """Why ``transport`` would not keep what the settings ask for; "" if it does, or a ticket does instead."""
        if not self.plain(transport):
            return ""
        reason = "the settings 'ca' and 'cert' ask for TLS, which it does not speak"
        if not isinstance(transport, Ticketed):
            return reason
        return "" if self._plain_data else f"{reason}; 'plain_data' is off"

    def token(self, address: str) -> str:
        """For the control plane at ``address``; "" if there is none. A token is not sent where others could read it."""
        if not self._token_file:
            return ""
        if not (self.tls is not None and self.tls.connects) and not is_loopback(address):
            raise ConfigError(
                "the token would travel in the clear",
                where=address,
                hint="set `ca`, so that the node is spoken to by TLS",
            )
        return read_token(Path(self._token_file))

    def meet(
        self,
        transport: Transport,
        address: str,
        device: int,
        timeout: float,
        *,
        node: str = "",
        genie: str = "",
        resumes: bool = False,
        back: Back | None = None,
        wish: Wish | None = None,
    ) -> Met:
        """As :func:`genie.remote.greeting.meet`, with a new ticket where the node wants one. ``node`` is the address
        that its control plane goes by, if ``address`` is a shortcut to it."""

        def connect(left: float) -> Met:
            return self._meet(transport, address, device, left, node or address, genie, resumes, back, wish)

        return connect(timeout) if back is not None else connected(connect, timeout)

    def _meet(
        self,
        transport: Transport,
        address: str,
        device: int,
        timeout: float,
        node: str,
        genie: str,
        resumes: bool,
        back: Back | None,
        wish: Wish | None,
    ) -> Met:
        if reason := self.unfit(transport):
            raise BackendUnavailable(f"{transport.name}: {reason}", where=node)
        plain, bound = self.plain(transport), isinstance(transport, Ticketed)
        said = partial(
            meet, transport, address, device, timeout, genie=genie, resumes=resumes, back=back, wish=wish, node=node
        )
        with self._lock:
            control = self._controls.get(node, "")
        if control:
            try:
                return said(ticket=self._ticket(control, device, timeout, bound=bound, plain=plain))
            except (BackendUnavailable, ConnectionLost, DeadlineExceeded, TlsFailed):
                with self._lock:  # it may have been started again, elsewhere: ask
                    self._controls.pop(node, None)
        if plain:
            return said(ticket=self._first_ticket(transport, address, device, timeout, node, genie))
        # Who has a token asks first whether it is wanted: what opens a session is not said to who may be anybody.
        met = meet(transport, address, -1, timeout, genie=genie) if self._token_file else said()
        if not met.welcome.tickets:
            if not self._token_file or (device < 0 and back is None):
                return met
            farewell(met)
            return said()
        farewell(met)
        if not self._token_file:
            raise AccessDenied(NEEDED, where=node, hint=NEEDED_HINT)
        if not met.welcome.control_port:
            raise AccessDenied("the node wants a ticket, and its control plane is not there to give one", where=node)
        control = control_address(node, met.welcome.control_port)
        ticket = self._ticket(control, device, timeout, bound=bound, plain=False)
        with self._lock:
            self._controls[node] = control
        return said(ticket=ticket)

    def _first_ticket(
        self, transport: Transport, address: str, device: int, timeout: float, node: str, genie: str
    ) -> Ticket:
        """Of a node that only a ticket protects from its network. Where its control plane is has to be asked in clear,
        and anybody may answer: with a port of the host that the user named, whose certificate is verified as ever. No
        other word of that answer is believed, so the worst of it is that the node is not reached by this way."""
        try:
            met = meet(transport, address, -1, timeout, genie=genie)
        except (BackendUnavailable, ConfigError, ConnectionLost, DeadlineExceeded):
            raise
        except GenieError as error:
            raise BackendUnavailable(f"who answers by {transport.name} says: {error.message}", where=node) from error
        farewell(met)
        if not (met.welcome.tickets and met.welcome.control_port):
            raise BackendUnavailable(
                f"the node gives no ticket, and what {transport.name} carries is not encrypted",
                where=node,
                hint="start the node with --cert, --key, --tokens and --plain-data; or use the backend tcp",
            )
        control = control_address(node, met.welcome.control_port)
        try:
            ticket = self._ticket(control, device, timeout, bound=True, plain=True)
        except TlsFailed as error:
            raise BackendUnavailable(
                f"no ticket for {transport.name}: {error.message}", where=control, hint=error.hint
            ) from error
        with self._lock:
            self._controls[node] = control
        return ticket

    def control(self, transport: Transport, address: str, timeout: float) -> ControlClient:
        """A client of the control plane of the node at ``address`` (of its data port). Raises
        :class:`BackendUnavailable` for a node that has none."""
        met = meet(transport, address, -1, timeout)
        farewell(met)
        if not met.welcome.control_port:
            raise BackendUnavailable("the node has no control plane", where=address, hint="its log says why")
        return self.control_at(control_address(address, met.welcome.control_port), timeout)

    def control_at(self, control: str, timeout: float) -> ControlClient:
        """The same, of the control plane at ``control``."""
        # gRPC takes long to import, and most clients of a laboratory's nodes need none of it.
        from genie.remote.control import ControlClient

        return ControlClient(control, timeout, tls=self.tls, token=self.token(control))

    def _ticket(self, control: str, device: int, timeout: float, *, bound: bool, plain: bool) -> Ticket:
        with self.control_at(control, timeout) as client:
            ticket = client.ticket(device, bound=bound)
        if plain and not ticket.bound:
            raise BackendUnavailable(
                "the node's tickets do not protect what is not encrypted: it is of an older version", where=control
            )
        return ticket


def control_address(node: str, port: int) -> str:
    host = "127.0.0.1" if node.startswith("unix:") else node.rpartition(":")[0]
    return f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Whether ``host:port`` is on this machine, whatever others do to names."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
