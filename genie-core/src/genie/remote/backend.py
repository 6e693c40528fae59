"""A backend whose devices are those of nodes, over any transport."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Sequence

import msgspec

import genie
from genie import tracing
from genie.config import Settings
from genie.device import Device
from genie.errors import BackendUnavailable, ConfigError, ConnectionLost, DeadlineExceeded
from genie.interfaces import Connection, Transport
from genie.remote.access import Access
from genie.remote.greeting import Met, Wish, farewell, meet, quicker
from genie.remote.rejoining import Rejoining, Reunion
from genie.remote.session import RemoteSession
from genie.remote.traced import TracedSession
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
    ) -> None:
        self.name = name
        self._transport = transport
        self._nodes = tuple(nodes)
        self._known = {(device.address, device.index): device for device in known if device.address}
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._shortcut = shortcut
        self._access = access or Access()
        self._resumes = resumes
        self._heartbeat = heartbeat
        self._wish = wish
        self._refused = refused
        self._silence = silence
        self._lock = threading.Lock()
        self._devices: tuple[Device, ...] | None = None
        self._quicker: dict[str, str] = {}
        self._sessions: list[RemoteSession] = []

    @classmethod
    def from_settings(cls, name: str, transport: Transport, settings: Settings) -> RemoteBackend:
        return cls(
            name,
            transport,
            settings.nodes,
            known=settings.cluster.devices if settings.cluster is not None else (),
            timeout=settings.timeout,
            connect_timeout=settings.connect_timeout,
            shortcut=settings.unix_sockets,
            access=Access.from_settings(settings, transport),
            resumes=settings.lease_seconds > 0,
            heartbeat=settings.heartbeat_seconds,
            wish=Wish(settings.admission_seconds, settings.priority),
            # Recovered elsewhere, it need not be waited for.
            refused=0.5 if settings.recovery else 2.0,
            silence=settings.recovery_silence_seconds if settings.recovery else math.inf,
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
            met = self._access.meet(self._transport, node, -1, self._connect_timeout, genie=genie.__version__)
        except (BackendUnavailable, ConnectionLost, DeadlineExceeded) as error:
            stated = ", ".join(repr(device.id) for device in self._known.values() if device.address == node)
            if stated:
                error.where = f"key 'cluster.devices': the address {node} of {stated}"
            raise
        farewell(met)
        if self._shortcut and (local := quicker(met.welcome)):
            self._quicker[node] = local
        found = []
        for index, device in enumerate(met.welcome.devices):
            theirs = msgspec.structs.replace(device, id=f"{node}/{device.id}", address=node, index=index)
            mine = self._known.get((node, index))
            if mine is not None and not mine.hardware:
                mine = msgspec.structs.replace(mine, hardware=theirs.hardware)
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
        if device.address is None:
            raise ConfigError(f"device {device.id!r} has no address", hint="it belongs to another backend")
        met = self._meet(device.address, device.index)
        session = self._session(met, device, device.address)
        session.speaks(met.welcome.minor)
        session.speak = self._speak
        with self._lock:
            self._sessions = [known for known in self._sessions if not known.closed]
            self._sessions.append(session)
        return session

    def _session(self, met: Met, device: Device, node: str) -> RemoteSession:
        welcome, connection = met.welcome, self._lasting(met, node)
        link = (connection, met.dialogue, device, welcome.limits, node, self._timeout)
        if not tracing.enabled():
            return RemoteSession(*link)
        return TracedSession(*link, session=welcome.session, tells=welcome.minor >= traces.MINOR)

    def _meet(self, node: str, index: int) -> Met:
        local = self._quicker.get(node)
        if local:
            # Gone (another mount namespace, a cleaned /tmp): the long way still works.
            with contextlib.suppress(BackendUnavailable, ConnectionLost, DeadlineExceeded):
                return self._open(local, index, node)
        return self._open(node, index, node)

    def _open(self, address: str, index: int, node: str) -> Met:
        return self._access.meet(
            self._transport,
            address,
            index,
            self._connect_timeout,
            node=node,
            genie=genie.__version__,
            resumes=self._resumes,
            wish=self._wish,
        )

    def _speak(self, target: Target) -> Connection:
        """As a session that sends there."""
        timeout = self._connect_timeout
        return meet(self._transport, target.address, -1, timeout, channel=target.token).connection

    def _lasting(self, met: Met, node: str) -> Connection:
        """The connection, or one that is made anew when it breaks, if the node keeps sessions so long."""
        welcome = met.welcome
        if not (self._resumes and welcome.lease > 0 and welcome.key):
            return met.connection

        def back(address: str, timeout: float, back: Back) -> Met:
            return self._access.meet(
                self._transport, address, -1, timeout, node=node, genie=genie.__version__, back=back
            )

        ways = (str(getattr(met.connection, "peer", node)), node)
        reunion = Reunion(
            meet=back,
            addresses=tuple(dict.fromkeys(ways)),
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
        for session in sessions:
            session.close()
