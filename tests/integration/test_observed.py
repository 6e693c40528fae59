"""A real program on a real node, as an operator sees it: its trace from the call to the kernel's stage, its log, and a
node's metrics beside it."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

import pytest
import torch
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import genie
from genie import config
from genie.plugins import registry
from genie.remote import NodeServer
from genie.remote.seen.observed import observe

from . import tiny_lm
from .conftest import MakeNode, command


@pytest.fixture
def traced(span_exporter: InMemorySpanExporter, fresh_runtime: None) -> Iterator[NodeServer]:
    """A node in this process, over TCP, and this process connected to it with every call traced."""
    import genie_pytorch  # noqa: F401  (makes the device)

    settings = config.resolve().settings
    backend = registry.make("backend", "local", settings)
    with NodeServer(backend, registry.make("transport", "tcp", settings), "127.0.0.1:0", devices=("cpu",)) as node:
        genie.init(nodes=[node.address], trace_ratio=1.0, timeout=20.0)
        span_exporter.clear()
        yield node
        genie.shutdown()
    backend.close()
    genie.tracing.configure(0.0)


def chain(span: ReadableSpan, by_id: dict[int, ReadableSpan]) -> list[str]:
    """Its name, and those of what it is below."""
    names = [span.name]
    while span.parent is not None and span.parent.span_id in by_id:
        span = by_id[span.parent.span_id]
        names.append(span.name)
    return names


def test_a_call_is_one_trace_to_the_node(traced: NodeServer, span_exporter: InMemorySpanExporter) -> None:
    model, x = torch.nn.Linear(8, 3), torch.randn(2, 8)
    with torch.no_grad():
        y = genie.run(model, x)
    assert torch.equal(y, model(x).detach())
    assert traced.wait_for_sessions(1, 1.0)
    genie.shutdown()  # the node is done with all of it
    assert traced.wait_for_sessions(0, 10.0)
    spans = span_exporter.get_finished_spans()
    by_id = {span.context.span_id: span for span in spans}
    (run,) = [span for span in spans if span.name == "genie.run"]
    its = [span for span in spans if span.context.trace_id == run.context.trace_id]
    chains = {span.name: chain(span, by_id) for span in its}
    for name in ("capture", "annotate", "schedule", "load", "execute", "look", "wire.send", "wire.wait"):
        assert chains[f"genie.{name}"][-1] == "genie.run", name
    for name in ("plan", "execute", "fetch"):
        assert chains[f"genie.node.{name}"][-1] == "genie.run", name
    assert chains["genie.node.execute"][1] == "genie.execute"
    assert chains["genie.node.fetch"][1] == "genie.look"
    assert chains["genie.node.plan"][1] == "genie.load"


def test_an_unmodified_program_is_in_its_own_trace(traced: NodeServer, span_exporter: InMemorySpanExporter) -> None:
    native = tiny_lm.generate(tiny_lm.model(), count=6)
    remote = tiny_lm.model().to("remote_accelerator:0")
    with trace.get_tracer("program").start_as_current_span("generation"):
        assert tiny_lm.generate(remote, count=6) == native
    spans = span_exporter.get_finished_spans()
    (mine,) = [span for span in spans if span.name == "generation"]
    looks = [s for s in spans if s.name == "genie.look" and s.context.trace_id == mine.context.trace_id]
    assert len(looks) == 6
    fetched = {s.parent.span_id for s in spans if s.name == "genie.node.fetch" and s.parent is not None}
    assert {look.context.span_id for look in looks[:-1]} <= fetched  # the node may still be saying the last
    assert observe(traced).requests["TRACE"] >= 6


def test_logs_say_session_and_plan(make_node: MakeNode, fresh_runtime: None) -> None:
    import genie_pytorch  # noqa: F401

    node = make_node(GENIE_LOG_LEVEL="DEBUG", GENIE_LOG_JSON="1")
    genie.init(nodes=[node.address], timeout=20.0)
    x = torch.ones(4, device="remote_accelerator:0")
    with pytest.raises(IndexError):
        print(x[torch.tensor([7]).to(x.device)].sum())
    session = genie.runtime.current().sessions()[0]
    assert session.stats()["executions"] >= 1
    genie.shutdown()
    node.wait_for_sessions(0)
    node.process.signal(2)
    node.process.wait()
    events = [json.loads(line) for line in node.log.read_text().splitlines() if line.startswith("{")]
    loaded = [event for event in events if event["event"] == "plan loaded"]
    assert loaded
    (name,) = {event["session"] for event in loaded}
    assert [event["plan"] for event in loaded] == list(range(len(loaded)))
    failed = [event for event in events if event["event"] == "request failed"]
    assert failed
    assert {event["session"] for event in failed} == {name}
    assert failed[0]["plan"] >= 0
    assert failed[0]["record"] in ("FETCH", "DESCRIBE")


def test_a_served_node_has_metrics(make_node: MakeNode) -> None:
    node = make_node("--metrics-port", "0", GENIE_LOG_LEVEL="INFO")
    done = command("node", "status", node.address, "--json")
    assert done.returncode == 0, done.stderr
    address = node.facts["metrics_address"]
    assert address.startswith("127.0.0.1:")
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        assert b"genie_sessions" in answer.read()
    # The port is taken now: one line, and nothing was served.
    again = command("serve", "--port", "0", "--device", "cpu", "--metrics-port", address.rpartition(":")[2])
    assert again.returncode == 1
    assert again.stdout == ""
    assert "cannot serve metrics" in again.stderr
    assert "Traceback" not in again.stderr
