"""The examples of docs/plugins.md run as they stand."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from core.dags import Table, device, graph_of

import genie
from genie import Device, TensorSpec, runtime
from genie.graph import Graph, Input, Node, Ref
from genie.plugins import registry
from genie.testing import BackendSuite, NullBackend

DOC = Path(__file__).resolve().parents[2] / "docs" / "plugins.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.S)
ROW = TensorSpec((2,), "float32")
GRAPH = Graph(
    (ROW,) * 3,
    (Input(0),),
    (Node(0, "aten::neg", "", (Ref(0),), (1,)), Node(1, "aten::add", "Tensor", (Ref(1), Ref(0)), (2,))),
    (2,),
)


def snippet(marker: str) -> str:
    (found,) = [text for text in SNIPPETS if marker in text]
    return found


@pytest.fixture
def local(fresh_runtime: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    genie.register_backend("local", lambda settings: NullBackend())
    yield
    genie.shutdown()
    for kind, name in (("backend", "local"), ("pattern", "residual"), ("cost_model", "flat"), ("policy", "frugal")):
        registry.unregister(kind, name)  # type: ignore[arg-type]


@pytest.mark.usefixtures("local")
def test_the_pattern() -> None:
    exec(snippet("class Residual"), {})
    assert genie.annotate(GRAPH).get_node(1).metadata["semantic_role"] == "residual"


@pytest.mark.usefixtures("local")
def test_the_cost_model() -> None:
    exec(snippet("class Flat"), {})
    gpu = Device(id="a", type="GPU", memory_gb=1, compute_tflops=1)
    plan = runtime.current().scheduler((gpu,)).schedule(genie.annotate(GRAPH))
    assert plan.latency_ms == pytest.approx(2e-3)
    assert plan.explain(0).source == "flat"


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize(("halves", "used"), [((1.0, 0.1), 1), ((1.0, 1.0), 2)])
def test_the_policy(halves: tuple[float, float], used: int) -> None:
    exec(snippet("class Frugal"), {})
    graph = graph_of([[0], [0]], [64, 64, 64], 1, [1, 2])
    devices = (device("a"), device("b"))
    model = Table({(node, each.id): halves[node] for node in (0, 1) for each in devices})
    quick = genie.Scheduler(devices)
    frugal = genie.Scheduler(devices, registry.make("policy", "frugal", runtime.current().settings))
    for scheduler, count in ((quick, 2), (frugal, used)):
        scheduler.set_cost_model(model)
        assert len(set(scheduler.schedule(graph).placement.values())) == count
    plan = runtime.current().scheduler(devices).schedule(graph)
    assert plan.policy == "frugal"


@pytest.mark.usefixtures("local")
def test_the_backend(distribution: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source = snippet("class CountingBackend")
    assert len([line for line in source.splitlines() if line.strip()]) <= 30
    distribution("counting", {"counting_plugin": source}, {"counting": "counting_plugin"})
    monkeypatch.setattr(registry, "_offers", None)
    genie.set_backend("counting")
    plan = genie.Scheduler(genie.devices()).schedule(GRAPH)
    for _ in range(2):
        (out,) = genie.execute(plan, [array("f", [1, 2])])
        assert list(out.data.cast("f")) == [0, 0]
    assert genie.get_stats()["counted"] == 2
    genie.shutdown()
    monkeypatch.undo()


class TestTheBackendConforms(BackendSuite):
    @pytest.fixture
    def backend(self) -> Iterator[object]:
        namespace: dict[str, object] = {}
        exec(snippet("class CountingBackend"), namespace)
        backend = namespace["CountingBackend"](NullBackend())  # type: ignore[operator]
        yield backend
        backend.close()
