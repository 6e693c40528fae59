"""A node's spans below those of its client: what a session does while its client records."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any, Final

import structlog

from genie import tracing
from genie.interfaces import Buffer
from genie.wire import Kind, traces

_MOST_SPANS: Final = 1 << 10  # of one span of the client's: a loop may have any number of iterations

_NAMES: Final[dict[int, str]] = {
    Kind.LOAD_PLAN: "genie.node.plan",
    Kind.EXECUTE: "genie.node.execute",
    Kind.LOOPED: "genie.node.iteration",
    Kind.UPLOAD: "genie.node.upload",
    Kind.UPLOAD_COMMIT: "genie.node.upload",
    Kind.SEND: "genie.node.send",
    Kind.RECEIVE: "genie.node.receive",
    Kind.FETCH: "genie.node.fetch",
    Kind.DESCRIBE: "genie.node.fetch",
    Kind.SYNC: "genie.node.synchronize",
}


class NodeTrace:
    """The node's spans below one span of a client's: a :class:`genie.remote.node.meters.Trace`."""

    def __init__(self, tracer: Any, parent: traces.Parent, facts: dict[str, str]) -> None:
        self._api = api = import_module("opentelemetry.trace")
        self._tracer = tracer
        self._facts = facts
        context = api.SpanContext(parent.trace, parent.span, is_remote=True, trace_flags=api.TraceFlags(1))
        self._context = api.set_span_in_context(api.NonRecordingSpan(context))
        self._offset = time.time_ns() - time.perf_counter_ns()
        self._left = _MOST_SPANS

    def add(self, kind: int, began: int, ended: int, *, plan: int, failed: bool) -> None:
        name = _NAMES.get(kind)
        if name is None or self._left <= 0:
            return
        self._left -= 1
        facts: dict[str, str | int] = {**self._facts} if plan < 0 else {**self._facts, "genie.plan": plan}
        span = self._tracer.start_span(
            name,
            context=self._context,
            kind=self._api.SpanKind.SERVER,
            attributes=facts,
            start_time=began + self._offset,
        )
        if failed:
            span.set_status(self._api.StatusCode.ERROR)
        span.end(ended + self._offset)


def join(data: Buffer, session: str, device: str) -> NodeTrace | None:
    """What a TRACE record asks for; ``None`` where this node makes no spans. Logs say the trace, too."""
    parent = traces.get(data)
    tracer = tracing.tracer()
    if parent is None or not parent.sampled or tracer is None:
        structlog.contextvars.unbind_contextvars("trace")
        return None
    structlog.contextvars.bind_contextvars(trace=f"{parent.trace:032x}")
    return NodeTrace(tracer, parent, {"genie.session": session, "genie.device": device})
