"""The best transport that this side and a node have in common: the backend ``auto``.

The node's control plane says what it listens with. Each transport of the setting ``transports`` is looked at in turn;
of one that is passed over the reason is kept, for ``genie.get_stats()`` and for who runs the node.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import attrs

import genie
from genie.config import Settings
from genie.errors import (
    AccessDenied,
    BackendError,
    BackendUnavailable,
    ConfigError,
    ConnectionLost,
    DeadlineExceeded,
    GenieError,
    PluginError,
    PluginNotFound,
)
from genie.interfaces import Transport
from genie.plugins import registry
from genie.remote.client.access import Access, control_address
from genie.remote.client.routes import Route, Routes, is_here
from genie.remote.greeting import Met, farewell
from genie.remote.identity import host_identity
from genie.telemetry import get_logger
from genie.ways import UNIX, Discerning, Way, is_socket

log = get_logger("genie.client")

TCP = "tcp"
_LIKELY_CONTROL_PORT = 1  # after the data port: where it is unless that was taken

Make = Callable[[str], Transport]


@attrs.frozen
class _Told:
    """What a node said: its ways, whether it is on this host, and, if it was greeted over TCP, all it says there.
    ``silent`` is why it did not tell its ways, ``unreached`` why it was not greeted."""

    ways: Mapping[str, Way]
    here: bool
    met: Met | None
    silent: str = ""
    unreached: BackendError | None = None


class Negotiator:
    """``names`` are the transports that may be used, by preference; ``plain`` is TCP, over which nodes are asked first,
    and ``make`` gives the others. ``shortcut`` allows Unix sockets."""

    def __init__(self, names: Sequence[str], plain: Transport, make: Make, access: Access, *, shortcut: bool) -> None:
        self._names = tuple(names)
        self._plain = plain
        self._make = make
        self._access = access
        self._shortcut = shortcut
        self._made: dict[str, Transport] = {}

    @classmethod
    def from_settings(cls, settings: Settings, plain: Transport, access: Access) -> Negotiator:
        def make(name: str) -> Transport:
            made: Transport = registry.make("transport", name, settings)
            return made

        return cls(settings.transport_names, plain, make, access, shortcut=settings.unix_sockets)

    def routes(self, node: str, timeout: float) -> Routes:
        """Within ``timeout`` seconds in all. Raises :class:`BackendUnavailable` with every reason when no way leads to
        the node, and at once what no other way would help against: a wrong token, another version."""
        deadline = time.monotonic() + timeout
        told = self._ask(node, deadline)
        passed: dict[str, str] = {}
        found: dict[str, Route] = {}
        for name in self._names:
            try:
                found[name] = self._route(name, node, told)
            except (BackendUnavailable, PluginError) as error:
                passed[name] = error.message
        for number, (name, route) in enumerate(found.items()):
            routes = tuple(found.values())[number:]
            left = max(deadline - time.monotonic(), 0.001)
            try:
                met = self._greeted(route, node, told, left / len(routes))  # something is left for the others
            except (BackendUnavailable, ConnectionLost, DeadlineExceeded) as error:
                passed[name] = error.message
                continue
            better = self._names[: self._names.index(name)]
            for each in better:
                log.info("transport passed over", node=node, transport=each, reason=passed[each], used=name)
            return Routes(routes, met, {each: passed[each] for each in better})
        raise _nobody(node, passed) from told.unreached

    unasked = routes

    def _ask(self, node: str, deadline: float) -> _Told:
        met: Met | None = None
        unreached: BackendError | None = None
        if TCP in self._names or UNIX in self._names:
            try:
                left = max(deadline - time.monotonic(), 0.001)
                met = self._access.meet(self._plain, node, -1, left / 2, genie=genie.__version__)
                farewell(met)
            except (BackendUnavailable, ConnectionLost, DeadlineExceeded) as error:
                unreached = error
        port = met.welcome.control_port if met is not None else _port(node) + _LIKELY_CONTROL_PORT
        host = met.welcome.host if met is not None else ""
        ways: dict[str, Way] = {}
        silent = "" if port else "the node has no control plane to say what it listens with"
        if port:
            try:
                left = max(deadline - time.monotonic(), 0.001)
                with self._access.control_at(control_address(node, port), left / 2) as control:
                    capabilities = control.capabilities()
                host = host or capabilities.host
                ways = {way.transport: way for way in reversed(capabilities.ways)}
                if not ways:
                    silent = "the node does not say what it listens with: it is of an older version"
            except (AccessDenied, ConfigError):
                raise
            except GenieError as error:
                silent = f"the node's control plane does not say what it listens with: {error.message}"
        if met is not None and met.welcome.local_address and UNIX not in ways:
            path = met.welcome.local_address.removeprefix(f"{UNIX}:")
            if is_socket(met.welcome.local_address):
                ways[UNIX] = Way(transport=UNIX, path=path)
        here = bool(host) and host == host_identity() and is_here(node)
        return _Told(ways, here, met, silent, unreached)

    def _route(self, name: str, node: str, told: _Told) -> Route:
        """Raises the reason why there is none."""
        if name == TCP:
            if told.met is None:
                raise told.unreached or BackendUnavailable("the node was not asked")
            return Route(UNIX if node.startswith(f"{UNIX}:") else TCP, self._plain, node)
        if name == UNIX:
            return Route(UNIX, self._plain, self._socket(told))
        transport = self._transport(name)
        way = told.ways.get(name)
        if way is None:
            listed = ", ".join(sorted(told.ways)) or "nothing of the kind"
            raise BackendUnavailable(told.silent or f"the node does not listen with it, but with {listed}")
        host = control_address(node, 0).rpartition(":")[0]
        if isinstance(transport, Discerning):
            return Route(name, transport, transport.address(way, host, here=told.here))
        if not way.port:
            raise BackendUnavailable("the node does not say at which port")
        return Route(name, transport, f"{host}:{way.port}")

    def _socket(self, told: _Told) -> str:
        if not self._shortcut:
            raise BackendUnavailable("the setting 'unix_sockets' is off")
        if not told.here:
            unknown = told.met is None and not told.ways
            raise BackendUnavailable(told.silent if unknown and told.silent else "the node is on another host")
        way = told.ways.get(UNIX)
        if way is None or not is_socket(address := f"{UNIX}:{way.path}"):
            raise BackendUnavailable(told.silent or "the node has no Unix socket")
        return address

    def _transport(self, name: str) -> Transport:
        """Raises the reason why it is not to be used."""
        if name not in self._made:
            try:
                self._made[name] = self._make(name)
            except PluginNotFound as error:
                raise BackendUnavailable("it is not installed here") from error
        made = self._made[name]
        if reason := self._access.unfit(made):
            raise BackendUnavailable(reason)
        return made

    def _greeted(self, route: Route, node: str, told: _Told, timeout: float) -> Met:
        if told.met is not None and route.transport is self._plain:
            return told.met
        met = self._access.meet(route.transport, route.address, -1, timeout, node=node, genie=genie.__version__)
        farewell(met)
        return met


def _port(node: str) -> int:
    port = node.rpartition(":")[2]
    return int(port) if port.isdecimal() and int(port) < 65535 else -_LIKELY_CONTROL_PORT


def _nobody(node: str, passed: Mapping[str, str]) -> BackendUnavailable:
    why = "; ".join(f"{name}: {reason}" for name, reason in passed.items())
    return BackendUnavailable(
        f"no transport leads to the node: {why}",
        where=node,
        hint=f"start one there with `genie serve`, or correct the address ({node}); `genie doctor {node}` has more",
    )
