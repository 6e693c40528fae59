"""What asks a node from the side: requests of the control plane, and of the status page over HTTP."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any, NoReturn

import grpc
import msgspec

from genie.remote.control import ControlPlane, Drain, Nothing, Open
from genie.remote.seen.status_page import StatusPage, _Handler
from genie_fuzz.harness import Target, check
from genie_fuzz.nodes import Bench

_METHODS = ("Open", "Capabilities", "Sessions", "Drain", "View")


class _Aborted(Exception):
    """As gRPC's own."""


class Context:
    """Of a call: a stranger's, whose metadata is the fuzzer's, too."""

    def __init__(self, bearer: str) -> None:
        self._bearer = bearer
        self.code: grpc.StatusCode | None = None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", self._bearer),)

    def peer(self) -> str:
        return "ipv4:10.0.0.1:99"

    def auth_context(self) -> dict[str, tuple[bytes, ...]]:
        return {}

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        self.code = code
        raise _Aborted(details)


class _Both:
    def __init__(self) -> None:
        self.node = Bench().server
        self.graces: list[float] = []
        plane = ControlPlane(self.node, self.graces.append)
        handlers = plane._server._state.generic_handlers
        found = (
            handler.service(SimpleNamespace(method=f"/genie.control.v1.Node/{name}"))
            for name in _METHODS
            for handler in handlers
        )
        self.calls = [call.unary_unary for call in found if call is not None]
        self.page = StatusPage(self.node)


@cache
def _both() -> _Both:
    made = _Both()
    check(len(made.calls) == len(_METHODS), f"{len(made.calls)} methods of the control plane were found")
    return made


def one(data: bytes) -> None:
    """The first byte says what is asked; over HTTP the rest is the request."""
    if not data:
        return
    way, rest = data[0] % (len(_METHODS) + 2), data[1:]
    if way >= len(_METHODS):
        _http(rest)
        return
    both = _both()
    context: Any = Context(rest[:16].decode("latin-1"))
    try:
        answer = both.calls[way](rest, context)
    except _Aborted:
        allowed = (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.PERMISSION_DENIED,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        )
        check(context.code in allowed, f"a request ended with {context.code}")
    else:
        msgspec.msgpack.decode(answer)
    for grace in both.graces:
        check(math.isfinite(grace) and grace >= 0, f"a node drains for {grace} s")
    both.graces.clear()
    both.node.guard._tickets._given.clear()


def _http(request: bytes) -> None:
    client, server = socket.socketpair()
    with client, server:
        client.sendall(request[: 1 << 13])
        client.shutdown(socket.SHUT_WR)
        _Handler(server, ("10.0.0.1", 99), SimpleNamespace(owner=_both().page))  # type: ignore[arg-type]
        server.close()
        client.settimeout(5.0)
        answer = b""
        while more := client.recv(1 << 16):
            answer += more
    # HTTP/0.9, of a request without a version, has no status line.
    head = answer.partition(b"\r\n\r\n")[0]
    if head.startswith(b"HTTP/"):
        check(b"\n" not in head.replace(b"\r\n", b""), "a header's line was broken by what a request said")


def seeds() -> Iterator[bytes]:
    encode = msgspec.msgpack.encode
    yield b"\x00" + encode(Open(device=0))
    yield b"\x01" + encode(Nothing())
    yield b"\x02" + encode(Nothing())
    for seconds in (1.0, -1.0, math.inf):
        yield b"\x03" + encode(Drain(seconds=seconds))
    yield b"\x04" + encode(Nothing())
    for path in (b"/", b"/metrics", b"/healthz", b"/status.json?x", b"/nothing"):
        yield b"\x05GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    yield b"\x06HEAD / HTTP/1.0\r\n\r\n"
    yield b"\x05GET /\r\n\r\n"
    yield b"\x05POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n"


TARGET = Target(
    name="control",
    one=one,
    seeds=seeds,
    modules=("genie.remote.control", "genie.remote.seen.status_page", "genie.security.guard"),
    bytes_per_byte=1 << 9,
    bytes_at_least=1 << 20,
    seconds=2.0,
    msgpack_at=1,
    largest=1024,
)
