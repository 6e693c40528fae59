"""Forward, backward and optimizer: told by the framework, whoever wrote the loop."""

from __future__ import annotations

import contextlib
import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import genie
from genie.graph import Graph, verify

DEVICE = "remote_accelerator"
Tensor = torch.Tensor


def latest() -> Graph:
    graph = genie.get_graph()
    verify(graph)
    return graph


def phases(graph: Graph) -> list[tuple[str, str | None]]:
    return [(node.operation.removeprefix("aten::"), node.metadata.get("phase")) for node in graph.nodes()]


def phase_of(operation: str) -> list[str | None]:
    return [phase for name, phase in phases(latest()) if name == operation]


def leaf() -> Tensor:
    x = torch.tensor([0.5, -1.0, 2.0, 0.3], device=DEVICE)
    x.cpu()
    return x.requires_grad_()


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


class Signed(torch.optim.Optimizer):
    """An optimizer of the program's own, on lines of the program."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(parameter.grad.sign(), alpha=-group["lr"])


class Twice(Signed):
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        super().step()
        super().step()


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, foreach=False),
    "sgd-momentum-foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "own": lambda p: Signed(p, lr=0.01),
    "own-subclass": lambda p: Twice(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_one_graph_in_three_phases(name: str) -> None:
    model = net().to(DEVICE)
    optimizer = OPTIMIZERS[name](model.parameters())
    x = torch.randn(2, 4, device=DEVICE)
    for _ in range(2):
        with genie.capture():
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
    graph = latest()
    order = [phase for _, phase in phases(graph)]
    forward, backward = order.index("backward"), order.index("optimizer")
    assert order == [None] * forward + ["backward"] * (backward - forward) + ["optimizer"] * (len(order) - backward)
    paths = {(node.module_path, node.metadata["module_type"]) for node in graph.nodes() if node.id >= backward}
    assert paths == {("optimizer", type(optimizer).__name__)}
    assert {node.metadata.get("module_path") for node in graph.nodes()[:forward]} >= {"0", "1", "2"}
    names = [operation for operation, _ in phases(graph)]
    assert "mean" in names[:forward]
    assert "tanh_backward" in names[forward:backward]
    # The parameters are written to by the optimizer and by nobody else.
    parameters = {entry.value for entry in graph.inputs if entry.origin == "parameter"}
    assert len(parameters) == 4
    writers = {node.metadata.get("phase") for node in graph.nodes() if parameters & set(node.mutates)}
    assert writers == {"optimizer"}
    evidence = {why for node in graph.nodes() for why in node.metadata.get("evidence", ())}
    assert {(why.label, why.source, why.reason) for why in evidence} == {
        ("phase", "framework", "recorded during autograd's backward pass"),
        ("phase", "framework", "recorded inside Optimizer.step"),
    }


@pytest.mark.parametrize("name", ["sgd", "adamw-foreach", "own"])
def test_parameters_of_the_host_are_updated_there(name: str) -> None:
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    x = torch.randn(2, 4)
    for _ in range(2):
        with genie.capture():
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    found = phases(latest())
    assert dict(found)["tanh"] is None
    assert dict(found)["tanh_backward"] == "backward"
    assert {name for name, phase in found if phase == "optimizer"} == ({"sign"} if name == "own" else set())


def test_a_hand_written_update_has_no_phase_of_the_frameworks() -> None:
    model = net().to(DEVICE)
    with genie.capture():
        model(torch.ones(2, 4)).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
    assert phase_of("sub_") == [None] * 4
    assert "optimizer" not in {phase for _, phase in phases(latest())}


def test_inference_has_no_phase_of_the_frameworks() -> None:
    with genie.capture():
        net()(torch.ones(2, 4))
    assert {phase for _, phase in phases(latest())} == {None}


def test_without_a_capture_it_is_what_came_since_the_last_look() -> None:
    model = net().to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=True)
    x = torch.randn(2, 4).to(DEVICE)
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        found = [phase for _, phase in phases(latest())]
        assert [found.index(phase) for phase in (None, "backward", "optimizer")] == sorted(
            found.index(phase) for phase in (None, "backward", "optimizer")
        )
        loss.item()


# --- ways to a gradient --------------------------------------------------------------------------


def test_autograd_grad() -> None:
    x = leaf()
    torch.autograd.grad(x.sin().sum(), x)
    assert (phase_of("sin"), phase_of("cos")) == ([None], ["backward"])


def test_func_grad() -> None:
    x = leaf().detach()
    torch.func.grad(lambda x: x.sin().sum())(x)
    assert (phase_of("sin"), phase_of("cos")) == ([None], ["backward"])


def test_vmapped_gradients() -> None:
    x = leaf().detach()
    torch.func.vmap(torch.func.grad(lambda x: x.sin()))(x)
    assert (phase_of("sin"), phase_of("cos")) == ([None], ["backward"])


def test_the_gradient_of_a_gradient() -> None:
    x = leaf()
    (first,) = torch.autograd.grad(x.sin().sum(), x, create_graph=True)
    assert (phase_of("sin"), phase_of("cos")) == ([None], ["backward"])
    (first * 2).sum().backward()
    # sin → cos in the first pass; the derivative of that cos is a sin of the second.
    assert phase_of("sin") == [None, "backward"]


def test_what_runs_between_two_passes_is_forward() -> None:
    x = leaf()
    (first,) = torch.autograd.grad(x.sin().sum(), x, create_graph=True)
    first.exp()
    assert phase_of("exp") == [None]


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_a_checkpoint_computes_again_is_of_the_backward_pass(reentrant: bool) -> None:
    model = net().to(DEVICE)
    x = leaf()
    checkpoint(model, x.view(1, 4), use_reentrant=reentrant).sum().backward()
    assert phase_of("tanh") == [None, "backward"]
    nodes = [node for node in latest().nodes() if node.operation == "aten::tanh"]
    assert [node.module_path for node in nodes] == ["1", "1"]


def helper(x: Tensor) -> Tensor:
    return x.exp()


def test_one_line_in_both_directions() -> None:
    class Custom(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return helper(x)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return helper(grads[0])

    x = leaf()
    y = Custom.apply(x)
    y.register_hook(helper)
    y.sum().backward()
    helper(y)
    assert phase_of("exp") == [None, "backward", "backward", None]


# --- optimizers ----------------------------------------------------------------------------------


class Loss:
    """A closure that is a method."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer

    def __call__(self) -> Tensor:
        return self.method()

    def method(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.model(torch.ones(2, 4, device=DEVICE)).cos().sum()
        loss.backward()
        return loss


CLOSURES: dict[str, Callable[[torch.optim.Optimizer, Loss], Any]] = {
    "function": lambda optimizer, loss: optimizer.step(lambda: loss.method()),
    "by name": lambda optimizer, loss: optimizer.step(closure=lambda: loss.method()),
    "method": lambda optimizer, loss: optimizer.step(loss.method),
    "method by name": lambda optimizer, loss: optimizer.step(closure=loss.method),
}


@pytest.mark.parametrize("how", CLOSURES)
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.LBFGS])
def test_the_closure_of_a_step_is_the_programs(how: str, make: Any) -> None:
    model = net().to(DEVICE)
    optimizer = make(model.parameters(), lr=0.1)
    with genie.capture():
        CLOSURES[how](optimizer, Loss(model, optimizer))
    found = phases(latest())
    assert {phase for name, phase in found if name == "cos"} == {None}
    assert {phase for name, phase in found if name == "tanh_backward"} == {"backward"}
    assert "optimizer" in {phase for _, phase in found}


