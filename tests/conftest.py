"""Fixtures for all tests: a clean process-wide state, and distributions that are really on the path."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from genie import telemetry

Distribution = Callable[..., Path]


@pytest.fixture(autouse=True, scope="session")
def logs() -> None:
    """As in a program that has started: else the first test that looks at logs would be taken for a program with a
    set-up of its own."""
    telemetry.configure()
    telemetry.get_logger("tests").debug("configured")


@pytest.fixture(autouse=True, scope="session")
def interrupts() -> None:
    """Ctrl-C reaches the programs that tests start, also where it is ignored here, as in a shell's background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No setting of the developer's shell reaches a test."""
    for variable in [name for name in os.environ if name.startswith("GENIE_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.getbasetemp() / "data"))  # no profile of theirs, either


@pytest.fixture
def fresh_runtime() -> Iterator[None]:
    """No runtime before the test, and none after it."""
    from genie import runtime

    runtime.shutdown()
    yield
    runtime.shutdown()


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distribution:
    """Make a distribution importable, as an installer would lay it out.

    ``distribution("acme", {"acme": "<source>"}, {"acme": "acme"})``: name, module → source, entry point → value.
    """

    def make(name: str, modules: Mapping[str, str], entry_points: Mapping[str, str], version: str = "1.0") -> Path:
        site = tmp_path / f"site-{name}"
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [f"{point} = {value}" for point, value in entry_points.items()]
        (info / "entry_points.txt").write_text("[genie]\n" + "\n".join(lines) + "\n")
        for module, source in modules.items():
            (site / f"{module}.py").write_text(textwrap.dedent(source))
            monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(str(site))
        importlib.invalidate_caches()
        return site

    return make


@pytest.fixture(scope="session")
def span_exporter() -> InMemorySpanExporter:
    """Where this process's spans go. A process has one set-up of OpenTelemetry, for good."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture(scope="session")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory into which pip has really installed the plugin of ``tests/third_party_plugin``."""
    target = tmp_path_factory.mktemp("third-party")
    source = Path(__file__).parent / "third_party_plugin"
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)]
    subprocess.run(command, check=True, timeout=120, stdin=subprocess.DEVNULL)
    return target
