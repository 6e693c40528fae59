"""Programs captured whole: ``genie.run``, ``genie.compile``, ``torch.compile(backend="genie")``."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import genie
from genie_pytorch.whole import Compiled

DEVICE = "remote_accelerator"
Tensor = torch.Tensor

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.second = nn.Linear(8, 2)

    def forward(self, x: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor, int]:
        y = self.second(F.gelu(self.norm(self.first(x)))) + torch.ones(2) * scale
        return y, x, 3


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return x + 1 if x.sum() > 0 else x - 1


def traced(call: Any) -> int:
    """Operators recorded by a call."""
    before = genie.get_stats()["total_ops"]
    call()
    return int(genie.get_stats()["total_ops"] - before)


@torch.no_grad()
def test_run_answers_as_the_program_does() -> None:
    model = Net().eval()
    native = copy.deepcopy(model)
    x = torch.randn(3, 4)
    for _ in range(3):
        y, again, number = genie.run(model, x)
        assert y.device.type == "cpu"
        assert again is x
        assert number == 3
        assert torch.equal(y, native(x)[0])
        graph = genie.get_graph()
        assert graph.backend_type == "fx"
    assert {"aten::linear", "aten::gelu"} <= {node.operation for node in graph.nodes()}
    names = {entry.name for entry in graph.inputs}
    assert {"first.weight", "second.bias", "norm.running_mean"} <= names
    assert {node.metadata.get("module_path") for node in graph.nodes()} >= {"first", "norm", "second"}


@torch.no_grad()
def test_the_second_call_only_replays() -> None:
    model, x = Net().eval(), torch.randn(3, 4)
    compiled = genie.compile(model)
    compiled(x)
    assert traced(lambda: compiled(torch.randn(3, 4))) == 0
    assert genie.compile(model) is compiled
    assert traced(lambda: genie.run(model, torch.randn(3, 4))) == 0


@torch.no_grad()
def test_what_the_node_had_to_be_asked_is_asked_once() -> None:
    """How some operators lay out what they give is known when they ran: that call is no trace, a later one is."""
    row, column = torch.tril_indices(4, 4, -1)

    def program(x: Tensor) -> Tensor:
        met = torch.bmm(x, x.transpose(1, 2))[:, row, column]
        return met.transpose(0, 1) * 2

    compiled = genie.compile(program)
    for _ in range(4):
        x = torch.randn(3, 4, 5)
        assert torch.equal(compiled(x), program(x))
    x = torch.randn(3, 4, 5)
    assert traced(lambda: compiled(x)) == 0


@torch.no_grad()
def test_again_after_every_shutdown() -> None:
    """What Dynamo keeps for sessions that are gone does not keep the program from being compiled."""
    model, x = Net().eval(), torch.randn(3, 4)
    expected = copy.deepcopy(model)(x)[0]
    for _ in range(torch._dynamo.config.recompile_limit + 2):
        genie.shutdown()
        for _ in range(3):
            assert torch.equal(genie.run(model, x)[0], expected)
        assert traced(lambda: genie.run(model, x)) == 0


@torch.no_grad()
def test_new_weights_are_seen() -> None:
    model, x = Net().eval(), torch.randn(3, 4)
    genie.run(model, x)
    model.second.bias.add_(1)
    assert torch.equal(genie.run(model, x)[0], model(x)[0])
    model.second.weight.data.mul_(2)  # around the version counter
    assert torch.equal(genie.run(model, x)[0], model(x)[0])
    model.first.weight.data = torch.randn(8, 4)
    assert torch.equal(genie.run(model, x)[0], model(x)[0])
    model.load_state_dict(Net().state_dict())
    assert torch.equal(genie.run(model, x)[0], model(x)[0])


@torch.no_grad()
def test_what_the_program_writes_comes_home() -> None:
    model = Net().train()
    native = copy.deepcopy(model)
    for _ in range(3):
        x = torch.randn(5, 4)
        assert torch.equal(genie.run(model, x)[0], native(x)[0])
        assert torch.equal(model.norm.running_mean, native.norm.running_mean)
    assert model.norm.num_batches_tracked.item() == 3

    def program(x: Tensor, table: Tensor) -> Tensor:
        table[0] += x.sum()
        return table * 2

    table = torch.zeros(2)
    for count in (1, 2):
        assert genie.run(program, torch.ones(3), table).tolist() == [6 * count, 0]
        assert table.tolist() == [3 * count, 0]


@torch.no_grad()
def test_inputs_on_the_device_give_outputs_on_the_device() -> None:
    model = Branching.__new__(Branching)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    native = copy.deepcopy(model)
    model.to(DEVICE)
    x = torch.randn(2, 3)
    compiled = genie.compile(model)
    for _ in range(2):
        y = compiled(x.to(DEVICE))
        assert y.device.type == DEVICE
        assert torch.equal(y.cpu(), native(x))


@torch.no_grad()
def test_a_branch_on_data_is_recorded_instead() -> None:
    model = Branching()
    for x in (torch.ones(3) * 5, torch.ones(3) * -5):
        y = genie.run(model, x)
        assert y.device.type == "cpu"
        assert torch.equal(y, model(x))
        assert genie.get_graph().backend_type == "lazy_dag"
    compiled = genie.compile(model)
    assert isinstance(compiled, Compiled)
    assert compiled.recorded


def test_training_through_it() -> None:
    mine, native = Net(), None
    native = copy.deepcopy(mine)
    x = torch.randn(6, 4)
    for model, call in ((mine, lambda: genie.run(mine, x)), (native, lambda: native(x))):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            call()[0].pow(2).mean().backward()
            optimizer.step()
    for one, other in zip(mine.parameters(), native.parameters(), strict=True):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(one.grad, other.grad)


@torch.no_grad()
def test_numbers_and_shapes_may_vary() -> None:
    model = Net().eval()
    for rows, scale in ((3, 1.0), (3, 2.0), (5, 2.0), (7, 3.0), (3, 1.0)):
        x = torch.randn(rows, 4)
        assert torch.equal(genie.run(model, x, scale=scale)[0], model(x, scale)[0])


@torch.no_grad()
def test_random_numbers_are_drawn_anew_and_as_natively() -> None:
    def program(x: Tensor) -> Tensor:
        return F.dropout(x, 0.5) + torch.randn(4)

    x = torch.ones(4)
    torch.manual_seed(3)
    native = [program(x) for _ in range(3)]
    torch.manual_seed(3)
    mine = [genie.run(program, x) for _ in range(3)]
    for one, other in zip(mine, native, strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_the_hosts_random_numbers_stay_the_hosts() -> None:
    def program(x: Tensor) -> Tensor:
        return x + torch.randn(4).to(x.device)

    torch.manual_seed(3)
    native = [program(torch.zeros(4)) for _ in range(3)]
    compiled = genie.compile(program)
    torch.manual_seed(3)
    mine = [compiled(torch.zeros(4, device=DEVICE)).cpu() for _ in range(3)]
    for one, other in zip(mine, native, strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_torch_compile() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    x = torch.randn(2, 3)
    expected = model(x)
    compiled = torch.compile(model, backend="genie")
    assert torch.equal(compiled(x), expected)
    assert genie.get_graph().backend_type == "fx"
    assert traced(lambda: compiled(torch.randn(2, 3))) == 0
    torch.compiler.reset()
    model.to(DEVICE)
    compiled = torch.compile(model, backend="genie")
    for _ in range(2):
        assert torch.equal(compiled(x.to(DEVICE)).cpu(), expected)


@torch.no_grad()
def test_torch_compile_across_a_break() -> None:
    model = Branching()
    compiled = torch.compile(model, backend="genie")
    for x in (torch.ones(3) * 5, torch.ones(3) * -5):
        assert torch.equal(compiled(x), model(x))


@torch.no_grad()
def test_it_works_inside_a_capture() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    x = torch.randn(2, 3)
    expected = model(x)
    with genie.capture():
        y = genie.run(model, x)
        z = y * 2
    assert torch.equal(y.cpu(), expected)
    assert torch.equal(z.cpu(), expected * 2)


@torch.no_grad()
def test_a_cache_on_the_device_is_updated_in_place() -> None:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(4, 4)
            self.register_buffer("cache", torch.zeros(8, 4))

        def forward(self, x: Tensor, position: Tensor) -> Tensor:
            self.cache.index_copy_(0, position, self.proj(x))
            mask = torch.arange(8, device=x.device) <= position
            return (self.cache * mask[:, None]).sum(0)

    native = Step()
    mine = copy.deepcopy(native).to(DEVICE)
    compiled = genie.compile(mine)
    for step in range(4):
        x = torch.randn(1, 4)
        position = torch.tensor([step])
        assert torch.equal(compiled(x.to(DEVICE), position.to(DEVICE)).cpu(), native(x, position))
    assert torch.equal(mine.cache.cpu(), native.cache)


def test_autocast_and_errors() -> None:
    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            y = genie.run(model, x)
            assert y.dtype == torch.bfloat16
            assert torch.equal(y, model(x))
    with pytest.raises(RuntimeError, match="mat1 and mat2|size mismatch|shapes"):
        genie.run(nn.Linear(3, 3), x)


@torch.no_grad()
def test_functions_methods_and_structures() -> None:
    class Tool:
        def __init__(self) -> None:
            self.layer = nn.Linear(2, 2)

        def apply(self, given: dict[str, Tensor]) -> dict[str, Any]:
            return {"y": self.layer(given["x"]), "n": [given["x"].shape[0]]}

    tool = Tool()
    given = {"x": torch.ones(3, 2)}
    for _ in range(2):
        answer = genie.run(tool.apply, given)
        assert answer["n"] == [3]
        assert torch.equal(answer["y"], tool.apply(given)["y"])
    assert genie.run(lambda: torch.arange(3) * 2).tolist() == [0, 2, 4]


@pytest.mark.models
@torch.no_grad()
def test_decoding_with_a_static_cache() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        vocab_size=100, max_position_embeddings=64,
    )  # fmt: skip
    native = transformers.LlamaForCausalLM(config).eval()
    mine = copy.deepcopy(native).to(DEVICE)
    compiled = genie.compile(mine)

    def decode(model: nn.Module, call: Any, device: str) -> list[int]:
        cache = transformers.StaticCache(config=config, max_cache_len=16)
        token = torch.tensor([[7]], device=device)
        tokens = []
        for step in range(8):
            position = torch.tensor([step], device=device)
            out = call(input_ids=token, past_key_values=cache, cache_position=position, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
            tokens.append(int(token))
        return tokens

    expected = decode(native, native, "cpu")
    assert decode(mine, compiled, DEVICE) == expected
    assert isinstance(compiled, Compiled)
    assert not compiled.recorded
    # The first step fills a new cache; from the second on only the loop around the model is recorded.
    assert traced(lambda: decode(mine, compiled, DEVICE)) < 0.2 * traced(lambda: decode(mine, mine, DEVICE))


def sources() -> set[str]:
    return {node.source_line for node in genie.get_graph().nodes()}


@torch.no_grad()
def test_what_pytorch_issues_itself_is_of_the_line_of_the_call() -> None:
    layer, x = nn.Linear(4, 2), torch.randn(3, 4)
    line = sys._getframe().f_lineno
    genie.run(layer, x)
    assert sources() == {f"{__file__}:{line + 1}"}
    compiled = genie.compile(torch.relu)
    compiled(x)
    assert sources() == {f"{__file__}:{line + 4}"}
    list(genie.map(nn.Linear(4, 3), [x]))
    assert f"{__file__}:{line + 6}" in sources()
