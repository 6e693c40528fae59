"""A node's numbers for Prometheus. Each node has a registry of its own; nothing is counted in the library's globals.

docs/operations.md lists the metrics with their units; a test compares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from genie.remote.node.server import NodeServer
from genie.remote.seen.observed import NodeView, observe
from genie.tenancy.quotas import Priority

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What ``/metrics`` says of a node."""

    def __init__(self, node: NodeServer) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_OfNode(node))
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class _OfNode(Collector):
    def __init__(self, node: NodeServer) -> None:
        self._node = node

    def collect(self) -> Iterable[Metric]:
        view = observe(self._node)
        yield from _standing(view)
        yield from _growing(view)
        yield from _of_memory(view)
        yield from _per_tenant(view)
        yield from _quotas(view)
        yield _latencies(view)


def _standing(view: NodeView) -> Iterable[Metric]:
    yield _gauge("genie_node_info", "1, with what the node is.", {(view.genie,): 1}, ("version",))
    yield _gauge("genie_node_start_time_seconds", "When the node started, in Unix time.", {(): view.started})
    yield _gauge("genie_node_draining", "1 while the node takes no new sessions.", {(): view.draining})
    devices = {(device.id,): device for device in view.devices}
    of = ("device",)
    yield _gauge("genie_sessions", "Sessions there are.", {at: its.sessions for at, its in devices.items()}, of)
    yield _gauge(
        "genie_sessions_busy", "Sessions with a message being worked on.", {k: d.busy for k, d in devices.items()}, of
    )
    yield _gauge(
        "genie_sessions_away",
        "Sessions whose connection broke, and whose client may come back.",
        {at: its.away for at, its in devices.items()},
        of,
    )
    yield _gauge("genie_sessions_limit", "Sessions the node takes at most.", {(): view.max_sessions})
    yield _gauge("genie_connections_greeting", "Connections that have not said who they are.", {(): view.greeting})
    yield _gauge(
        "genie_device_memory_bytes", "A device's memory.", {at: its.memory_bytes for at, its in devices.items()}, of
    )
    yield _gauge(
        "genie_memory_used_bytes",
        "Memory of sessions: of their values, or kept free for their next ones.",
        {
            (at, kind): number
            for (at,), its in devices.items()
            for kind, number in (("values", its.used_bytes), ("kept", its.kept_bytes))
        },
        ("device", "kind"),
    )
    yield _gauge(
        "genie_session_memory_peak_bytes",
        "The most memory one session ever had.",
        {at: its.largest_bytes for at, its in devices.items()},
        of,
    )
    yield _gauge("genie_content_bytes", "Uploaded contents kept.", {(): view.content.get("content_bytes", 0)})
    yield _gauge("genie_content_entries", "Uploaded contents kept.", {(): view.content.get("content_entries", 0)})


def _of_memory(view: NodeView) -> Iterable[Metric]:
    held: Counter[tuple[str, ...]] = Counter()
    for session in view.memory.sessions:
        for kind, number in {**session.kinds, "off_device": session.off_device}.items():
            held[session.device, kind] += number
    for device in view.memory.devices:
        told = {"live": device.live, "peak": device.peak, "contents": device.contents, "reserved": device.reserved}
        held.update({(device.id, kind): number for kind, number in told.items()})
    yield _gauge("genie_memory_bytes", "A device's memory by what it is used for.", held, ("device", "kind"))
    swaps = [device for device in view.memory.devices if device.swap_limit][:1]  # one for all of them
    for name, text, values in (
        ("genie_swap_used_bytes", "Values that left their device, on the host.", [each.swap_used for each in swaps]),
        ("genie_swap_limit_bytes", "The most of them there may be.", [each.swap_limit for each in swaps]),
    ):
        yield _gauge(name, text, {(): sum(values)})
    moved = {(device.id, move): its for device in view.memory.devices for move, its in device.moves.items()}
    of = ("device", "move")
    yield _counter("genie_memory_moves", "Values that left or came back.", {k: m.count for k, m in moved.items()}, of)
    yield _counter("genie_memory_moved_bytes", "Their bytes.", {k: m.bytes for k, m in moved.items()}, of)
    yield _counter("genie_memory_moved_seconds", "What that took.", {k: m.seconds for k, m in moved.items()}, of)