def test_of_a_closure_that_is_an_object_nothing_is_said() -> None:
    model = net().to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with genie.capture():
        optimizer.step(Loss(model, optimizer))
    assert "optimizer" not in {phase for _, phase in phases(latest())}


def test_an_optimizer_inside_of_the_backward_pass() -> None:
    model = net().to(DEVICE)
    optimizers = {each: Signed([each], lr=0.1) for each in model.parameters()}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda each: optimizers[each].step())
    with genie.capture():
        model(torch.ones(2, 4)).sum().backward()
    assert phase_of("sign") == ["optimizer"] * 4
    assert phase_of("tanh_backward") == ["backward"]


def test_two_optimizers() -> None:
    one, other = net().to(DEVICE), net().to(DEVICE)
    optimizers = [Signed(one.parameters(), lr=0.1), torch.optim.SGD(other.parameters(), lr=0.1)]
    with genie.capture():
        other(one[:2](torch.ones(2, 4)).view(4, 4)).sum().backward()
        (one(torch.ones(2, 4)).sum()).backward()
        for each in optimizers:
            each.step()
    graph = latest()
    steps = {node.metadata["module_type"] for node in graph.nodes() if node.metadata.get("phase") == "optimizer"}
    assert steps == {"Signed", "SGD"}


def test_an_optimizer_is_not_kept() -> None:
    from genie_pytorch import modules

    gc.collect()
    before = len(modules._optimizers)
    parameter = leaf()
    optimizer = Signed([parameter], lr=0.1)
    parameter.sum().backward()
    optimizer.step()
    assert len(modules._optimizers) == before + 1
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    assert len(modules._optimizers) == before
    # At the address of the one that is gone there may be another, of another class.
    for _ in range(20):
        torch.optim.SGD([parameter], lr=0.1).step()
    kinds = [node.metadata["module_type"] for node in latest().nodes() if node.metadata.get("phase") == "optimizer"]
    assert set(kinds[1:]) == {"Signed", "SGD"}


