"""Sessions whose work is told as spans.

A client is one of these when it traces; otherwise none of this is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

from genie import tracing
from genie.device import Device
from genie.graph import TensorSpec
from genie.host import HostValue
from genie.interfaces import Buffer, Connection
from genie.loops import Loop
from genie.plan import ExecutionPlan
from genie.remote.client.conversation import Conversation
from genie.remote.client.session import RemoteSession
from genie.wire import Dialogue, Kind, Limits, traces


class TracedConversation(Conversation):
    """Says what went over the wire, and how long the answer was waited for, while what it is for is recorded."""

    recorded = False

    def _send(self, seq: int, header: bytes, data: memoryview | None = None) -> None:
        if not self.recorded:
            super()._send(seq, header, data)
            return
        size = len(header) + (len(data) if data is not None else 0)
        with tracing.span("genie.wire.send", message=seq, bytes=size, node=self.node):
            super()._send(seq, header, data)

    def _await(self, seq: int, kind: Kind) -> tuple[int, memoryview, memoryview | None]:
        if not self.recorded:
            return super()._await(seq, kind)
        with tracing.span("genie.wire.wait", message=seq, record=kind.name, node=self.node):
            return super()._await(seq, kind)


class TracedSession(RemoteSession):
    """Tells the node, before each piece of work, which span it belongs to: while one is recorded. What is not recorded
    costs one question."""

    conversation_type = TracedConversation

    def __init__(
        self,
        connection: Connection,
        dialogue: Dialogue,
        device: Device,
        limits: Limits,
        node: str,
        timeout: float,
        *,
        session: str,
        tells: bool,
    ) -> None:
        super().__init__(connection, dialogue, device, limits, node, timeout)
        self._tells = tells  # the node knows the record
        self._facts = {"genie.session": session, "genie.device": device.id}
        self._told: traces.Parent | None = None

    def load(self, plan: ExecutionPlan) -> int:
        self._tell(tracing.recording())
        return super().load(plan)

    def execute(self, plan: int, bindings: Buffer, *, more: bool = False) -> None:
        with self._span("genie.execute", tracing.recording(), plan):
            super().execute(plan, bindings, more=more)

    def loop(self, plan: int, bindings: Buffer, loop: Loop, times: int) -> Iterator[tuple[Buffer, ...]]:
        with self._span("genie.loop", tracing.recording(), plan):
            return super().loop(plan, bindings, loop, times)

    def upload(self, handle: int, spec: TensorSpec, data: Buffer, *, shared: bool = False) -> None:
        self._tell(tracing.recording())
        super().upload(handle, spec, data, shared=shared)

    def send(self, outlet: int, handle: int) -> None:
        self._tell(tracing.recording())
        super().send(outlet, handle)

    def expect(self, handle: int, size: int) -> None:
        self._tell(tracing.recording())
        super().expect(handle, size)

    def fetch(self, handle: int, out: memoryview | None = None) -> HostValue:
        with self._span("genie.look", tracing.begins()):
            return super().fetch(handle, out)

    def describe(self, handle: int) -> TensorSpec:
        with self._span("genie.describe", tracing.begins()):
            return super().describe(handle)

    def synchronize(self) -> None:
        with self._span("genie.synchronize", tracing.begins()):
            super().synchronize()

    @contextmanager
    def _recorded(self, name: str, plan: int) -> Iterator[None]:
        facts: dict[str, str | int] = {**self._facts}
        if plan >= 0:
            facts["genie.plan"] = plan
        with tracing.begin(name, facts):
            self._tell(recorded=True)
            yield

    def _span(self, name: str, recorded: bool, plan: int = -1) -> AbstractContextManager[None]:
        if recorded:
            return self._recorded(name, plan)
        self._tell(recorded=False)
        return _NOTHING

    def _tell(self, recorded: bool) -> None:
        talk = self._conversation
        assert isinstance(talk, TracedConversation)
        talk.recorded = recorded
        parent = _parent() if recorded and self._tells else None
        if parent != self._told:
            with self._lock:
                talk.queue(Kind.TRACE, traces.put(parent))
                self._told = parent


_NOTHING: Final = nullcontext()


def _parent() -> traces.Parent | None:
    """The current span as nodes are told of it."""
    context = tracing.context()
    if context is None:
        return None
    return traces.Parent(context.trace_id, context.span_id, bool(context.trace_flags & 1))
