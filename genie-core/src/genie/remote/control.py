"""The control plane of a node, over gRPC: capabilities, sessions, drain, and the standard health service.

The messages are this package's own structs in msgpack, sent through gRPC's generic handlers: they are few and only
Genie speaks them, so generated code would add a build step and a second schema, and nothing else. Health is the
standard service with its standard messages, for the tools that ask it.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any, TypeVar
from urllib.parse import unquote

import grpc
import msgspec
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import genie
from genie.device import Device
from genie.errors import (
    AccessDenied,
    BackendError,
    ConfigError,
    DeadlineExceeded,
    GenieError,
    LimitExceeded,
    ProtocolError,
    Stage,
    TlsFailed,
)
from genie.remote.accounts_seen import ANONYMOUS, AccountView, see
from genie.remote.holdings import NodeMemory, holdings
from genie.remote.observed import NodeView, observe
from genie.remote.server import NodeServer, SessionInfo
from genie.security import Identity, Scope, Ticket, Tls, rpc
from genie.security.revoked import fingerprint_of_pem
from genie.security.tickets import ID_BYTES, KEY_BYTES
from genie.tenancy.accounts import tenant_of
from genie.wire import PROTOCOL, Limits

log = structlog.get_logger("genie.node")

SERVICE = "genie.control.v1.Node"
_PACKAGES = ("genie-core", "genie-backend-local", "torch")

# Who connects and says nothing, or asks for much at once, is cut off. Times are milliseconds.
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 1 << 20),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 16),
    ("grpc.server_handshake_timeout_ms", 10_000),  # of TLS, and of HTTP/2's first settings
    ("grpc.keepalive_time_ms", 20_000),  # silent for so long: asked
    ("grpc.keepalive_timeout_ms", 10_000),  # no answer in so long: gone
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_connection_idle_ms", 300_000),  # no call in so long
)

_T = TypeVar("_T")


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """``versions`` are those of the node's Python packages, as far as they are installed. ``account`` is of the tenant
    that asks; ``waiting`` are the clients that wait for a place."""

    address: str
    local_address: str = ""
    protocol: tuple[int, int] = PROTOCOL
    versions: dict[str, str] = {}
    devices: tuple[Device, ...] = ()
    limits: Limits = Limits()
    draining: bool = False
    content: dict[str, int] = {}
    account: AccountView | None = None
    waiting: int = 0


class Sessions(msgspec.Struct, frozen=True):
    sessions: tuple[SessionInfo, ...] = ()


class Drain(msgspec.Struct, frozen=True):
    """Take no more sessions, and stop once there are none or after ``seconds``."""

    seconds: float = 30.0


class Drained(msgspec.Struct, frozen=True):
    sessions: int = 0


class Open(msgspec.Struct, frozen=True):
    """A ticket, please, for device number ``device``; -1 for being told what there is."""

    device: int = -1


class Opened(msgspec.Struct, frozen=True):
    """A ticket, good for ``seconds``."""

    id: bytes
    key: bytes
    seconds: float

    def __repr__(self) -> str:  # the key belongs in no log
        return f"Opened(seconds={self.seconds!r})"


class Cancel(msgspec.Struct, frozen=True):
    """End this session; with ``work_only`` stop what it is at, and leave it be."""

    session: str
    work_only: bool = False


class Cancelled(msgspec.Struct, frozen=True):
    found: bool = False


class Nothing(msgspec.Struct, frozen=True):
    pass


class ControlPlane:
    """Answers for ``node``. ``on_drain`` is called with the seconds a client gave."""

    def __init__(self, node: NodeServer, on_drain: Callable[[float], None], tls: Tls | None = None) -> None:
        self._node = node
        self._tls = tls
        self._on_drain = on_drain
        self._health = health.HealthServicer()
        self._server = grpc.server(
            ThreadPoolExecutor(max_workers=4, thread_name_prefix="genie-control"),
            options=_OPTIONS,
            maximum_concurrent_rpcs=64,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        methods = {
            "Open": self._handler("Open", Open, Scope.USE, self._open),
            "Capabilities": self._handler("Capabilities", Nothing, Scope.USE, lambda _, who: self._capabilities(who)),
            "Sessions": self._handler("Sessions", Nothing, Scope.USE, self._sessions),
            "Drain": self._handler("Drain", Drain, Scope.ADMIN, self._drain),
            "Cancel": self._handler("Cancel", Cancel, Scope.ADMIN, self._cancel),
            "Memory": self._handler("Memory", Nothing, Scope.USE, lambda _, who: holdings(node, who)),
            "View": self._handler("View", Nothing, Scope.ADMIN, lambda _, who: observe(node)),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))

    def start(self, host: str, port: int) -> int:
        """Listen at ``port``, or at a free one if it is taken. The port; 0 if there is none to be had."""
        name = f"[{host}]" if ":" in host else host
        # gRPC writes to standard error by itself about what it cannot have: it is not asked for what is taken.
        for wanted in (0,) if port and _taken(host, port) else dict.fromkeys((port, 0)):
            with contextlib.suppress(RuntimeError):
                found = int(self._add_port(f"{name}:{wanted}"))
                if found:
                    self._server.start()
                    self._health.set("", health_pb2.HealthCheckResponse.SERVING)
                    self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
                    if port not in (0, found):
                        log.warning("the control port is taken, another is used", host=host, taken=port, port=found)
                    return found
        log.warning("no control port to be had", host=host, port=port)
        return 0

    def _add_port(self, address: str) -> int:
        if self._tls is not None and self._tls.serves:
            return int(self._server.add_secure_port(address, rpc.server_credentials(self._tls)))
        return int(self._server.add_insecure_port(address))

    def _handler(
        self, name: str, request: type[Any], scope: Scope, answer: Callable[[Any, Identity], msgspec.Struct]
    ) -> Any:
        decoder = msgspec.msgpack.Decoder(request)

        def handle(data: bytes, context: Any) -> bytes:
            try:
                who = self._node.guard.identify(
                    _bearer(context), scope, name, peer=_peer(context), **_certificate(context)
                )
            except AccessDenied as error:
                context.abort(grpc.StatusCode.PERMISSION_DENIED, _one_line(error))
            try:
                wish = decoder.decode(data)
            except (msgspec.DecodeError, RecursionError, ValueError) as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"malformed request: {error}")
            try:
                return msgspec.msgpack.encode(answer(wish, who))
            except LimitExceeded as error:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, _one_line(error))
                raise

        return grpc.unary_unary_rpc_method_handler(handle)

    def _open(self, wish: Open, who: Identity) -> Opened:
        guard = self._node.guard
        ticket = guard.ticket(who, wish.device)
        return Opened(id=ticket.id, key=ticket.key, seconds=guard.ticket_seconds)

    def _sessions(self, _: Nothing, who: Identity) -> Sessions:
        known = self._node.sessions()
        if who.may(Scope.ADMIN):
            return Sessions(known)
        return Sessions(tuple(info for info in known if info.user == who.name))

    def _cancel(self, wish: Cancel, who: Identity) -> Cancelled:
        name = wish.session[:64]
        found = self._node.cancel(name, "an operator of the node cancelled it", work_only=wish.work_only)
        if found:
            self._node.guard.audit.write(
                "cancelled", session=name, what="work" if wish.work_only else "session", **who.facts
            )
        return Cancelled(found)

    def not_serving(self) -> None:
        self._health.enter_graceful_shutdown()

    def close(self) -> None:
        self._server.stop(grace=0.5).wait(5.0)

    def _capabilities(self, who: Identity) -> Capabilities:
        seen = see(self._node.reception)
        name = tenant_of(who) or ANONYMOUS
        return Capabilities(
            address=self._node.address,
            local_address=self._node.local_address,
            versions=_versions(),
            devices=self._node.devices,
            limits=self._node.limits,
            draining=self._node.draining,
            content=dict(self._node.content().stats()),
            account=next((account for account in seen.accounts if account.tenant == name), None),
            waiting=len(seen.queue),
        )

    def _drain(self, wish: Drain, who: Identity) -> Drained:
        self._node.guard.audit.write("drain", seconds=wish.seconds, **who.facts)
        self.not_serving()
        self._on_drain(min(wish.seconds, 3600.0) if wish.seconds > 0 else 0.0)  # 0 for what is no number, too
        return Drained(len(self._node.sessions()))


class ControlClient:
    """Asks a node's control plane. Raises :class:`DeadlineExceeded` when it does not answer."""

    def __init__(self, address: str, timeout: float = 5.0, *, tls: Tls | None = None, token: str = "") -> None:
        self._address = address
        self._timeout = timeout
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._channel = rpc.channel(address, tls)

    def ticket(self, device: int) -> Ticket:
        """For one session on device number ``device``, within half a minute."""
        opened = self._call("Open", Open(device), Opened)
        if len(opened.id) != ID_BYTES or len(opened.key) != KEY_BYTES:
            raise ProtocolError("the control plane gave a ticket of impossible length", where=self._address)
        return Ticket(opened.id, opened.key)

    def capabilities(self) -> Capabilities:
        return self._call("Capabilities", Nothing(), Capabilities)

    def sessions(self) -> tuple[SessionInfo, ...]:
        return self._call("Sessions", Nothing(), Sessions).sessions

    def view(self) -> NodeView:
        """All the node counts, now."""
        return self._call("View", Nothing(), NodeView)

    def memory(self) -> NodeMemory:
        """Who holds it, as far as this token may know."""
        return self._call("Memory", Nothing(), NodeMemory)

    def drain(self, seconds: float) -> int:
        """The number of sessions there still are."""
        return self._call("Drain", Drain(seconds), Drained).sessions

    def cancel(self, session: str, *, work_only: bool = False) -> bool:
        """End a session, or only what it is at. Whether there is one of this name."""
        return self._call("Cancel", Cancel(session, work_only), Cancelled).found

    def healthy(self) -> bool:
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        try:
            answer = health_pb2_grpc.HealthStub(self._channel).Check(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise self._failed(error, "Check") from error
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: str, request: msgspec.Struct, answer: type[_T]) -> _T:
        call = self._channel.unary_unary(f"/{SERVICE}/{method}")
        try:
            data = call(msgspec.msgpack.encode(request), timeout=self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._failed(error, method) from error
        try:
            return msgspec.msgpack.decode(data, type=answer)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise ProtocolError(f"the control plane's {method} answer is malformed", where=self._address) from error

    def _failed(self, error: grpc.RpcError, method: str) -> BackendError:
        detail, code = str(error), None
        if isinstance(error, grpc.Call):
            detail, code = str(error.details()), error.code()
        message, _, hint = detail.partition("\n")
        if code is grpc.StatusCode.PERMISSION_DENIED:
            return AccessDenied(message, where=self._address, hint=hint)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return LimitExceeded(message, where=self._address, hint=hint)
        if code is grpc.StatusCode.UNAVAILABLE and "handshake" in detail.lower():
            return TlsFailed(f"no TLS with the node's control plane: {message}", where=self._address)
        return DeadlineExceeded(
            f"the node's control plane does not answer: {detail}",
            stage=Stage.TICKET if method == "Open" else Stage.CONTROL,
            seconds=self._timeout if code is grpc.StatusCode.DEADLINE_EXCEEDED else 0.0,
            setting="connect_timeout",
            where=self._address,
        )


def check_free(host: str, port: int) -> None:
    """Raises :class:`ConfigError` for a port that is taken."""
    if _taken(host, port):
        raise ConfigError(
            f"cannot listen at {host}:{port}: the port is taken",
            where="--control-port",
            hint="stop the other program, or choose another port",
        )


def _taken(host: str, port: int) -> bool:
    """Whether a port can't be had at one of the host's addresses. Ones that are not this machine's don't count."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    for family, kind, _, _, at in found:
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(at)
            except OSError as error:
                if error.errno in (errno.EADDRINUSE, errno.EACCES):
                    return True
    return False


def _bearer(context: Any) -> str:
    """The token a call came with; "" if none."""
    for key, value in context.invocation_metadata():
        if key == "authorization" and isinstance(value, str) and value.startswith("Bearer "):
            return value.removeprefix("Bearer ")
    return ""


def _peer(context: Any) -> str:
    return unquote(str(context.peer())).removeprefix("ipv4:").removeprefix("ipv6:")


def _certificate(context: Any) -> dict[str, str]:
    """By which the caller was let in."""
    shown = context.auth_context()
    names, pems = shown.get("x509_common_name", ()), shown.get("x509_pem_cert", ())
    return {
        "certificate": names[0].decode(errors="replace") if names else "",
        "fingerprint": fingerprint_of_pem(pems[0]) if pems else "",
    }


def _one_line(error: GenieError) -> str:
    return f"{error.message}\n{error.hint}" if error.hint else error.message


def _versions() -> dict[str, str]:
    versions = {"genie": genie.__version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
