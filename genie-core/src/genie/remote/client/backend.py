"""A backend whose devices are those of nodes, over any transport."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

import genie
from genie import tracing
from genie.config import Settings
from genie.device import Device
from genie.errors import BackendUnavailable, ConfigError, ConnectionLost, DeadlineExceeded
from genie.interfaces import Connection, Transport
from genie.remote.client.access import Access
from genie.remote.client.rejoining import Rejoining, Reunion
from genie.remote.client.routes import Direct, Guide, Route, Routes
from genie.remote.client.session import RemoteSession
from genie.remote.client.traced import TracedSession
from genie.remote.greeting import Met, Wish, meet
from genie.remote.secrecy import encrypting, protection
from genie.ways import Carried
from genie.wire import traces
from genie.wire.channels import Target
from genie.wire.messages import Back


class RemoteBackend:
    """``nodes`` are addresses; their devices, in order, are the backend's. A device of ``known`` (a cluster file)
    stands for the node's own device of the same address and index: its id and figures are the user's. ``wish`` is what
    is done where a node is full: without one it refuses."""

    loses = True

    def __init__(
        self,
        name: str,
        transport: Transport,
        nodes: Sequence[str],
        *,
        known: Sequence[Device] = (),
        timeout: float = 60.0,
        connect_timeout: float = 10.0,
        shortcut: bool = True,
        access: Access | None = None,
        resumes: bool = True,
        heartbeat: float = 10.0,
        wish: Wish | None = None,
        refused: float = 2.0,
        silence: float = math.inf,
        guide: Guide | None = None,
    ) -> None:
        self.name = name
        self._transport = transport
        self._nodes = tuple(nodes)
        self._known = {(device.address, device.index): device for device in known if device.address}
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._access = access or Access()
        self._guide = guide or Direct(transport, self._access, shortcut=shortcut)
        self._resumes = resumes
        self._heartbeat = heartbeat
        self._wish = wish or Wish()
        self._refused = refused
        self._silence = silence
        self._lock = threading.Lock()
        self._devices: tuple[Device, ...] | None = None
        self._routes: dict[str, Routes] = {}
        self._sessions: list[tuple[RemoteSession, Mapping[str, str]]] = []  # and what was passed over for it

    @classmethod
    def from_settings(
        cls, name: str, transport: Transport, settings: Settings, guided: Callable[[Access], Guide] | None = None
    ) -> RemoteBackend:
        """``guided`` makes what finds the ways to nodes, if that is not ``transport`` alone."""
        access = Access.from_settings(settings, transport)
        return cls(
            name,
            transport,
            settings.nodes,
            known=settings.cluster.devices if settings.cluster is not None else (),
            timeout=settings.timeout,
            connect_timeout=settings.connect_timeout,
            shortcut=settings.unix_sockets,
            access=access,
            resumes=settings.lease_seconds > 0,
            heartbeat=settings.heartbeat_seconds,
            wish=Wish(settings.admission_seconds, settings.priority),
            # Recovered elsewhere, it need not be waited for.
            refused=0.5 if settings.recovery else 2.0,
            silence=settings.recovery_silence_seconds if settings.recovery else math.inf,
            guide=guided(access) if guided is not None else None,
        )

    def devices(self) -> tuple[Device, ...]:
        """Asks every node, the first time."""
        with self._lock:
            if self._devices is None:
                if not self._nodes:
                    raise ConfigError(
                        f"the backend {self.name!r} has no nodes",
                        hint='set `nodes` (GENIE_NODES="host:port"), or devices with addresses in cluster.yaml',
                    )
                self._devices = tuple(device for node in self._nodes for device in self._ask(node))
            return self._devices

    def _ask(self, node: str) -> list[Device]:
        try:
            routes = self._guide.routes(node, self._connect_timeout)
        except (BackendUnavailable, ConnectionLost, DeadlineExceeded) as error:
            stated = ", ".join(repr(device.id) for device in self._known.values() if device.address == node)
            if stated:
                error.where = f"key 'cluster.devices': the address {node} of {stated}"
            raise
        self._routes[node] = routes
        found = []
        for index, device in enumerate(routes.met.welcome.devices if routes.met is not None else ()):
            theirs = msgspec.structs.replace(device, id=f"{node}/{device.id}", address=node, index=index)
            mine = self._known.get((node, index))
            if mine is not None:
                mine = msgspec.structs.replace(
                    mine, hardware=mine.hardware or theirs.hardware, engines=mine.engines or theirs.engines
                )
            found.append(mine or theirs)
        for address, index in self._known:
            if address == node and index >= len(found):
                raise ConfigError(
                    f"the cluster has a device {index} at {node}, which has {len(found)}",
                    where=self._known[address, index].id,
                    hint="count a node's devices from 0; `genie node status` lists them",
                )
        listed = [device for device in found if (device.address, device.index) in self._known]
        return listed or found

    def connect(self, device: Device) -> RemoteSession:
        return self._connect(device, self._wish)

    def connect_now(self, device: Device) -> RemoteSession:
        """As :meth:`connect`; but where the node is full, it refuses at once (:class:`LimitExceeded`)."""
        return self._connect(device, self._wish._replace(seconds=0.0))

    def _connect(self, device: Device, wish: Wish) -> RemoteSession:
        if device.address is None:
            raise ConfigError(f"device {device.id!r} has no address", hint="it belongs to another backend")
        met, routes, passed_over = self._meet(device.address, device.index, wish)
        session = self._session(met, device, device.address, routes, passed_over)
        session.ticket = met.ticket
        session.speaks(met.welcome.minor)
        session.speak = self._speak
        with self._lock:
            self._sessions = [known for known in self._sessions if not known[0].closed]
            self._sessions.append((session, passed_over))
        return session

    def carried(self) -> tuple[Carried, ...]:
        """See :class:`genie.ways.Carrying`."""
        with self._lock:
            return tuple(
                Carried(
                    node=session.device.address or "",
                    device=session.device.id,
                    transport=session.transport,
                    protection=self._protection(session),
                    passed_over=dict(passed_over),
                )
                for session, passed_over in self._sessions
                if not session.closed
            )

    def _protection(self, session: RemoteSession) -> str:
        routes = self._routes.get(session.device.address or "")
        transports = (self._transport, *(route.transport for route in (routes.found if routes else ())))
        return protection(session.transport, transports, tickets=session.ticket is not None)

    def _session(
        self, met: Met, device: Device, node: str, routes: Sequence[Route], passed_over: dict[str, str]
    ) -> RemoteSession:
        first = routes[0]
        if not self._access.plain(first.transport):  # what began over TLS goes on so
            routes = [route for route in routes if not self._access.plain(route.transport)]
        welcome, connection = met.welcome, self._lasting(met, node, routes, passed_over)
        link = (connection, met.dialogue, device, welcome.limits, node, self._timeout)
        if not tracing.enabled():
            return RemoteSession(*link)
        return TracedSession(*link, session=welcome.session, tells=welcome.minor >= traces.MINOR)

    def _meet(self, node: str, index: int, wish: Wish) -> tuple[Met, tuple[Route, ...], dict[str, str]]:
        """The session, the ways to come back to it by, and why better ones were passed over."""
        routes = self._routes.get(node)
        if routes is None:
            routes = self._routes[node] = self._guide.unasked(node, self._connect_timeout)
        deadline = time.monotonic() + self._connect_timeout
        passed_over = dict(routes.passed_over)
        *better, last = routes.found
        for number, route in enumerate(better):
            left = max(deadline - time.monotonic(), 0.001) / (len(better) - number + 1)
            try:
                met = self._open(route, index, node, wish._replace(passed_over=passed_over), left)
            except (BackendUnavailable, ConnectionLost, DeadlineExceeded) as error:
                # A socket is gone (another mount namespace, a cleaned /tmp), a device is full: another way still works.
                passed_over[route.name] = error.message
            else:
                return met, routes.found[number:], passed_over
        left = max(deadline - time.monotonic(), 0.001)
        met = self._open(last, index, node, wish._replace(passed_over=passed_over), left)
        return met, (last,), passed_over

    def _open(self, route: Route, index: int, node: str, wish: Wish, timeout: float) -> Met:
        return self._access.meet(
            route.transport,
            route.address,
            index,
            timeout,
            node=node,
            genie=genie.__version__,
            resumes=self._resumes,
            wish=wish,
        )

    def _speak(self, target: Target) -> Connection:
        """As a session that sends there."""
        timeout = self._connect_timeout
        known = self._routes.get(target.address)
        routes = [route for route in known.found if not self._access.plain(route.transport)] if known else []
        if routes:
            return meet(routes[0].transport, routes[0].address, -1, timeout, channel=target.token).connection
        transport = encrypting(self._transport) if self._access.plain(self._transport) else self._transport
        return meet(transport, target.address, -1, timeout, channel=target.token).connection

    def _lasting(self, met: Met, node: str, routes: Sequence[Route], passed_over: dict[str, str]) -> Connection:
        """The connection, or one that is made anew when it breaks, if the node keeps sessions so long."""
        welcome = met.welcome
        if not (self._resumes and welcome.lease > 0 and welcome.key):
            return met.connection

        ways = {route.label: route for route in routes}
        never = set(passed_over)  # ways that lead nowhere

        def better(label: str) -> set[str]:
            return never | {route.name for route in routes[: list(ways).index(label)]}

        def back(label: str, timeout: float, back: Back) -> Met:
            route = ways[label]
            try:
                found = self._access.meet(
                    route.transport,
                    route.address,
                    -1,
                    timeout,
                    node=node,
                    genie=genie.__version__,
                    back=back,
                    wish=Wish(passed_over={name: why for name, why in passed_over.items() if name in better(label)}),
                )
            except (BackendUnavailable, ConnectionLost, DeadlineExceeded) as error:
                passed_over[route.name] = error.message
                raise
            for name in passed_over.keys() - better(label):
                del passed_over[name]
            return found

        reunion = Reunion(
            meet=back,
            addresses=tuple(ways),
            session=welcome.session,
            key=welcome.key,
            lease=welcome.lease,
            heartbeat=self._heartbeat,
            connect_timeout=self._connect_timeout,
            refused=self._refused,
            silence=self._silence,
        )
        return Rejoining(met.connection, reunion)

    def close(self) -> None:
        with self._lock:
            sessions, self._sessions = self._sessions, []
            self._devices = None
        for session, _ in sessions:
            session.close()
