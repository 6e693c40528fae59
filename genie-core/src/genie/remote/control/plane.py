"""Who answers on a node's control plane, where it listens, and whom it lets in."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any
from urllib.parse import unquote

import grpc
import msgspec
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import genie
from genie.errors import AccessDenied, ConfigError, GenieError, LimitExceeded
from genie.remote.control.messages import (
    Cancel,
    Cancelled,
    Capabilities,
    Drain,
    Drained,
    Nothing,
    Open,
    Opened,
    Sessions,
)
from genie.remote.identity import host_identity
from genie.remote.node.server import NodeServer
from genie.remote.seen.accounts import ANONYMOUS, see
from genie.remote.seen.holdings import holdings
from genie.remote.seen.observed import observe
from genie.security import Identity, Scope, Tls, rpc
from genie.security.revoked import fingerprint_of_pem
from genie.security.rpc import SERVICE
from genie.tenancy.accounts import tenant_of

log = structlog.get_logger("genie.node")

_PACKAGES = ("genie-core", "genie-backend-local", "torch")

# Who connects and says nothing, or asks for much at once, is cut off. Times are milliseconds.
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 1 << 20),
    ("grpc.compression_enabled_algorithms_bitset", 1),  # none: a few bytes may unpack to gigabytes
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 16),
    ("grpc.server_handshake_timeout_ms", 10_000),  # of TLS, and of HTTP/2's first settings
    ("grpc.keepalive_time_ms", 20_000),  # silent for so long: asked
    ("grpc.keepalive_timeout_ms", 10_000),  # no answer in so long: gone
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_connection_idle_ms", 300_000),  # no call in so long
)


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
        """Listen at ``port``, or at a free one if it is taken. The port; 0 if there is none to be had. Without a
        ``host`` that is at every address, as of the data port."""
        name = f"[{host}]" if ":" in host else host or "0.0.0.0"
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
        ticket = self._node.ticket(who, wish.device, bound=wish.bound)
        return Opened(id=ticket.id, key=ticket.key, seconds=self._node.guard.ticket_seconds, bound=ticket.bound)

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
            host=host_identity(),
            transports=self._node.transports,
            ways=self._node.ways,
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


def check_free(host: str, port: int) -> None:
    """Raises :class:`ConfigError` for a port that can't be had."""
    if reason := _taken(host, port):
        raise ConfigError(
            f"cannot listen at {host}:{port}: {reason}",
            where="--control-port",
            hint="stop the other program, or choose another port",
        )


def _taken(host: str, port: int) -> str:
    """Why a port can't be had at one of the host's addresses, if it can't. Ones that are not this machine's don't
    count."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return ""
    for family, kind, _, _, at in found:
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(at)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return "the port is taken"
                if error.errno == errno.EACCES:
                    return error.strerror or str(error)
    return ""


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
