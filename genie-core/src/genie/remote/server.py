"""A node: a listener, and one thread per client in front of a backend of this process."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, runtime_checkable

import msgspec
import structlog

import genie
from genie.device import Device
from genie.errors import (
    BackendError,
    BackendUnavailable,
    ConfigError,
    ConnectionLost,
    DeadlineExceeded,
    GenieError,
    LimitExceeded,
    NodeError,
    ProtocolError,
    SessionClosed,
    VersionMismatch,
)
from genie.interfaces import Backend, Connection, Listener, Transport
from genie.remote.channels import Channels, Inlet, Inlets
from genie.remote.content import ContentStore
from genie.remote.departed import Departed, may_come_back
from genie.remote.identity import host_identity
from genie.remote.lasting import Lasting
from genie.remote.node_session import NodeSession
from genie.wire import PROTOCOL, RESUMING, Dialogue, Kind, Limits, frames, messages
from genie.wire.messages import Back, Hello, Welcome

log = structlog.get_logger("genie.node")

_GREETING_SECONDS = 10.0
_HOUSEKEEPING_SECONDS = 30.0


@runtime_checkable
class Trimming(Protocol):
    """A backend may keep memory for later, and then be asked, from any thread, to give back what lies idle."""

    def trim(self) -> None: ...


class SessionInfo(msgspec.Struct, frozen=True):
    """A session as the control plane lists it; ``since`` is Unix time."""

    id: str
    client: str
    device: str
    since: float


class NodeServer:
    """Serves ``backend``'s devices over ``transport`` at ``address``.

    With ``local`` it also listens on a Unix socket, where the transport can, in a directory only this user enters;
    clients on this host are told. ``content_bytes`` bounds the host memory that keeps uploaded contents. A session
    whose connection breaks waits ``lease_seconds`` for its client to come back; 0: it ends at once.

    >>> with NodeServer(backend, transport, "127.0.0.1:0") as node:  # doctest: +SKIP
    ...     print(node.address)
    """

    def __init__(
        self,
        backend: Backend,
        transport: Transport,
        address: str = "127.0.0.1:0",
        *,
        devices: Sequence[str] = (),
        local: bool | str = True,
        limits: Limits | None = None,
        max_sessions: int = 64,
        content_bytes: int | None = None,
        partial_seconds: float = 600.0,
        lease_seconds: float = 30.0,
    ) -> None:
        self._backend = backend
        self._transport = transport
        self._wanted_address = address
        self._wanted_devices = tuple(devices)
        self._wanted_local = local
        self._limits = limits or Limits()
        self._max_sessions = max_sessions
        self._lease = lease_seconds
        self._store = ContentStore(_quarter_of_memory() if content_bytes is None else content_bytes, partial_seconds)
        self._inlets = Inlets(self._limits)
        self._devices: tuple[Device, ...] = ()  # as the backend names them
        self._named: tuple[Device, ...] = ()  # as clients see them
        self._listeners: list[Listener] = []
        self._threads: list[threading.Thread] = []
        self._greeting: set[Connection] = set()
        self._sessions: dict[str, tuple[NodeSession, SessionInfo]] = {}
        self._departed = Departed()
        self._changed = threading.Condition()
        self._numbers = itertools.count(1)
        self._nonce = secrets.token_hex(4)
        self._draining = False
        self._closed = False
        self._directory: str | None = None
        self.address = ""
        self.local_address = ""
        self.control_port = 0  # told to clients once the control plane listens

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen; returns at once. Raises :class:`ConfigError` when the address cannot be had."""
        self._devices = self._choose(self._backend.devices())
        self._named = _each_its_name(self._devices)
        listener = self._transport.listen(self._wanted_address)
        self._listeners.append(listener)
        self.address = listener.address
        if self._wanted_local:
            self._listen_locally()
        for each in self._listeners:
            thread = threading.Thread(target=self._accept, args=(each,), name=f"genie-accept-{each.address}")
            thread.daemon = True
            thread.start()
            self._threads.append(thread)

    def drain(self, timeout: float) -> bool:
        """Take no more sessions and wait for those there are. Whether all ended in time."""
        with self._changed:
            self._draining = True
        return self.wait_for_sessions(0, timeout)

    def wait_for_sessions(self, most: int, timeout: float) -> bool:
        """Wait until there are at most so many. Whether that came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._sessions) <= most, timeout)

    def close(self) -> None:
        """End everything now: clients see a lost connection, their memory is freed."""
        with self._changed:
            if self._closed:
                return
            self._closed = self._draining = True
            connections = list(self._greeting)
            sessions = [session for session, _ in self._sessions.values()]
        for listener in self._listeners:
            listener.close()
        for connection in connections:
            connection.close()
        for session in sessions:
            session.stop()
        for thread in self._threads:
            thread.join(timeout=10.0)
        with self._changed:
            self._changed.wait_for(lambda: not self._sessions, timeout=10.0)
        if self._directory is not None:
            with contextlib.suppress(OSError):
                os.rmdir(self._directory)

    def __enter__(self) -> NodeServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- what the control plane tells -------------------------------------------------------------

    @property
    def devices(self) -> tuple[Device, ...]:
        return self._named

    @property
    def draining(self) -> bool:
        return self._draining

    def sessions(self) -> tuple[SessionInfo, ...]:
        with self._changed:
            return tuple(info for _, info in self._sessions.values())

    @property
    def limits(self) -> Limits:
        return self._limits

    def content(self) -> ContentStore:
        return self._store

    def housekeep(self) -> None:
        """Give back what was kept for longer than it is likely to be used. To be called now and then."""
        self._store.expire()
        if isinstance(self._backend, Trimming):
            self._backend.trim()

    # --- clients ----------------------------------------------------------------------------------

    def _accept(self, listener: Listener) -> None:
        while not self._closed:
            try:
                connection = listener.accept(_HOUSEKEEPING_SECONDS)
            except DeadlineExceeded:
                self.housekeep()
                continue
            except BackendUnavailable as error:
                # Out of descriptors, or a client gone before it was served: the next accept may do better.
                log.warning("not accepted", reason=error.message)
                with self._changed:
                    self._changed.wait(timeout=0.1)
                continue
            except ConnectionLost:
                return
            with self._changed:
                crowded = len(self._greeting) + len(self._sessions) >= 2 * self._max_sessions
                if self._closed or crowded:
                    connection.close()
                    continue
                self._greeting.add(connection)
            threading.Thread(target=self._serve, args=(connection,), name="genie-session", daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        session: NodeSession | Inlet | Back | None = None
        dialogue = Dialogue(client=False)
        try:
            session = self._greet(connection, dialogue)
        except GenieError as error:
            log.info("client refused", reason=error.message)
            self._refuse(connection, dialogue, error)
        except Exception as error:
            log.exception("greeting failed")
            self._refuse(connection, dialogue, NodeError(f"the node failed: {type(error).__name__}: {error}"))
        finally:
            with self._changed:
                self._greeting.discard(connection)
        if session is None:
            connection.close()
            return
        if isinstance(session, Back):  # another thread has the connection
            return
        if isinstance(session, Inlet):
            session.pump(connection)
            return
        try:
            session.serve()
        finally:
            with self._changed:
                self._sessions.pop(session.name, None)
                self._departed.add(session)
                self._changed.notify_all()

    def _greet(self, connection: Connection, dialogue: Dialogue) -> NodeSession | Inlet | Back | None:
        message = connection.receive(_no_buffers, _GREETING_SECONDS)
        seq, kind, body = frames.single(message.header)
        dialogue.numbered(seq)
        dialogue.hear(kind)
        if kind == Kind.BYE:
            return None
        hello = messages.get_hello(body)
        if hello.major != PROTOCOL[0]:
            raise VersionMismatch(
                f"the client speaks version {hello.major}.{hello.minor} of the protocol (Genie {hello.genie}), "
                f"this node {PROTOCOL[0]}.{PROTOCOL[1]} (Genie {genie.__version__})",
                where=self.address,
                hint="install the same version of Genie on both sides",
            )
        if hello.back is not None:
            return self._welcome_back(connection, dialogue, hello.back)
        inlet = self._inlets.claim(hello.channel) if hello.channel else None
        session = None if hello.device < 0 or inlet is not None else self._open(connection, dialogue, hello)
        try:
            welcome = Welcome(
                major=PROTOCOL[0],
                minor=PROTOCOL[1],
                genie=genie.__version__,
                session="" if session is None else session.name,
                devices=self._named,
                limits=self._limits,
                host=host_identity(),
                local_address=self.local_address,
                control_port=self.control_port,
                lease=0.0 if session is None or session.lasting is None else session.lasting.lease,
                key="" if session is None or session.lasting is None else session.lasting.key,
            )
            dialogue.say(Kind.WELCOME)
            connection.send(frames.one(dialogue.seq, Kind.WELCOME, messages.put_struct(welcome)))
        except BackendError:
            if session is not None:
                session.abandon()
                with self._changed:
                    self._sessions.pop(session.name, None)
                    self._changed.notify_all()
            if inlet is not None:
                inlet.end(ConnectionLost("the sender was lost when it connected", where=inlet.source))
            raise
        return session or inlet

    def _welcome_back(self, connection: Connection, dialogue: Dialogue, back: Back) -> Back | None:
        """Hand the connection over to its session, or say how that is. Also while the node drains."""
        with self._changed:
            session, _ = self._sessions.get(back.session, (None, None))
            if session is None or not may_come_back(session, back.key):
                raise SessionClosed(self._departed.reason(back, self._nonce), where=self.address)
        lasting = session.lasting
        assert lasting is not None
        if back.probe:
            welcome = Welcome(major=PROTOCOL[0], minor=PROTOCOL[1], session=back.session, standing=lasting.standing())
            dialogue.say(Kind.WELCOME)
            connection.send(frames.one(dialogue.seq, Kind.WELCOME, messages.put_struct(welcome)))
            return None
        lasting.hand_over(connection, back)
        return back

    def _open(self, connection: Connection, dialogue: Dialogue, hello: Hello) -> NodeSession:
        if hello.device >= len(self._devices):
            raise NodeError(
                f"the node has no device {hello.device}, only {len(self._devices)}",
                where=self.address,
                hint="`genie node status` lists its devices, counted from 0",
            )
        name = f"{self._nonce}-{next(self._numbers)}"
        device = self._devices[hello.device]
        local = self._backend.connect(device)
        channels = Channels(self._inlets, self._transport)
        capacity = device.memory_bytes
        if self._lease > 0 and hello.resumes and hello.minor >= RESUMING:
            connection = Lasting(connection, dialogue, name, self._lease)
        session = NodeSession(name, connection, dialogue, local, self._store, self._limits, capacity, channels)
        info = SessionInfo(name, hello.client[:128], self._named[hello.device].id, time.time())
        with self._changed:
            if self._draining:
                refusal: GenieError | None = BackendUnavailable(
                    "the node is shutting down and takes no more sessions", where=self.address, hint="use another node"
                )
            elif len(self._sessions) >= self._max_sessions:
                refusal = LimitExceeded(
                    f"the node has its {self._max_sessions} sessions", where=self.address, hint="try again later"
                )
            else:
                refusal = None
                self._sessions[name] = (session, info)
        if refusal is not None:
            local.close()
            raise refusal
        return session

    def _refuse(self, connection: Connection, dialogue: Dialogue, error: GenieError) -> None:
        with contextlib.suppress(GenieError):
            dialogue.say(Kind.ERROR)
            connection.send(frames.one(max(dialogue.seq, 0), Kind.ERROR, messages.put_error(error)))

    # --- listening --------------------------------------------------------------------------------

    def _choose(self, devices: Sequence[Device]) -> tuple[Device, ...]:
        if not self._wanted_devices:
            return tuple(devices)
        by_id = {device.id: device for device in devices}
        unknown = [wanted for wanted in self._wanted_devices if wanted not in by_id]
        if unknown:
            raise ConfigError(f"there is no device {unknown[0]!r}", hint=f"this host has {', '.join(by_id)}")
        return tuple(by_id[wanted] for wanted in self._wanted_devices)

    def _listen_locally(self) -> None:
        if isinstance(self._wanted_local, str):
            address = f"unix:{self._wanted_local}"
        else:
            self._directory = _own_directory()
            if self._directory is None:
                log.warning("no Unix socket: there is no directory to put it in")
                return
            address = f"unix:{self._directory}/node.sock"
        try:
            listener = self._transport.listen(address)
        except ConfigError as error:
            if isinstance(self._wanted_local, str):
                raise
            log.debug("no Unix socket", transport=self._transport.name, reason=error.message)
            if self._directory is not None:
                os.rmdir(self._directory)
                self._directory = None
            return
        self._listeners.append(listener)
        self.local_address = self._inlets.local_address = listener.address


def _each_its_name(devices: Sequence[Device]) -> tuple[Device, ...]:
    """A device served twice is two devices: the second one is ``cpu#2``."""
    counted: Counter[str] = Counter()
    named = []
    for device in devices:
        counted[device.id] += 1
        count = counted[device.id]
        named.append(device if count == 1 else msgspec.structs.replace(device, id=f"{device.id}#{count}"))
    return tuple(named)


def _own_directory() -> str | None:
    """A new directory for this user alone, if one can be made."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    # A socket's path is short; a longer directory is no use.
    for parent in (runtime if 0 < len(runtime) < 60 else None, None):
        with contextlib.suppress(OSError):
            return tempfile.mkdtemp(prefix="genie-", dir=parent)  # mode 0700
    return None


def _quarter_of_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4


def _no_buffers(header: bytes, sizes: Sequence[int]) -> Sequence[memoryview]:
    raise ProtocolError("a greeting came with bulk data")
