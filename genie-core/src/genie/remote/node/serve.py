"""``genie serve``: a node in the foreground until it is told to stop."""

from __future__ import annotations

import json as jsons
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

import structlog

from genie import telemetry, tracing
from genie.config import Settings
from genie.errors import ConfigError
from genie.interfaces import Backend
from genie.plugins import registry
from genie.remote.control import ControlPlane, check_free
from genie.remote.joined import joined
from genie.remote.node.exposure import check_metrics, check_open, check_ports, check_quotas
from genie.remote.node.server import MOST_SESSIONS, NodeServer
from genie.remote.node.tidying import few_heaps, settle
from genie.remote.seen.status_page import StatusPage
from genie.security import AuditLog, Guard, RevokedFile, Tls, TlsFiles, TokenFile
from genie.tenancy.accounts import Tenancy
from genie.tenancy.quotas import TenantsFile

log = structlog.get_logger("genie.node")

GRACE_SECONDS = 30.0  # that SIGTERM gives sessions to end


class _Stop:
    """Asked to stop: how long sessions may take to end. A second request is for now."""

    def __init__(self) -> None:
        self._asked = threading.Condition()
        self.grace: float | None = None

    def ask(self, grace: float) -> None:
        # Reentrant (a Condition's lock is an RLock): a signal may arrive while the main thread holds it.
        with self._asked:
            self.grace = grace if self.grace is None else 0.0
            self._asked.notify_all()

    def wait(self, node: NodeServer) -> None:
        with self._asked:
            while self.grace is None:
                if not self._asked.wait(timeout=30.0):
                    node.housekeep()


def serve(
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 8888,
    devices: Sequence[str] = (),
    backend: str = "local",
    transport: str = "tcp",
    unix: str | None = None,
    metrics_host: str = "127.0.0.1",
    metrics_port: int | None = None,
    json: bool = False,
    out: TextIO | None = None,
    tokens: str = "",
    audit_log: str = "",
    revoked: str = "",
    control_port: int | None = None,
    max_sessions: int = MOST_SESSIONS,
    insecure: bool = False,
) -> None:
    """Serve until SIGTERM (sessions may end first), Ctrl-C, or a drain by the control plane.

    One line is printed when the node is ready; with ``json`` it is an object. The control plane listens at
    ``port`` + 1, or at a free port if that is taken; a ``control_port`` has to be had. With ``metrics_port`` (0: a free
    one) metrics and a status page are served over HTTP at ``metrics_host``. ``tokens`` is a file as ``genie tokens
    add`` writes it, ``revoked`` one by ``genie certs revoke``.

    Raises :class:`ConfigError`, before anything listens, for security settings that cannot be used, and for an address
    that others reach without them; ``insecure`` overrules the latter. The same for a tenants file that cannot be used.
    """
    few_heaps()
    host, metrics_host = host.strip("[]"), metrics_host.strip("[]")  # IPv6 as in an address with a port
    telemetry.configure(settings.log_level, settings.log_json)
    tracing.configure(settings.trace_ratio)
    audit = AuditLog(audit_log or None)
    tls = Tls(TlsFiles.of(settings), audit.told)
    carrier = joined(transport, registry.make, settings)
    check_open(host, tls, bool(tokens), carrier, insecure=insecure, plain_data=settings.plain_data)
    check_ports(host, port, control_port, metrics_host, metrics_port)
    if metrics_port is not None:
        check_metrics(metrics_host, bool(tokens), insecure=insecure)
    if revoked and not tls.asks_for_certificates:
        raise ConfigError("--revoked is given, and clients are not asked for certificates", hint="give --client-ca")
    guard = Guard(
        TokenFile(tokens, audit.told) if tokens else None, audit, RevokedFile(revoked, audit.told) if revoked else None
    )
    tenants = TenantsFile(settings.tenants, audit.told, most_sessions=max_sessions) if settings.tenants else None
    made: Backend = registry.make("backend", backend, settings)
    check_quotas(made, tenants)
    stop = _Stop()
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    node = NodeServer(
        made,
        carrier,
        address,
        devices=devices,
        local=unix or settings.unix_sockets,
        max_sessions=max_sessions,
        guard=guard,
        lease_seconds=settings.lease_seconds,
        tenancy=Tenancy(tenants),
        admission_seconds=settings.admission_seconds,
        plain_data=tls.serves and settings.plain_data,
    )
    page = StatusPage(node, insecure=insecure)
    try:
        if metrics_port is not None:  # first: a port that is taken is said before anybody is served
            page.start(metrics_host, metrics_port)
        if control_port:
            check_free(host, control_port)
        node.start()
        control = ControlPlane(node, stop.ask, tls)
        data_port = int(node.address.rpartition(":")[2])
        wanted = control_port if control_port is not None else data_port + 1 if data_port < 65535 else 0
        node.control_port = control.start(host, wanted)
        try:
            if control_port and node.control_port != control_port:
                raise ConfigError(f"cannot listen at {host}:{control_port}", where="--control-port")
            settle()
            with _signals(stop):
                _ready(node, page.address, json=json, out=out or sys.stdout)
                stop.wait(node)
                control.not_serving()
                grace = stop.grace or 0.0
                while grace > 0.0 and not node.drain(min(grace, 0.5)):
                    grace = min(grace, stop.grace or 0.0) - 0.5
        finally:
            control.close()
    finally:
        page.close()
        node.close()
        made.close()
        audit.close()


def _ready(node: NodeServer, metrics: str, *, json: bool, out: TextIO) -> None:
    facts = {
        "event": "ready",
        "address": node.address,
        "local_address": node.local_address,
        "control_port": node.control_port,
        "transports": list(node.transports),
        "metrics_address": metrics,
        "devices": [device.id for device in node.devices],
    }
    if json:
        line = jsons.dumps(facts)
    else:
        line = f"genie node ready at {node.address}: {', '.join(device.id for device in node.devices)}"
        if node.control_port:
            line += f" (control port {node.control_port})"
        if metrics:
            line += f", status at http://{metrics}/"
    print(line, file=out, flush=True)


@contextmanager
def _signals(stop: _Stop) -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:
        stop.ask(GRACE_SECONDS if number == signal.SIGTERM else 0.0)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may have handlers; the control plane still stops the node
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