def _growing(view: NodeView) -> Iterable[Metric]:
    yield _counter("genie_requests", "Records dealt with.", {(k,): n for k, n in view.requests.items()}, ("kind",))
    yield _counter("genie_refused", "Clients refused.", {(k,): n for k, n in view.refused.items()}, ("reason",))
    plain = (
        ("genie_sessions_resumed", "Clients that came back to their session.", view.resumed),
        ("genie_damaged", "Times that bytes arrived which their checksum did not fit.", view.damaged),
        ("genie_received_bytes", "Bytes of messages from clients.", view.bytes_in),
        ("genie_sent_bytes", "Bytes of messages to clients.", view.bytes_out),
        ("genie_failures", "Requests answered by an error.", view.failures),
        ("genie_plan_cache_hits", "Executions of plans used before.", view.plan_hits),
        ("genie_plan_cache_misses", "Plans received and prepared.", view.plan_misses),
        ("genie_loop_portions", "Portions of iterations that loops were asked for.", view.loops),
        ("genie_loop_iterations", "Iterations loops ran.", view.iterations),
        ("genie_steps", "Operators executed.", view.steps),
        ("genie_failed_steps", "Operators that failed.", view.failed_steps),
        ("genie_batched_executions", "Executions that ran in lockstep with other sessions'.", view.batched_executions),
        ("genie_batched_members", "Sessions in those, added up.", view.batched_members),
        ("genie_content_hits", "Uploads whose content was here already.", view.content.get("content_hits", 0)),
    )
    for name, text, number in plain:
        yield _counter(name, text, {(): number})


def _per_tenant(view: NodeView) -> Iterable[Metric]:
    its = {(tenant.tenant,): tenant for tenant in view.tenants}
    of = ("tenant",)
    yield _gauge("genie_tenant_sessions", "Sessions there are.", {at: t.sessions for at, t in its.items()}, of)
    yield _gauge(
        "genie_tenant_memory_bytes", "Memory of their values.", {at: t.memory_bytes for at, t in its.items()}, of
    )
    yield _counter("genie_tenant_sessions_opened", "Sessions ever.", {at: t.opened for at, t in its.items()}, of)
    yield _counter("genie_tenant_requests", "Records dealt with.", {at: t.requests for at, t in its.items()}, of)
    yield _counter(
        "genie_tenant_failures", "Requests answered by an error.", {at: t.failures for at, t in its.items()}, of
    )
    yield _counter(
        "genie_tenant_received_bytes", "Bytes of messages from it.", {at: t.bytes_in for at, t in its.items()}, of
    )
    yield _counter(
        "genie_tenant_sent_bytes", "Bytes of messages to it.", {at: t.bytes_out for at, t in its.items()}, of
    )


def _quotas(view: NodeView) -> Iterable[Metric]:
    seen = view.reception
    waiting = Counter(each.priority for each in seen.queue)
    yield _gauge(
        "genie_admission_waiting",
        "Clients that wait for a place.",
        {(priority.value,): waiting[priority.value] for priority in Priority},
        ("priority",),
    )
    yield _counter("genie_admission_waits", "Clients that had to wait for a place.", {(): seen.waits})
    yield _counter("genie_admission_wait_seconds", "What they waited, together.", {(): seen.waited_seconds})
    yield _counter("genie_admission_gave_up", "Clients that waited, and got none.", {(): seen.gave_up})
    its = {(account.tenant,): account for account in seen.accounts}
    of = ("tenant",)
    yield _gauge("genie_tenant_weight", "Its weight.", {at: t.weight for at, t in its.items()}, of)
    yield _gauge(
        "genie_tenant_charged_bytes",
        "Device memory it is charged for; what its sessions share counts once.",
        {at: t.memory_bytes for at, t in its.items()},
        of,
    )
    yield _gauge(
        "genie_tenant_quota_bytes",
        "Device memory it may have; 0 is no limit.",
        {at: t.memory_quota for at, t in its.items()},
        of,
    )
    yield _gauge(
        "genie_tenant_swap_bytes",
        "Of its values that left their device.",
        {at: t.swap_bytes for at, t in its.items()},
        of,
    )
    yield _counter(
        "genie_tenant_device_seconds", "Time of devices it had.", {at: t.device_seconds for at, t in its.items()}, of
    )
    yield _counter(
        "genie_tenant_delayed_seconds",
        "For how long quotas held its messages back.",
        {at: t.delayed_seconds for at, t in its.items()},
        of,
    )


def _latencies(view: NodeView) -> Metric:
    family = HistogramMetricFamily("genie_stage_seconds", "What stages of requests took.", labels=("stage",))
    for stage, latency in view.latencies.items():
        buckets = [(repr(bound), float(count)) for bound, count in zip(view.bounds, latency.buckets, strict=True)]
        family.add_metric((stage,), [*buckets, ("+Inf", float(latency.count))], latency.seconds)
    return family


_Values = Mapping[tuple[str, ...], float]


def _gauge(name: str, text: str, values: _Values, labels: tuple[str, ...] = ()) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for at, number in values.items():
        family.add_metric(at, float(number))
    return family


def _counter(name: str, text: str, values: _Values, labels: tuple[str, ...] = ()) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for at, number in values.items():
        family.add_metric(at, float(number))
    return family