def test_a_failing_step_leaves_nothing_behind() -> None:
    class Fails(Signed):
        def step(self, closure: Any = None) -> None:
            raise ValueError

    x = leaf()
    with pytest.raises(ValueError, match="^$"):
        Fails([x], lr=0.1).step()
    x.detach() + 1
    assert phase_of("add") == [None]


# --- whole programs ------------------------------------------------------------------------------


def test_the_backward_pass_of_a_compiled_program(fresh_dynamo: None) -> None:
    model = net().to(DEVICE)
    compiled = torch.compile(model, backend="genie")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        with genie.capture():
            compiled(torch.ones(2, 4, device=DEVICE)).sum().backward()
            optimizer.step()
        assert phase_of("tanh") == [None]
        assert phase_of("tanh_backward") == ["backward"]
        assert "optimizer" in {phase for _, phase in phases(latest())}


# --- origins -------------------------------------------------------------------------------------


@pytest.mark.parametrize("captured", [False, True])
def test_inputs_of_a_step_say_where_they_come_from(captured: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, foreach=False)
    for _ in range(3):
        x = torch.randn(2, 4)
        with genie.capture() if captured else contextlib.nullcontext():
            optimizer.zero_grad()
            loss = model(x.to(DEVICE)).square().mean()
            loss.backward()
            optimizer.step()
            graph = latest()
            loss.item()
    origins: dict[str, set[str]] = {}
    for entry in graph.inputs:
        origins.setdefault(entry.origin, set()).add(entry.name)
    parameters = {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert origins["parameter"] == parameters
    assert origins["buffer"] >= {"1.running_mean", "1.running_var"}
    kept = {f"{name}.{key}" for name in parameters for key in ("exp_avg", "exp_avg_sq")}
    assert origins["state"] >= kept
    assert origins["input"] == {""}
    assert [graph.values[entry.value].shape for entry in graph.inputs if entry.origin == "input"] == [(2, 4)]


def test_a_captured_programs_parameters_are_known_and_stay() -> None:
    """Asking for the graph is no use of the program's tensors."""
    model = net()
    x = torch.randn(2, 4)
    with genie.capture():
        model(x)
        before = genie.get_stats()["uploaded_bytes"]
        for _ in range(2):
            origins = [entry.origin for entry in latest().inputs]
            assert sorted(origins) == ["input", *["parameter"] * 4]
            model(x)
        torch.remote_accelerator.synchronize()
        assert genie.get_stats()["uploaded_bytes"] == before


def test_facts_change_no_result() -> None:
    """Told apart on the way, the same numbers come out."""
    native = net()
    mine = copy.deepcopy(native).to(DEVICE)
    x = torch.randn(8, 4)
    for model, given in ((native, x), (mine, x.to(DEVICE))):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, foreach=True)
        for _ in range(3):
            optimizer.zero_grad()
            model(given).square().mean().backward()
            optimizer.step()
    for one, other in zip(native.parameters(), mine.parameters(), strict=True):
        torch.testing.assert_close(one, other.cpu(), rtol=1e-5, atol=1e-6)
