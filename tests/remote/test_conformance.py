"""The twins the suites ship with, and the remote path between them, against the suites."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from genie import tracing
from genie.remote import NodeServer, RemoteBackend
from genie.testing import BackendSuite, MemoryTransport, NullBackend, TransportSuite


class TestMemoryTransport(TransportSuite):
    @pytest.fixture
    def transport(self) -> MemoryTransport:
        return MemoryTransport(stall_timeout=10.0)

    @pytest.fixture
    def address(self) -> str:
        return "node:0"


class TestNullBackend(BackendSuite):
    @pytest.fixture
    def backend(self) -> Iterator[NullBackend]:
        backend = NullBackend()
        yield backend
        backend.close()


class TestRemoteBackendInMemory(BackendSuite):
    @pytest.fixture
    def backend(self) -> Iterator[RemoteBackend]:
        transport = MemoryTransport(stall_timeout=10.0)
        with NodeServer(NullBackend(), transport, "node:0") as node:
            backend = RemoteBackend("memory", transport, (node.address,), timeout=10.0)
            yield backend
            backend.close()


class TestTracedBackendInMemory(TestRemoteBackendInMemory):
    """The same with every call in a trace."""

    @pytest.fixture(autouse=True)
    def traced(self, span_exporter: InMemorySpanExporter) -> Iterator[None]:
        tracing.configure(1.0)
        with trace.get_tracer("program").start_as_current_span("test"):
            assert tracing.recording()
            yield
        tracing.configure(0.0)
        span_exporter.clear()
