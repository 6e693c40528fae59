"""Training steps: phases as recorded, by hand or by autograd, and what patterns leave alone in them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
import torch
import torch.nn.functional as F
from core.programs import Program
from patterns.recording import DEVICE, ids, labelled, numbers, record
from torch import Tensor, nn

import genie
from genie.graph import Evidence, Graph, Ref, Semantics


def marked(graph: Graph, phases: dict[int, str]) -> Graph:
    """As a recorder marks nodes: what the framework said."""
    steps = tuple(
        msgspec.structs.replace(
            node,
            semantics=Semantics(
                phase=phases[node.id], evidence=(Evidence("phase", "framework", "recorded in autograd's backward"),)
            ),
        )
        if node.id in phases
        else node
        for node in graph.steps
    )
    return msgspec.structs.replace(graph, steps=steps)


class Sees(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 16, 3, 2, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.qkv, self.out = nn.Embedding(50, 16), nn.Linear(16, 48), nn.Linear(16, 50)

    def forward(self, words: Tensor) -> Tensor:
        q, k, v = (e.view(*e.shape[:2], 2, 8).transpose(1, 2) for e in self.qkv(self.words(words)).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


def step(model: nn.Module, given: Tensor, optimizer: str = "SGD", steps: int = 1) -> Graph:
    """A recording of steps of training."""
    model = model.to(DEVICE)
    its = getattr(torch.optim, optimizer)(model.parameters(), lr=0.1)

    def program() -> Tensor:
        with torch.enable_grad():
            for _ in range(steps):
                its.zero_grad()
                loss = model(given).float().square().mean()
                loss.backward()
                its.step()
        return loss.detach()

    return record(program)


PROGRAMS: dict[str, Callable[[], Graph]] = {
    "pictures": lambda: step(Sees(), numbers(2, 3, 16, 16)),
    "words": lambda: step(Reads(), ids(2, 6)),
    "columns": lambda: step(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)), numbers(4, 8)),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_step_as_the_recorder_tells_it(program):
    graph = genie.annotate(PROGRAMS[program]())
    found = labelled(graph, "phase")
    assert {"backward", "optimizer", "forward"} <= found.keys()
    assert found.keys() <= {"backward", "optimizer", "forward"}
    summary = genie.summary(graph)
    assert summary.training
    evidence = {
        why.source
        for node in graph.steps
        for why in node.semantics.evidence
        if node.semantics.phase in ("backward", "optimizer") and why.label == "phase"
    }
    assert evidence == {"framework"}


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_optimizers(optimizer):
    graph = genie.annotate(step(Sees(), numbers(2, 3, 16, 16), optimizer, steps=2))
    found = labelled(graph, "phase")
    assert found["optimizer"] and found["backward"]
    backward = [node for node in graph.steps if "backward" in node.operation]
    assert {node.semantics.phase for node in backward} == {"backward"}


def test_roles_and_stages_of_what_is_trained():
    graph = genie.annotate(PROGRAMS["pictures"]())
    forward = [node for node in graph.nodes() if node.semantics.phase == "forward"]
    roles = {node.semantics.role for node in forward}
    assert {"conv_stem", "downsample"} <= roles
    groups = {node.semantics.colocation_group for node in graph.nodes() if node.operation == "aten::convolution"}
    assert groups == {"stage:0", "stage:1"}


def training(vision: bool) -> Graph:
    """A training step written by hand: a layer, its gradient, its update."""
    p = Program()
    if vision:
        x, weight, again = p.input((2, 3, 8, 8), origin="input"), p.weight(4, 3, 3, 3), p.weight(4, 4, 3, 3)
        for kernel, before in ((weight, 3), (again, 4)):
            out = p.op("convolution", Ref(x), Ref(kernel), None, shape=(2, 4, 8, 8))
            x = p.op("relu", Ref(out), shape=(2, 4, 8, 8))
            assert before
        grad = p.op("threshold_backward", Ref(x), Ref(out), 0, shape=(2, 4, 8, 8))
        update = p.op("convolution_backward", Ref(grad), Ref(x), Ref(again), shape=(4, 4, 3, 3))
        weight = again
    else:
        words, weight = p.input((2, 5), "int64", origin="input"), p.weight(50, 16)
        x = p.op("embedding", Ref(weight), Ref(words), shape=(2, 5, 16))
        q, k, v = (p.op("view", Ref(x), shape=(2, 2, 5, 8), view=True) for _ in range(3))
        out = p.op("scaled_dot_product_attention", *map(Ref, (q, k, v)), None, 0.0, True, shape=(2, 2, 5, 8))
        flat = p.op("reshape", Ref(out), shape=(2, 5, 16))
        x = p.op("linear", Ref(flat), Ref(weight), None, shape=(2, 5, 50))
        grad = p.op("mm", Ref(x), Ref(weight), shape=(2, 5, 16))
        update = p.op("embedding_dense_backward", Ref(grad), Ref(words), shape=(50, 16))
    p.write("add_", Ref(weight), Ref(update))
    graph = p.graph(x)
    last = len(graph.steps) - 1
    return marked(graph, {last - 2: "backward", last - 1: "backward", last: "optimizer"})


@pytest.mark.parametrize("vision", [False, True])
def test_what_was_said_of_phases_stands_and_no_other_is_added(vision):
    graph = genie.annotate(training(vision))
    assert labelled(graph, "phase").keys() == {"forward", "backward", "optimizer"}
    assert [node.semantics.phase for node in graph.steps[-3:]] == ["backward", "backward", "optimizer"]
    summary = genie.summary(graph)
    assert summary.training
    assert summary.workload in ("vision", "language_model", "text_encoder", "training")


def test_gradients_belong_to_no_stage():
    graph = genie.annotate(training(True))
    assert {node.semantics.colocation_group for node in graph.steps[:4]} == {"stage:0"}
    assert {node.semantics.colocation_group for node in graph.steps[-3:]} == {None}


@pytest.mark.parametrize("vision", [False, True])
def test_updates_are_no_residuals(vision):
    graph = genie.annotate(training(vision))
    assert {node.semantics.role for node in graph.steps if node.semantics.phase == "optimizer"} == {None}


def test_a_denoiser_in_training_is_no_phase_denoise():
    from patterns.test_vision import Noisy

    model, x, time = Noisy().to(DEVICE), numbers(2, 4, 16, 16), ids(2)

    def program() -> Tensor:
        with torch.enable_grad():
            loss = (model(x, time) - x).square().mean()
            loss.backward()
        return loss.detach()

    graph = genie.annotate(record(program))
    assert "denoise" not in labelled(graph, "phase")
    assert labelled(graph)["timestep_embedding"]
