"""Asking a node's control plane."""

from __future__ import annotations

from typing import TypeVar

import grpc
import msgspec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from genie.errors import AccessDenied, BackendError, DeadlineExceeded, LimitExceeded, ProtocolError, Stage, TlsFailed
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
from genie.remote.node.session.info import SessionInfo
from genie.remote.seen.holdings import NodeMemory
from genie.remote.seen.observed import NodeView
from genie.security import Ticket, Tls, rpc
from genie.security.rpc import SERVICE
from genie.security.tickets import ID_BYTES, KEY_BYTES

_T = TypeVar("_T")


class ControlClient:
    """Asks a node's control plane. Raises :class:`DeadlineExceeded` when it does not answer."""

    def __init__(self, address: str, timeout: float = 5.0, *, tls: Tls | None = None, token: str = "") -> None:
        self._address = address
        self._timeout = timeout
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._channel = rpc.channel(address, tls)

    def ticket(self, device: int, *, bound: bool = False) -> Ticket:
        """For one session on device number ``device``, within half a minute."""
        opened = self._call("Open", Open(device, bound), Opened)
        if len(opened.id) != ID_BYTES or len(opened.key) != KEY_BYTES:
            raise ProtocolError("the control plane gave a ticket of impossible length", where=self._address)
        return Ticket(opened.id, opened.key, opened.bound)

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
