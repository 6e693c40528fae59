"""A trace begun by the client goes on in the node, for nodes that know how; and nothing else changes."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from remote.peers import Node, Script, hear
from remote.test_loop import begin

from genie import config, tracing
from genie.errors import ConfigError, ProtocolError
from genie.interfaces import Connection
from genie.remote import RemoteSession
from genie.remote.client.traced import TracedSession
from genie.remote.seen.observed import observe
from genie.testing import single
from genie.testing.plans import spec
from genie.wire import Kind, traces

ADD = single("aten::add.Tensor", [spec(2)] * 2, spec(2))


@pytest.fixture
def spans(span_exporter: InMemorySpanExporter) -> Iterator[InMemorySpanExporter]:
    span_exporter.clear()
    tracing.configure(1.0)
    yield span_exporter
    tracing.configure(0.0)


def named(exporter: InMemorySpanExporter, name: str) -> Sequence[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


def below(span: ReadableSpan, other: ReadableSpan) -> bool:
    return (
        span.parent is not None
        and span.parent.span_id == other.context.span_id
        and span.context.trace_id == other.context.trace_id
    )


def test_a_nodes_spans_are_below_the_clients(node: Node, spans: InMemorySpanExporter) -> None:
    caller = node.client()
    with trace.get_tracer("program").start_as_current_span("step"):
        assert caller.get(caller.run(ADD, [caller.put([1, 2]), caller.put([3, 4])])) == [4, 6]
    caller.session.synchronize()  # the node is done with all of it
    (execute,) = named(spans, "genie.execute")
    (look,) = named(spans, "genie.look")
    (step,) = named(spans, "step")
    assert below(execute, step)
    assert below(look, step)
    (executed,) = named(spans, "genie.node.execute")
    (fetched,) = named(spans, "genie.node.fetch")
    (planned,) = named(spans, "genie.node.plan")
    assert below(executed, execute)
    assert below(fetched, look)
    assert planned.context.trace_id == step.context.trace_id
    assert below(named(spans, "genie.wire.wait")[0], look)
    (session,) = observe(node.server).sessions
    for span in (execute, look, executed, fetched, planned):
        assert span.attributes is not None
        assert span.attributes["genie.session"] == session.id
    assert executed.attributes is not None
    assert executed.attributes["genie.plan"] == 0
    assert fetched.start_time is not None
    assert look.start_time <= fetched.start_time <= look.end_time  # it ends when it is told, which may be later
    assert fetched.start_time <= fetched.end_time


def test_work_outside_the_trace_is_not_in_it(node: Node, spans: InMemorySpanExporter) -> None:
    tracing.configure(1e-12)  # no trace but the program's
    caller = node.client()
    one = caller.put([1, 2])
    with trace.get_tracer("program").start_as_current_span("step"):
        caller.get(caller.run(ADD, [one, one]))
    for _ in range(3):
        caller.get(caller.run(ADD, [one, one]))
    assert len(named(spans, "genie.node.execute")) == len(named(spans, "genie.node.fetch")) == 1


def test_a_look_outside_any_trace_begins_one(node: Node, spans: InMemorySpanExporter) -> None:
    caller = node.client()
    caller.get(caller.put([1, 2]))
    caller.session.synchronize()  # the node is done with it
    (look,) = named(spans, "genie.look")
    assert look.parent is None
    (fetched,) = named(spans, "genie.node.fetch")
    assert below(fetched, look)


def test_what_is_left_out_is_left_out_as_a_whole(node: Node, spans: InMemorySpanExporter) -> None:
    caller = node.client()
    one = caller.put([1, 2])
    tracing.configure(1e-12)
    with tracing.call("outer"):
        tracing.configure(1.0)
        caller.get(one)
    assert spans.get_finished_spans() == ()
    with tracing.call("outer"):
        caller.get(one)
    assert len(named(spans, "genie.look")) == 1


def test_an_error_is_said(node: Node, spans: InMemorySpanExporter) -> None:
    caller = node.client()
    with pytest.raises(Exception, match="handle"):
        caller.get(777)
    caller.session.synchronize()  # the node is done with it
    (fetched,) = named(spans, "genie.node.fetch")
    assert fetched.status.status_code is trace.StatusCode.ERROR
    (look,) = named(spans, "genie.look")
    assert look.status.status_code is trace.StatusCode.ERROR


def test_loops_are_iterations(node: Node, spans: InMemorySpanExporter) -> None:
    caller = node.client()
    with trace.get_tracer("program").start_as_current_span("step"):
        _, iterations = begin(caller, 40)
        assert len(list(iterations)) == 40
        caller.session.synchronize()
    (loop,) = named(spans, "genie.loop")
    told = named(spans, "genie.node.iteration")
    assert len(told) == 40
    assert all(below(span, loop) for span in told)
    assert observe(node.server).iterations == 40


def test_an_old_node_is_told_nothing(spans: InMemorySpanExporter, scripted: Callable[[Script], RemoteSession]) -> None:
    kinds: list[int] = []
    over = threading.Event()

    def script(connection: Connection) -> None:  # of minor 0
        while Kind.BYE not in kinds:
            kinds.extend(kind for kind, _ in hear(connection)[1])
        over.set()

    session = scripted(script)
    assert isinstance(session, TracedSession)
    with trace.get_tracer("program").start_as_current_span("step"):
        session.seed(0, 1)
        session.send(0, 1)
    session.close()
    assert over.wait(5.0)
    assert Kind.TRACE not in kinds
    assert Kind.SEED in kinds


def test_without_the_setting_sessions_are_plain(node: Node) -> None:
    assert type(node.client().session) is RemoteSession


def test_without_the_setting_nothing_is_imported() -> None:
    source = (
        "import sys, genie\nfrom genie import runtime\nruntime.current()\n"
        "from genie.remote.client import traced\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", source], check=True, timeout=60)


def test_without_the_library_the_setting_is_refused() -> None:
    source = (
        "import sys\nsys.modules['opentelemetry'] = None\nsys.modules['opentelemetry.trace'] = None\n"
        "from genie import tracing\nfrom genie.errors import ConfigError\n"
        "try: tracing.configure(0.5)\n"
        "except ConfigError as error: print(error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", source], check=True, timeout=60, capture_output=True, text=True)
    assert "genie-core[tracing]" in done.stdout


def test_a_programs_dice_are_not_ours(spans: InMemorySpanExporter) -> None:
    tracing.configure(1e-12)  # a trace that is begun has ids, which the SDK draws from the program's
    random.seed(1)
    expected = random.random()
    random.seed(1)
    for _ in range(10):
        with tracing.call("call"):
            pass
    assert random.random() == expected


# --- the record ----------------------------------------------------------------------------------


@given(st.integers(1, (1 << 128) - 1), st.integers(1, (1 << 64) - 1), st.booleans())
def test_a_parent_comes_back(trace_id: int, span: int, sampled: bool) -> None:
    parent = traces.Parent(trace_id, span, sampled)
    assert traces.get(traces.put(parent)) == parent


def test_none_is_nothing() -> None:
    assert traces.put(None) == b""
    assert traces.get(b"") is None


@given(st.binary(max_size=traces.LONGEST))
def test_anything_short_is_ignored(data: bytes) -> None:
    parent = traces.get(data)
    assert parent is None or (parent.trace and parent.span)


@pytest.mark.parametrize(
    "text",
    [
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
    ],
)
def test_what_the_standard_forbids_is_ignored(text: str) -> None:
    assert traces.get(text.encode()) is None


def test_a_later_version_is_understood() -> None:
    text = b"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more"
    assert traces.get(text) == traces.Parent(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, True)


def test_a_long_one_ends_the_session(node: Node) -> None:
    with pytest.raises(ProtocolError):
        traces.get(b"0" * (traces.LONGEST + 1))
    caller = node.client()
    caller.session._conversation.queue(Kind.TRACE, b"0" * (traces.LONGEST + 1))
    with pytest.raises(Exception, match="TRACE"):
        caller.session.synchronize()


def test_the_ratio_is_checked() -> None:
    for wrong in ("2", "-1", "nan"):
        with pytest.raises(ConfigError, match="trace_ratio"):
            config.resolve(environ={"GENIE_TRACE_RATIO": wrong})
