"""A node: a listener, and one thread per client in front of a backend of this process."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Protocol, runtime_checkable

import structlog

import genie
from genie.device import Device
from genie.errors import (
    AccessDenied,
    BackendUnavailable,
    ConnectionLost,
    DeadlineExceeded,
    GenieError,
    NodeError,
    ProtocolError,
    SessionClosed,
    VersionMismatch,
)
from genie.interfaces import Backend, Connection, Keyed, Listener, Session, Transport
from genie.remote.abilities import Accounting, Swapping
from genie.remote.channels.ends import Channels
from genie.remote.channels.inlets import Inlet, Inlets
from genie.remote.greeting import greeting, heard
from genie.remote.identity import host_identity
from genie.remote.node.content_store import ContentStore
from genie.remote.node.crowd import crowded
from genie.remote.node.door import Door, bare_welcome, stranger
from genie.remote.node.meters import Meters, named
from genie.remote.node.nearby import listen_locally
from genie.remote.node.realm import Realm
from genie.remote.node.reception import Reception
from genie.remote.node.served import choose, each_its_name
from genie.remote.node.session.departed import Departed, may_come_back
from genie.remote.node.session.info import SessionInfo, back, begun, now
from genie.remote.node.session.lasting import Lasting, welcome_back
from genie.remote.node.session.messages import NodeSession
from genie.remote.node.threads import Threads
from genie.remote.node.tidying import tidy
from genie.remote.node.watching import Watch
from genie.remote.secrecy import encrypting
from genie.security import Guard, Identity, Ticket
from genie.security.tickets import prove_welcome
from genie.tenancy.accounts import Tenancy
from genie.tenancy.pace import Pace
from genie.ways import MOST_WAYS, Admitting, Way, ways_of
from genie.wire import PROTOCOL, RESUMING, Dialogue, Kind, Limits, frames, messages
from genie.wire.messages import Back, Hello, Welcome

log = structlog.get_logger("genie.node")

MOST_SESSIONS = 64
_GREETING_SECONDS = 10.0
_HOUSEKEEPING_SECONDS = 30.0


@runtime_checkable
class Trimming(Protocol):
    """A backend may keep memory for later, and then be asked, from any thread, to give back what lies idle."""

    def trim(self) -> None: ...


class NodeServer:
    """Serves ``backend``'s devices over ``transport`` at ``address``.

    With ``local`` it also listens on a Unix socket, where the transport can, in a directory only this user enters;
    clients on this host are told. ``content_bytes`` bounds the host memory that keeps uploaded contents. A session
    whose connection breaks waits ``lease_seconds`` for its client to come back; 0: it ends at once. A client that
    finds no place waits for one, if it likes, for at most ``admission_seconds``. With ``plain_data`` what does not
    speak TLS carries what a ticket protects, and nothing else.

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
        max_sessions: int = MOST_SESSIONS,
        content_bytes: int | None = None,
        partial_seconds: float = 600.0,
        guard: Guard | None = None,
        lease_seconds: float = 30.0,
        tenancy: Tenancy | None = None,
        admission_seconds: float = 60.0,
        plain_data: bool = False,
    ) -> None:
        self.guard = guard or Guard()
        self._door = Door(self.guard, transport, plain_data=plain_data)
        self._between = encrypting(transport) if plain_data else transport
        self._backend = backend
        self._transport = transport
        self._wanted_address = address
        self._wanted_devices = tuple(devices)
        self._wanted_local = local
        self._directory: str | None = None  # of the Unix socket, if it was made for that
        self._limits = limits or Limits()
        self.max_sessions = max_sessions
        self.meters = Meters()
        self.reception = Reception(
            backend,
            tenancy or Tenancy(),
            most=lambda: self.max_sessions,
            seconds=admission_seconds,
        )
        self._lease = lease_seconds
        self._store = ContentStore(_quarter_of_memory() if content_bytes is None else content_bytes, partial_seconds)
        self._inlets = Inlets(self._limits)
        self._devices: tuple[Device, ...] = ()  # as the backend names them
        self._named: tuple[Device, ...] = ()  # as clients see them
        self._listeners: list[Listener] = []
        self._threads: list[threading.Thread] = []
        self._workers = Threads("genie-session")
        self._greeting: set[Connection] = set()
        self._sessions: dict[str, tuple[NodeSession, SessionInfo]] = {}
        self._departed = Departed()
        self._watch = Watch(self._open_sessions)
        self._untidy = False  # sessions have ended since it was looked after
        self._changed = threading.Condition()
        self._numbers = itertools.count(1)
        self._nonce = secrets.token_hex(4)
        self._draining = False
        self._closed = False
        self.address = ""
        self.local_address = ""
        self.control_port = 0  # told to clients once the control plane listens

    @property
    def transports(self) -> tuple[str, ...]:
        return tuple(self._transport.name.split(","))

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen; returns at once. Raises :class:`ConfigError` when the address cannot be had."""
        self._devices = choose(self._backend.devices(), self._wanted_devices)
        self._named = each_its_name(self._devices)
        listener = self._transport.listen(self._wanted_address)
        self._listeners.append(listener)
        self.address = listener.address
        nearby, self._directory = listen_locally(self._transport, self._wanted_local)
        if nearby is not None:
            self._listeners.append(nearby)
            self.local_address = self._inlets.local_address = nearby.address
        for each in self._listeners:
            thread = threading.Thread(target=self._accept, args=(each,), name=f"genie-accept-{each.address}")
            thread.daemon = True
            thread.start()
            self._threads.append(thread)
        self._watch.start()

    def drain(self, timeout: float) -> bool:
        """Take no more sessions and wait for those there are. Whether all ended in time."""
        with self._changed:
            self._draining = True
        self.reception.close(self._shutting_down())
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
        self.reception.close(self._shutting_down())
        for listener in self._listeners:
            listener.close()
        for connection in connections:
            connection.close()
        for session in sessions:
            session.stop("the node shut down")
        self._watch.close()
        for thread in self._threads:
            thread.join(timeout=10.0)
        with self._changed:
            self._changed.wait_for(lambda: not self._sessions, timeout=10.0)
        self._workers.close()
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

    def cancel(self, name: str, reason: str, *, work_only: bool = False) -> bool:
        """End the session of this name, or only what it was asked so far. Whether there is one."""
        with self._changed:
            session, _ = self._sessions.get(name, (None, None))
        if session is None:
            return False
        if work_only:
            session.cancel_work(reason)
        else:
            session.stop(reason)
        return True

    def _open_sessions(self) -> list[NodeSession]:
        with self._changed:
            return [session for session, _ in self._sessions.values()]

    def sessions(self) -> tuple[SessionInfo, ...]:
        with self._changed:
            return tuple(now(info, its.lasting, self._door.protection) for its, info in self._sessions.values())

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def idle_threads(self) -> int:
        """That wait for the next session."""
        return self._workers.idle

    @property
    def greeting(self) -> int:
        """Connections that have not said who they are."""
        with self._changed:
            return len(self._greeting)

    @property
    def ways(self) -> tuple[Way, ...]:
        """How clients reach it."""
        return tuple(way for each in self._listeners for way in ways_of(self.transports[-1], each))[:MOST_WAYS]

    def ticket(self, owner: Identity, device: int, *, bound: bool = False) -> Ticket:
        """For a client that showed who it is. What listens knows of it before the client does."""
        ticket = self.guard.ticket(owner, device, bound=bound)
        for each in self._listeners:
            if isinstance(each, Admitting):
                each.expect(ticket.session, ticket.key, self.guard.ticket_seconds)
        return ticket

    def content(self) -> ContentStore:
        return self._store

    def memory(self) -> Sequence[Mapping[str, int]]:
        """For each of ``devices`` what :class:`Accounting` says of it; nothing where the backend does not count."""
        told = self._backend.memory() if isinstance(self._backend, Accounting) else {}
        return [told.get(device.id, {}) for device in self._devices]

    def housekeep(self) -> None:
        """Give back what was kept for longer than it is likely to be used. To be called now and then. What fails is
        logged, and the rest done: a thread that fails here would accept no clients any more."""
        for duty in (self._store.expire, self.reception.housekeep, self._trim, self._tidy, self._end_unwelcome):
            try:
                duty()
            except Exception:
                log.exception("housekeeping failed")

    def _trim(self) -> None:
        if isinstance(self._backend, Trimming):
            self._backend.trim()

    def _tidy(self) -> None:
        with self._changed:
            untidy, self._untidy = self._untidy, False
        if untidy:
            tidy()

    def _end_unwelcome(self) -> None:
        for session in self._open_sessions():
            if reason := self.guard.unwelcome(session.owner):
                log.warning("session ended", reason=reason, session=session.name, user=session.owner.name)
                session.stop(reason)

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
                strangers = [each for each in self._greeting if each not in self.reception.waiting]
                full = crowded(connection, strangers, len(self._sessions), self.max_sessions)
                turned_away = self._closed or full
                if not turned_away:
                    self._greeting.add(connection)
            if turned_away:
                if full:
                    self.meters.refused("Crowded")
                connection.close()
                continue
            try:
                self._workers.run(partial(self._serve, connection))
            except RuntimeError as error:  # no more threads: this one goes, and the next may do better
                log.warning("not served", reason=str(error))
                self.meters.refused(BackendUnavailable.__name__)
                with self._changed:
                    self._greeting.discard(connection)
                connection.close()

    def _serve(self, connection: Connection) -> None:
        session: NodeSession | Inlet | Back | None = None
        dialogue = Dialogue(client=False)
        try:
            session = self._greet(connection, dialogue)
        except GenieError as error:
            log.info("client refused", reason=error.message)
            self.meters.refused(type(error).__name__)
            if not isinstance(error, ConnectionLost):
                facts = stranger(connection).facts
                self.guard.audit.write("refused", where="data plane", reason=error.message, **facts)
            self._refuse(connection, dialogue, error)
        except Exception as error:
            log.exception("greeting failed")
            self.meters.refused(NodeError.__name__)
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
            self._forget(session)

    def _forget(self, session: NodeSession) -> None:
        seconds = round(time.monotonic() - session.began, 3)
        self.guard.audit.write("closed", session=session.name, seconds=seconds, **session.owner.facts)
        self.meters.closed(session.meter)
        self.reception.leave(session.pace)
        with self._changed:
            self._sessions.pop(session.name, None)
            self._departed.add(session)
            self._untidy = True
            self._changed.notify_all()

    def _greet(self, connection: Connection, dialogue: Dialogue) -> NodeSession | Inlet | Back | None:
        message = connection.receive(_no_buffers, _GREETING_SECONDS)
        kind, body, proof = heard(message.header)
        dialogue.numbered(frames.sequence(message.header))
        dialogue.hear(kind)
        if kind == Kind.BYE:
            return None
        hello = messages.get_hello(body)
        self.guard.check_certificate(stranger(connection))
        if hello.major != PROTOCOL[0]:
            raise VersionMismatch(
                f"the client speaks version {hello.major}.{hello.minor} of the protocol (Genie {hello.genie}), "
                f"this node {PROTOCOL[0]}.{PROTOCOL[1]} (Genie {genie.__version__})",
                where=self.address,
                hint="install the same version of Genie on both sides",
            )
        if self._door.only_asks(connection, hello, proof):
            self._say(connection, dialogue, bare_welcome(self.control_port))
            return None
        owner, ticket = self._door.let_in(connection, hello, body, proof)
        if hello.back is not None:
            say = partial(self._say, connection, dialogue, ticket=ticket, hello=body)
            return self._take_back(connection, hello, hello.back, owner, say)
        inlet = self._inlets.claim(hello.channel) if hello.channel else None
        opens = hello.device >= 0 and inlet is None
        session = self._open(connection, dialogue, hello, owner, ticket) if opens else None
        try:
            welcome = Welcome(
                major=PROTOCOL[0],
                minor=PROTOCOL[1],
                genie=genie.__version__,
                session="" if session is None else session.name,
                devices=self.reception.devices(self._named, owner),
                limits=self._limits,
                host=host_identity(),
                local_address=self.local_address,
                control_port=self.control_port,
                tickets=self.guard.wants_tickets or ticket is not None,
                lease=0.0 if session is None or session.lasting is None else session.lasting.lease,
                key="" if session is None or session.lasting is None else session.lasting.key,
            )
            self._say(connection, dialogue, welcome, ticket, body)
        except BaseException:
            if session is not None:
                session.abandon()
                self._forget(session)
            if inlet is not None:
                inlet.end(ConnectionLost("the sender was lost when it connected", where=inlet.source))
            raise
        return session or inlet

    def _say(
        self,
        connection: Connection,
        dialogue: Dialogue,
        welcome: Welcome,
        ticket: Ticket | None = None,
        hello: bytes | memoryview = b"",
    ) -> None:
        said = messages.put_struct(welcome)
        dialogue.say(Kind.WELCOME)
        proof = None if ticket is None else ticket.id + prove_welcome(ticket, hello, said)
        connection.send(greeting(dialogue.seq, Kind.WELCOME, said, proof))
        if ticket is not None and isinstance(connection, Keyed):
            connection.keyed(ticket.key)

    def _take_back(
        self, connection: Connection, hello: Hello, claim: Back, comer: Identity, say: Callable[[Welcome], None]
    ) -> Back | None:
        """Hand the connection over to its session, or say how that is. Also while the node drains."""
        with self._changed:
            session, _ = self._sessions.get(claim.session, (None, None))
            if session is None or not may_come_back(session, claim.key):
                raise SessionClosed(self._departed.reason(claim, self._nonce), where=self.address)
        lasting = session.lasting
        assert lasting is not None
        if not comer.continues(session.owner):
            raise AccessDenied("the session was opened with another token or certificate", where=self.address)
        if claim.probe and claim.cancel:
            session.cancel_work("its client asked for that", claim.sent)
        if claim.probe:
            say(welcome_back(claim.session, lasting.standing()))
            return None

        def welcomed(welcome: Welcome) -> None:
            with self._changed:  # before the client knows: from then on it is as it says
                if (known := self._sessions.get(claim.session)) is not None:
                    self._sessions[claim.session] = (session, back(known[1], hello))
            say(welcome)

        lasting.hand_over(connection, claim, welcomed)
        return claim

    def _moved(self, session: NodeSession, event: str, facts: Mapping[str, str | float]) -> None:
        """Its client is away, or back."""
        self.guard.audit.write(event, session=session.name, **{**session.owner.facts, **facts})
        if event == "back":
            session.prefetch.begin()
            self.meters.came_back()

    def _open(
        self, connection: Connection, dialogue: Dialogue, hello: Hello, owner: Identity, ticket: Ticket | None
    ) -> NodeSession:
        if hello.device >= len(self._devices):
            raise NodeError(
                f"the node has no device {hello.device}, only {len(self._devices)}",
                where=self.address,
                hint="`genie node status` lists its devices, counted from 0",
            )
        pace = self.reception.admit(connection, dialogue, hello, owner)
        try:
            return self._begin(connection, dialogue, hello, owner, pace, ticket)
        except BaseException:
            self.reception.leave(pace)
            raise

    def _begin(
        self,
        connection: Connection,
        dialogue: Dialogue,
        hello: Hello,
        owner: Identity,
        pace: Pace,
        ticket: Ticket | None,
    ) -> NodeSession:
        name = f"{self._nonce}-{next(self._numbers)}"
        device = self._devices[hello.device]
        info = begun(name, hello, self._named[hello.device], connection, owner, pace.account.tenant)
        local = self.reception.connect(device, name, info.client, pace)
        with contextlib.ExitStack() as undo:
            undo.callback(local.close)
            session = self._registered(connection, dialogue, hello, owner, pace, local, info, ticket)
            undo.pop_all()
        self.guard.audit.write("opened", session=name, device=info.device, client=info.client, **owner.facts)
        return session

    def _registered(
        self,
        connection: Connection,
        dialogue: Dialogue,
        hello: Hello,
        owner: Identity,
        pace: Pace,
        local: Session,
        info: SessionInfo,
        ticket: Ticket | None,
    ) -> NodeSession:
        name, device, tenant = info.id, self._devices[hello.device], info.tenant
        if isinstance(local, Swapping):
            local.name(name, tenant)
        channels = Channels(self._inlets, self._between, device, self.address, ticket)
        store = Realm(self._store, self.reception.realm(pace))
        if self._lease > 0 and hello.resumes and hello.minor >= RESUMING:
            connection = Lasting(connection, dialogue, name, self._lease)
        session = NodeSession(
            name, connection, dialogue, local, store, self._limits, device.memory_bytes, channels, owner, pace
        )
        if session.lasting is not None:
            session.lasting.tell = partial(self._moved, session)
        with self._changed:
            draining = self._draining
            if not draining:
                self._sessions[name] = (session, info)
                self.meters.opened(session.meter, tenant or named(info.client), info.device)
        if draining:
            raise self._shutting_down()
        return session

    def _shutting_down(self) -> BackendUnavailable:
        return BackendUnavailable(
            "the node is shutting down and takes no more sessions", where=self.address, hint="use another node"
        )

    def _refuse(self, connection: Connection, dialogue: Dialogue, error: GenieError) -> None:
        with contextlib.suppress(GenieError):
            dialogue.say(Kind.ERROR)
            connection.send(frames.one(max(dialogue.seq, 0), Kind.ERROR, messages.put_error(error)))


def _quarter_of_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4


def _no_buffers(header: bytes, sizes: Sequence[int]) -> Sequence[memoryview]:
    raise ProtocolError("a greeting came with bulk data")
