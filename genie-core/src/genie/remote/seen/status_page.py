"""A node's numbers over HTTP: for Prometheus, for scripts, and for people with a browser.

It only tells: nothing can be asked of the node here. A request is a few lines; a client that sends more, or slowly, is
cut off, and of clients at once there are few.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import socket
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from io import BytesIO
from typing import Any, Final

import msgspec
import structlog

from genie.errors import AccessDenied, ConfigError
from genie.remote.node.server import NodeServer
from genie.remote.seen.metrics import CONTENT_TYPE, Metrics
from genie.remote.seen.observed import observe
from genie.security import Scope

log = structlog.get_logger("genie.node")

_SECONDS: Final = 5.0  # for a whole request, and again for its answer
_LARGEST: Final = 8 << 10  # of a request
_AT_ONCE: Final = 8


class StatusPage:
    """Serves ``/metrics``, ``/healthz``, ``/status.json`` and ``/`` of ``node`` from a thread of its own."""

    def __init__(self, node: NodeServer, *, insecure: bool = False) -> None:
        self._node = node
        self._insecure = insecure
        self._asks = False  # for a token
        self._metrics = Metrics(node)
        self._page, self._policy = page()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self.address = ""

    def start(self, host: str, port: int) -> None:
        """Listen; 0 takes a free port. Raises :class:`ConfigError` when the address cannot be had."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._server = _Server(family, (host, port), self)
        except (OSError, OverflowError) as error:
            reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            raise ConfigError(
                f"cannot serve metrics at {host}:{port}: {reason}",
                where="--metrics-port",
                hint="stop the other program, or choose another port (0 picks a free one)",
            ) from error
        name = f"[{host}]" if ":" in host else host
        self.address = f"{name}:{self._server.server_address[1]}"
        if not _loopback(str(self._server.server_address[0])):
            self._asks = not self._insecure
            if self._insecure:
                log.warning("metrics and clients' names are told to whoever reaches the port", address=self.address)
        self._thread = threading.Thread(target=self._server.serve_forever, name="genie-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join(5.0)
            self._server = self._thread = None

    def answer(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        """Status, type and content of what is at ``path``."""
        match path.partition("?")[0]:
            case "/metrics":
                return HTTPStatus.OK, CONTENT_TYPE, self._metrics.text()
            case "/healthz":
                state = "starting" if not self._node.address else "draining" if self._node.draining else "ok"
                status = HTTPStatus.OK if state == "ok" else HTTPStatus.SERVICE_UNAVAILABLE
                return status, "text/plain; charset=utf-8", f"{state}\n".encode()
            case "/status.json":
                return HTTPStatus.OK, "application/json", msgspec.json.encode(observe(self._node))
            case "/":
                return HTTPStatus.OK, "text/html; charset=utf-8", self._page
        there = b"there are / /metrics /healthz /status.json\n"
        return HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", there

    def check(self, path: str, authorization: str, peer: str) -> None:
        """Raises :class:`AccessDenied` for who may not be told what is at ``path``. The token travels in the clear, so
        one that opens anything else is not taken."""
        if not self._asks or path.partition("?")[0] == "/healthz":
            return
        who = self._node.guard.identify(_token(authorization), Scope.METRICS, "metrics", peer=peer)
        if who.scopes != {Scope.METRICS}:
            raise AccessDenied(
                f"the token {who.name!r} opens more than metrics, and this is not encrypted",
                hint="`genie tokens add FILE NAME --scope metrics`; revoke the one that was sent",
            )

    @property
    def policy(self) -> str:
        return self._policy


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 2 * _AT_ONCE

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int], owner: StatusPage) -> None:
        self.address_family = family
        self.owner = owner
        self._room = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's, which looks the host's name up, and may wait for that.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("status page: a client was left", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "genie"
    sys_version = ""

    def setup(self) -> None:
        """The request is read whole before it is looked at, so that one deadline holds for all of it."""
        self.connection = self.request
        self.rfile = BytesIO(_head(self.connection))
        self._written = self.wfile = BytesIO()

    def finish(self) -> None:
        self.connection.settimeout(_SECONDS)
        with contextlib.suppress(OSError):  # gone, or slower than that
            self.connection.sendall(self._written.getvalue())

    def do_GET(self) -> None:  # noqa: N802
        self._answer(body=True)

    def do_HEAD(self) -> None:  # noqa: N802
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        owner = self.server.owner
        try:
            owner.check(self.path, self.headers.get("Authorization", ""), str(self.client_address[0]))
            status, kind, content = owner.answer(self.path)
        except AccessDenied as error:
            status, kind, content = HTTPStatus.UNAUTHORIZED, "text/plain; charset=utf-8", f"{error}\n".encode()
        self.send_response(status)
        if status is HTTPStatus.UNAUTHORIZED:  # of a browser, which asks for name and password: the token is the latter
            self.send_header("WWW-Authenticate", 'Basic realm="genie", charset="UTF-8"')
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", owner.policy)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("status page", request=format % args)


def _head(connection: socket.socket) -> bytes:
    """A request's lines; "" when they do not come whole in time, or are too long."""
    deadline = time.monotonic() + _SECONDS
    data = b""
    while b"\r\n\r\n" not in data and b"\n\n" not in data:
        left = deadline - time.monotonic()
        if left <= 0 or len(data) >= _LARGEST:
            return b""
        connection.settimeout(left)
        try:
            more = connection.recv(_LARGEST)
        except OSError:
            return b""
        if not more:
            return b""
        data += more
    return data


def page() -> tuple[bytes, str]:
    """The status page, one file that needs nothing but the node, and the policy that lets it do no more."""
    text = _static("status.html")
    style, script = _static("status.css"), _static("status.js")
    parts = {"style": style, "script": script}
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part)
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy


def _token(authorization: str) -> str:
    """Of a header's ``Bearer TOKEN``, or ``Basic`` with the token as password; "" if there is none."""
    scheme, _, rest = authorization.strip().partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            return base64.b64decode(rest.strip(), validate=True).decode("utf-8").partition(":")[2]
    return ""


def _loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def _static(name: str) -> str:
    return (files("genie.remote.seen") / "static" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
