"""The control plane of a node, over gRPC: capabilities, sessions, drain, and the standard health service.

The messages are this package's own structs in msgpack, sent through gRPC's generic handlers: they are few and only
Genie speaks them, so generated code would add a build step and a second schema, and nothing else. Health is the
standard service with its standard messages, for the tools that ask it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any, TypeVar

import grpc
import msgspec
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import genie
from genie.device import Device
from genie.errors import DeadlineExceeded, ProtocolError
from genie.remote.observed import NodeView, observe
from genie.remote.server import NodeServer, SessionInfo
from genie.wire import PROTOCOL, Limits

log = structlog.get_logger("genie.node")

SERVICE = "genie.control.v1.Node"
_PACKAGES = ("genie-core", "genie-backend-local", "torch")

_T = TypeVar("_T")


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """``versions`` are those of the node's Python packages, as far as they are installed."""

    address: str
    local_address: str = ""
    protocol: tuple[int, int] = PROTOCOL
    versions: dict[str, str] = {}
    devices: tuple[Device, ...] = ()
    limits: Limits = Limits()
    draining: bool = False
    content: dict[str, int] = {}


class Sessions(msgspec.Struct, frozen=True):
    sessions: tuple[SessionInfo, ...] = ()


class Drain(msgspec.Struct, frozen=True):
    """Take no more sessions, and stop once there are none or after ``seconds``."""

    seconds: float = 30.0


class Drained(msgspec.Struct, frozen=True):
    sessions: int = 0


class Nothing(msgspec.Struct, frozen=True):
    pass


class ControlPlane:
    """Answers for ``node``. ``on_drain`` is called with the seconds a client gave."""

    def __init__(self, node: NodeServer, on_drain: Callable[[float], None]) -> None:
        self._node = node
        self._on_drain = on_drain
        self._health = health.HealthServicer()
        self._server = grpc.server(
            ThreadPoolExecutor(max_workers=4, thread_name_prefix="genie-control"),
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 1 << 20)],
            maximum_concurrent_rpcs=64,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        methods = {
            "Capabilities": _handler(Nothing, lambda _: self._capabilities()),
            "Sessions": _handler(Nothing, lambda _: Sessions(node.sessions())),
            "Drain": _handler(Drain, self._drain),
            "View": _handler(Nothing, lambda _: observe(node)),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))

    def start(self, host: str, port: int) -> int:
        """Listen at ``port``, or at a free one if it is taken. The port; 0 if there is none to be had."""
        name = f"[{host}]" if ":" in host else host
        for wanted in dict.fromkeys((port, 0)):
            with contextlib.suppress(RuntimeError):
                found = int(self._server.add_insecure_port(f"{name}:{wanted}"))
                if found:
                    self._server.start()
                    self._health.set("", health_pb2.HealthCheckResponse.SERVING)
                    self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
                    return found
            log.warning("control port not to be had", host=host, port=wanted)
        return 0

    def not_serving(self) -> None:
        self._health.enter_graceful_shutdown()

    def close(self) -> None:
        self._server.stop(grace=0.5).wait(5.0)

    def _capabilities(self) -> Capabilities:
        return Capabilities(
            address=self._node.address,
            local_address=self._node.local_address,
            versions=_versions(),
            devices=self._node.devices,
            limits=self._node.limits,
            draining=self._node.draining,
            content=dict(self._node.content().stats()),
        )

    def _drain(self, wish: Drain) -> Drained:
        self.not_serving()
        self._on_drain(min(max(wish.seconds, 0.0), 3600.0))
        return Drained(len(self._node.sessions()))


class ControlClient:
    """Asks a node's control plane. Raises :class:`DeadlineExceeded` when it does not answer."""

    def __init__(self, address: str, timeout: float = 5.0) -> None:
        self._address = address
        self._timeout = timeout
        self._channel = grpc.insecure_channel(address)

    def capabilities(self) -> Capabilities:
        return self._call("Capabilities", Nothing(), Capabilities)

    def sessions(self) -> tuple[SessionInfo, ...]:
        return self._call("Sessions", Nothing(), Sessions).sessions

    def view(self) -> NodeView:
        """All the node counts, now."""
        return self._call("View", Nothing(), NodeView)

    def drain(self, seconds: float) -> int:
        """The number of sessions there still are."""
        return self._call("Drain", Drain(seconds), Drained).sessions

    def healthy(self) -> bool:
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        try:
            answer = health_pb2_grpc.HealthStub(self._channel).Check(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise self._silent(error) from error
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
            data = call(msgspec.msgpack.encode(request), timeout=self._timeout)
        except grpc.RpcError as error:
            raise self._silent(error) from error
        try:
            return msgspec.msgpack.decode(data, type=answer)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise ProtocolError(f"the control plane's {method} answer is malformed", where=self._address) from error

    def _silent(self, error: grpc.RpcError) -> DeadlineExceeded:
        detail = error.details() if isinstance(error, grpc.Call) else str(error)
        return DeadlineExceeded(f"the node's control plane does not answer: {detail}", where=self._address)


def _handler(request: type[Any], answer: Callable[[Any], msgspec.Struct]) -> Any:
    decoder = msgspec.msgpack.Decoder(request)

    def handle(data: bytes, context: Any) -> bytes:
        try:
            wish = decoder.decode(data)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"malformed request: {error}")
        return msgspec.msgpack.encode(answer(wish))

    return grpc.unary_unary_rpc_method_handler(handle)


def _versions() -> dict[str, str]:
    versions = {"genie": genie.__version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
