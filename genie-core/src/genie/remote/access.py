"""A client's way into a node: by a ticket of its control plane, where the node wants one."""

from __future__ import annotations

import ipaddress
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from genie.config import Settings
from genie.errors import AccessDenied, BackendUnavailable, ConfigError, ConnectionLost, DeadlineExceeded, TlsFailed
from genie.interfaces import Transport, encrypts
from genie.remote.greeting import Met, Wish, farewell, meet
from genie.remote.retrying import connected
from genie.security import Ticket, Tls, TlsFiles
from genie.security.files import warn_if_exposed
from genie.security.guard import NEEDED, NEEDED_HINT
from genie.security.tokens import read_token
from genie.wire.messages import Back

if TYPE_CHECKING:
    from genie.remote.control import ControlClient


class Access:
    """Who a client is to nodes: its token, read anew each time, and its certificates."""

    def __init__(self, tls: Tls | None = None, token_file: str = "") -> None:
        self.tls = tls
        self._token_file = token_file
        self._lock = threading.Lock()
        self._controls: dict[str, str] = {}  # nodes' addresses → their control planes'

    @classmethod
    def from_settings(cls, settings: Settings, transport: Transport) -> Access:
        """Raises :class:`ConfigError` for a ``transport`` that would not keep what the settings ask for."""
        tls = Tls(TlsFiles.of(settings))
        if tls.connects and not encrypts(transport):
            raise ConfigError(
                f"settings 'ca' and 'cert' ask for TLS, which the transport {transport.name!r} does not speak",
                hint="use the backend tcp, or leave them out",
            )
        if settings.token_file:
            warn_if_exposed(Path(settings.token_file), "the token")
        return cls(tls, settings.token_file)

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
        said = partial(
            meet, transport, address, device, timeout, genie=genie, resumes=resumes, back=back, wish=wish, node=node
        )
        with self._lock:
            control = self._controls.get(node, "")
        if control:
            try:
                return said(ticket=self._ticket(control, device, timeout))
            except (BackendUnavailable, ConnectionLost, DeadlineExceeded, TlsFailed):
                with self._lock:  # it may have been started again, elsewhere: ask
                    self._controls.pop(node, None)
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
        ticket = self._ticket(control, device, timeout)
        with self._lock:
            self._controls[node] = control
        return said(ticket=ticket)

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

    def _ticket(self, control: str, device: int, timeout: float) -> Ticket:
        with self.control_at(control, timeout) as client:
            return client.ticket(device)


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
