"""What was seen of a graph's inputs before it: where they come from, and what became of them from call to call."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest
import torch
from torch import nn

import genie
from genie.graph import Graph, Input, TensorSpec, verify
from genie.graph.lineage import Lineage
from genie_pytorch import past
from genie_pytorch.native import _C

DEVICE = "remote_accelerator"
Tensor = torch.Tensor


def latest() -> Graph:
    graph = genie.get_graph()
    verify(graph)
    return graph


def earlier() -> int:
    count = 0
    while _C.earlier(0, count) is not None:
        count += 1
    return count


def seen(graph: Graph) -> list[tuple[tuple[int, ...], str, str, int]]:
    """Shape, origin, lineage and axis of every input that is no parameter."""
    return [
        (graph.values[entry.value].shape, entry.origin, entry.lineage, entry.axis)
        for entry in graph.inputs
        if entry.origin not in ("parameter", "buffer")
    ]


# --- the plumbing --------------------------------------------------------------------------------


def test_a_lineage_found_elsewhere_is_said_of_the_inputs() -> None:
    spec = TensorSpec((2,), "float32")
    entries = (Input(0), Input(1, "w", "parameter"), Input(2, origin="state"), Input(3, origin="state"))
    graph = Graph(values=(spec,) * 4, inputs=entries, steps=(), outputs=())
    entered = [(0, 10), (0, 11), (0, 12), (1, 12)]
    elsewhere = {(0, 10): 7, (0, 11): 8, (0, 12): 9}
    found = {9: Lineage("grown", 1, (4, 9)), 8: Lineage("kept", -1, (8,)), 3: Lineage("written", 0, (3,))}
    told = past.with_lineage(graph, entered, elsewhere, found)
    assert [(entry.origin, entry.lineage, entry.axis) for entry in told.inputs] == [
        ("", "", -1),
        ("parameter", "", -1),
        ("state", "grown", 1),
        ("state", "", -1),
    ]
    assert [entry.name for entry in told.inputs] == ["", "w", "", ""]


# --- executions are remembered -------------------------------------------------------------------


def test_what_the_last_look_ended_is_remembered_and_not_shown() -> None:
    x = torch.ones(3, device=DEVICE)
    for _ in range(3):
        before = earlier()
        x.cpu()
        x = x + 1
        assert [node.operation for node in latest().nodes()] == ["aten::add"]
        assert earlier() == min(before + 1, 512)


def test_the_memory_is_bounded() -> None:
    x = torch.ones(3, device=DEVICE)
    for _ in range(530):
        x = x + 1
        x.cpu()
    x + 1
    assert earlier() == 512
    newest, older = _C.earlier(0, 0), _C.earlier(0, 1)
    assert newest[3][1] == older[3][0], "the latest comes first: it takes what the one before it made"


def test_a_shutdown_forgets() -> None:
    x = torch.ones(3, device=DEVICE)
    x.cpu()
    x + 1
    assert earlier() > 0
    genie.shutdown()
    assert earlier() == 0


def test_a_thread_has_its_own_memory() -> None:
    x = torch.ones(3, device=DEVICE)
    x.cpu()
    x + 1
    counts: list[int] = []
    thread = threading.Thread(target=lambda: counts.append(earlier()))
    thread.start()
    thread.join()
    assert counts == [0]
    assert earlier() > 0


def test_a_region_remembers_what_was_before_it() -> None:
    x = torch.ones(3, device=DEVICE) + 1
    before = earlier()
    with genie.capture():
        y = x * 2
        assert len(latest().nodes()) == 1
        y.cpu()
        y - 1
        assert len(latest().nodes()) == 2, "a look ends no region"
    assert earlier() > before
    assert seen(latest())[0][:2] == ((3,), "state")


# --- origins -------------------------------------------------------------------------------------


def test_uploads_and_what_operators_made() -> None:
    state = torch.zeros(2, device=DEVICE)
    old = torch.ones(2).to(DEVICE)
    state.add_(old).cpu()
    fresh = torch.ones(2).to(DEVICE)
    y = state + old
    y * fresh
    graph = latest()
    origins = {entry.value: entry.origin for entry in graph.inputs}
    add, mul = graph.nodes()
    assert [origins[value] for value in add.operands()] == ["state", ""]
    assert [origins.get(value) for value in mul.operands()] == [None, "input"]
    torch.remote_accelerator.synchronize()
    assert [entry.origin for entry in latest().inputs] == [entry.origin for entry in graph.inputs]


def test_one_plan_fed_from_different_places() -> None:
    """What a plan is made from first does not stick to it."""
    made, given = torch.zeros(2, device=DEVICE) + 1, torch.ones(2).to(DEVICE)
    found = []
    for each in (made, given, made):
        torch.ones(1, device=DEVICE).item()
        if each is given:
            each = torch.ones(2).to(DEVICE)
        each * 5
        torch.remote_accelerator.synchronize()
        found.append([entry.origin for entry in latest().inputs])
    assert found == [["state"], ["input"], ["state"]]


def test_fragments_say_what_enters_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a plan is made of knows as much, and takes what is on its way from fragment to fragment for no state."""
    from genie import runtime

    graphs: list[Graph] = []
    engine = runtime.current().engine(0)
    prepare = type(engine).prepare

    def watched(self: Any, graph: Graph, *handles: Any) -> int:
        graphs.append(graph)
        return prepare(self, graph, *handles)

    monkeypatch.setattr(type(engine), "prepare", watched)
    model = nn.Linear(3, 3).to(DEVICE)
    state = torch.zeros(3, device=DEVICE)
    state.cpu()
    given = torch.ones(3).to(DEVICE)
    with torch.no_grad():
        activation = model(given) + state
        torch.remote_accelerator.synchronize()
        activation.sinh()
        torch.remote_accelerator.synchronize()
    first, second = graphs[-2:]
    assert {entry.origin for entry in first.inputs} == {"parameter", "input", "state"}
    assert [entry.origin for entry in second.inputs] == [""]


