"""Values from node to node: one session's inlets and outlets."""

from __future__ import annotations

import copy
from collections.abc import Callable

from genie.device import Device
from genie.errors import ConnectionLost, GenieError, LimitExceeded, ProtocolError, RemoteOpError
from genie.host import HostValue
from genie.interfaces import Transport
from genie.remote.channels.inlets import Arrivals, Inlet, Inlets
from genie.remote.channels.outlets import Outlet
from genie.remote.channels.veil import veil
from genie.security.tickets import Ticket
from genie.wire.channels import Target

_MOST = 256  # inlets, and outlets, of a session


class Channels:
    """One session's ends of channels, by the numbers its client gave them. ``device`` is the session's, ``node`` what
    errors call this node. Where the session came with a bound ``ticket``, tokens travel veiled by it."""

    def __init__(
        self, inlets: Inlets, transport: Transport, device: Device, node: str, ticket: Ticket | None = None
    ) -> None:
        self._registry = inlets
        self._transport = transport
        self._device = device
        self.told: Callable[[GenieError], None] | None = None  # why a channel to another node cannot be had
        self._node = node
        self._ticket = ticket
        self._arrivals = Arrivals(device)
        self._inlets: dict[int, Inlet] = {}
        self._outlets: dict[int, Outlet] = {}

    def open(self, number: int, source: str) -> Target:
        self._check_new(number, self._inlets, "inlet")
        target, self._inlets[number] = self._registry.open(source, self._arrivals)
        return veil(self._ticket, "inlet", number, target)

    def connect(self, number: int, target: Target) -> None:
        self._check_new(number, self._outlets, "outlet")
        shown = veil(self._ticket, "outlet", number, target)
        self._outlets[number] = Outlet(self._transport, shown, self._node, self.told)

    def send(self, number: int, look: Callable[[], HostValue], gone: Callable[[], bool]) -> None:
        """What ``look`` gives, or raises, goes to the receiver. See :meth:`Outlet.put`."""
        if number not in self._outlets:
            raise ProtocolError(f"outlet {number} was never connected")
        try:
            value: HostValue | GenieError = look()
        except GenieError as error:
            value = self._unnamed(error)
        self._outlets[number].put(value, gone)

    def _unnamed(self, error: GenieError) -> GenieError:
        """Clients have other names for this device: the receiver's end knows this client's."""
        if isinstance(error, RemoteOpError) and error.device == self._device.id:
            error = copy.copy(error)
            error.device = ""
        return error

    def inlet(self, number: int) -> Inlet:
        if number not in self._inlets:
            raise ProtocolError(f"inlet {number} was never opened")
        return self._inlets[number]

    def close(self) -> None:
        for inlet in self._inlets.values():
            self._registry.drop(inlet)
        for outlet in self._outlets.values():
            outlet.close()

    def settle(self) -> GenieError | None:
        """Wait until all outlets are connected, or one is known that cannot be: why, said once."""
        failures = (outlet.settle() for outlet in self._outlets.values())
        return next((failure for failure in failures if failure is not None), None)

    def sends(self) -> bool:
        """Whether others may wait for what this session does."""
        return bool(self._outlets)

    def interrupt(self) -> None:
        """From any thread: whoever waits waits no longer."""
        for inlet in list(self._inlets.values()):
            inlet.end(ConnectionLost("the session is over", where=inlet.source))
        for outlet in list(self._outlets.values()):
            outlet.end()

    @staticmethod
    def _check_new(number: int, table: dict[int, Inlet] | dict[int, Outlet], what: str) -> None:
        if number in table:
            raise ProtocolError(f"{what} {number} is there already")
        if len(table) >= _MOST:
            raise LimitExceeded(f"a session has at most {_MOST} {what}s")
