"""What a node is and does at one moment, as values: for its metrics, its status page and ``genie top``."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time

import msgspec

import genie
from genie.remote.node.meters import BOUNDS, Look, Tally, cumulated
from genie.remote.node.server import NodeServer
from genie.remote.node.tidying import heap_bytes
from genie.remote.seen.accounts import ReceptionView, see
from genie.remote.seen.holdings import NodeMemory, holdings
from genie.telemetry import counters
from genie.wire import Kind


class Latency(msgspec.Struct, frozen=True):
    """``buckets[k]`` is how many took at most ``bounds[k]`` seconds of the node's view; ``seconds`` is their sum."""

    buckets: tuple[int, ...]
    count: int
    seconds: float


class DeviceView(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes. ``used`` is what sessions' values take, ``kept`` what the backend keeps free for them, ``largest`` the
    most one session ever had."""

    id: str
    kind: str
    memory_bytes: int
    used_bytes: int = 0
    kept_bytes: int = 0
    largest_bytes: int = 0
    sessions: int = 0
    busy: int = 0
    away: int = 0


class SessionView(msgspec.Struct, frozen=True, kw_only=True):
    """``since`` is Unix time."""

    id: str
    client: str
    tenant: str
    device: str
    since: float
    busy: bool = False
    away: bool = False  # its connection broke, and the client may come back
    requests: int = 0
    executions: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    memory_bytes: int = 0
    peak_memory_bytes: int = 0
    plans: int = 0
    values: int = 0


class TenantView(msgspec.Struct, frozen=True, kw_only=True):
    """All a tenant's sessions together, those that ended too, except what is of now: sessions and memory."""

    tenant: str
    sessions: int = 0
    opened: int = 0
    requests: int = 0
    failures: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    memory_bytes: int = 0


class Process(msgspec.Struct, frozen=True, kw_only=True):
    cpu_seconds: float = 0.0
    resident_bytes: int = 0
    heap_bytes: int = 0  # in use, of the C library's heaps; 0 where it does not tell
    open_files: int = 0
    threads: int = 0
    idle_threads: int = 0  # of these, which wait for the next session


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """Counts are since ``started``; both times are Unix times by the node's clock."""

    address: str
    genie: str
    time: float
    started: float
    draining: bool = False
    max_sessions: int = 0
    greeting: int = 0  # connections that have not said who they are
    devices: tuple[DeviceView, ...] = ()
    sessions: tuple[SessionView, ...] = ()
    tenants: tuple[TenantView, ...] = ()
    requests: dict[str, int] = {}  # by kind of record
    refused: dict[str, int] = {}  # by reason
    resumed: int = 0  # how often clients came back to their sessions
    damaged: int = 0  # how often bytes arrived that a checksum did not fit, in the whole process
    bounds: tuple[float, ...] = BOUNDS
    latencies: dict[str, Latency] = {}  # by stage
    bytes_in: int = 0
    bytes_out: int = 0
    failures: int = 0
    plan_hits: int = 0
    plan_misses: int = 0
    loops: int = 0
    iterations: int = 0
    steps: int = 0
    failed_steps: int = 0
    batched_executions: int = 0  # executions by several sessions at once
    batched_members: int = 0  # … and how many sessions took part
    content: dict[str, int] = {}
    memory: NodeMemory = NodeMemory()
    reception: ReceptionView = ReceptionView()
    process: Process = Process()


def observe(node: NodeServer) -> NodeView:
    """Sessions at work are waited for shortly; of those that do not come to it, memory is what it was before."""
    look = node.meters.look()
    total = Tally()
    for tally in look.tenants.values():
        _join(total, tally)
    requests = {Kind(kind).name: count for kind, count in sorted(total.requests.items())}
    return NodeView(
        address=node.address,
        genie=genie.__version__,
        time=time.time(),
        started=node.meters.started,
        draining=node.draining,
        max_sessions=node.max_sessions,
        greeting=node.greeting,
        devices=_devices(node, look),
        sessions=_sessions(node, look),
        tenants=tuple(_tenant(name, tally, look) for name, tally in sorted(look.tenants.items())),
        requests=requests,
        refused=dict(look.refused),
        resumed=look.resumed,
        damaged=int(counters.snapshot().get("damaged", 0)),
        latencies={stage: Latency(*cumulated(row)) for stage, row in total.rows.items()},
        bytes_in=total.bytes_in,
        bytes_out=total.bytes_out,
        failures=total.failures,
        plan_hits=total.plan_hits,
        plan_misses=requests.get("LOAD_PLAN", 0),
        loops=requests.get("LOOP", 0),
        iterations=total.iterations,
        steps=total.grown["steps"],
        failed_steps=total.grown["failed_steps"],
        batched_executions=total.grown["batched_executions"],
        batched_members=total.grown["batched_members"],
        content=dict(node.content().stats()),
        memory=holdings(node, look=look),
        reception=see(node.reception),
        process=_process(node),
    )


def _join(total: Tally, tally: Tally) -> None:
    total.requests.update(tally.requests)
    total.grown.update(tally.grown)
    for stage, row in tally.rows.items():
        total.rows[stage] = [mine + its for mine, its in zip(total.rows[stage], row, strict=True)]
    total.bytes_in += tally.bytes_in
    total.bytes_out += tally.bytes_out
    total.failures += tally.failures
    total.plan_hits += tally.plan_hits
    total.iterations += tally.iterations


def _devices(node: NodeServer, look: Look) -> tuple[DeviceView, ...]:
    infos = node.sessions()
    where = {info.id: info.device for info in infos}
    views = []
    for device in node.devices:
        its = [meter for name, meter in look.open.items() if where.get(name) == device.id]
        views.append(
            DeviceView(
                id=device.id,
                kind=device.kind,
                memory_bytes=device.memory_bytes,
                used_bytes=sum(meter.said.get("memory_bytes", 0) for meter in its),
                # One pool of the process, of which each session says the same.
                kept_bytes=max((meter.said.get("kept_bytes", 0) for meter in its), default=0),
                largest_bytes=look.largest.get(device.id, 0),
                sessions=len(its),
                busy=sum(meter.at_work() for meter in its),
                away=sum(info.away for info in infos if info.device == device.id),
            )
        )
    return tuple(views)


def _sessions(node: NodeServer, look: Look) -> tuple[SessionView, ...]:
    views = []
    for info in node.sessions():
        meter = look.open.get(info.id)
        if meter is not None:
            views.append(
                SessionView(
                    id=info.id,
                    client=info.client,
                    tenant=meter.tenant,
                    device=info.device,
                    since=info.since,
                    busy=meter.at_work(),
                    away=info.away,
                    requests=sum(meter.counts),
                    executions=meter.counts[Kind.EXECUTE] + meter.iterations,
                    bytes_in=meter.bytes_in,
                    bytes_out=meter.bytes_out,
                    memory_bytes=meter.said.get("memory_bytes", 0),
                    peak_memory_bytes=meter.said.get("peak_memory_bytes", 0),
                    plans=meter.said.get("plans", 0),
                    values=meter.said.get("values", 0),
                )
            )
    return tuple(views)


def _tenant(name: str, tally: Tally, look: Look) -> TenantView:
    its = [meter for meter in look.open.values() if meter.tenant == name]
    return TenantView(
        tenant=name,
        sessions=len(its),
        opened=tally.sessions,
        requests=tally.requests.total(),
        failures=tally.failures,
        bytes_in=tally.bytes_in,
        bytes_out=tally.bytes_out,
        memory_bytes=sum(meter.said.get("memory_bytes", 0) for meter in its),
    )


def _process(node: NodeServer) -> Process:
    used = resource.getrusage(resource.RUSAGE_SELF)
    resident = files = 0
    with contextlib.suppress(OSError, ValueError, IndexError):  # systems without /proc
        with open("/proc/self/statm", encoding="ascii") as statm:
            resident = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        files = len(os.listdir("/proc/self/fd"))
    return Process(
        cpu_seconds=used.ru_utime + used.ru_stime,
        resident_bytes=resident,
        heap_bytes=heap_bytes(),
        open_files=files,
        threads=threading.active_count(),
        idle_threads=node.idle_threads,
    )