# --- lineage -------------------------------------------------------------------------------------


class Layer(nn.Module):
    """One token at a time; what it keeps from call to call is in nobody's class and under nobody's name."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 4), nn.Linear(4, 4)
        self.kind = kind

    def start(self) -> Tensor:
        shape = {"grown": (1, 2, 4), "written": (1, 16, 4), "replaced": (1, 4)}[self.kind]
        return torch.zeros(shape, device=DEVICE)

    def forward(self, x: Tensor, kept: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        new = self.enter(x)
        if self.kind == "grown":
            kept = torch.cat([kept, new], dim=1)
        elif self.kind == "written":
            kept.index_copy_(1, step, new)
        else:
            kept = torch.tanh(kept + new[:, 0])
            return self.leave(kept)[:, None], kept
        weights = torch.softmax(x @ kept.transpose(1, 2), -1)
        return self.leave(weights @ kept), kept


AXES = {"grown": 1, "written": 1, "replaced": -1}


def generate(kind: str, steps: int, captured: bool) -> list[Graph]:
    """The view of every step, each ended by a look."""
    layer = Layer(kind).to(DEVICE)
    kept, x = layer.start(), torch.ones(1, 1, 4).to(DEVICE)
    graphs = []
    with torch.no_grad():
        for step in range(steps):
            at = torch.tensor([step]).to(DEVICE)
            with genie.capture() if captured else contextlib.nullcontext():
                x, kept = layer(x, kept, at)
            graphs.append(latest())
            x.sum().item()
    return graphs


@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("captured", [False, True])
def test_the_view_of_one_call_knows_its_caches(kind: str, captured: bool) -> None:
    graph = generate(kind, 6, captured)[-1]
    caches = {each for each in seen(graph) if each[0] != (1,) and each[0] != (1, 1, 4)}
    assert caches == {
        ({"grown": (1, 7, 4), "written": (1, 16, 4), "replaced": (1, 4)}[kind], "state", kind, AXES[kind])
    }


def test_asking_changes_nothing() -> None:
    *_, before, last = generate("written", 5, captured=False)
    assert before.fingerprint == last.fingerprint
    assert latest() == latest()


def test_a_compiled_program_knows_its_caches(fresh_dynamo: None) -> None:
    layer = Layer("replaced").to(DEVICE)
    compiled = torch.compile(layer, backend="genie")
    kept, x, at = layer.start(), torch.ones(1, 1, 4).to(DEVICE), torch.tensor([0]).to(DEVICE)
    for _ in range(6):
        with torch.no_grad():
            x, kept = compiled(x, kept, at)
        graph = latest()
        x.cpu()
    assert graph.backend_type == "fx"
    assert ((1, 4), "state", "replaced", -1) in seen(graph)
