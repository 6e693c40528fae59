"""Programs spread over nodes: the same results, values sent from node to node, nodes that are too small or lost."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest
import torch
from torch import nn

import genie
from genie.device import Cluster, Device
from genie.errors import ConnectionLost, GenieError, OutOfMemory, RemoteOpError, SchedulingError
from genie.graph import Graph
from genie.schedule.placement import Outlook

from . import tiny_lm
from .conftest import MakeNode, Node, StartProgram

EVERYWHERE = "remote_accelerator"
MIB = 1 << 20


class Anywhere:
    """Every group of nodes on a device chosen at random, of those it may be on."""

    name = "anywhere"

    def __init__(self) -> None:
        self._draw = random.Random(5)

    def place(self, graph: Graph, devices: Sequence[Device]) -> Mapping[int, str]:
        raise NotImplementedError

    def place_knowing(self, graph: Graph, devices: Sequence[Device], outlook: Outlook) -> tuple[Mapping[int, str], str]:
        assert outlook.groups is not None
        chosen = [
            self._draw.choice([number for number in range(len(devices)) if mask >> number & 1])
            for mask in outlook.groups.allowed
        ]
        places = {
            node.id: devices[chosen[group]].id for node, group in zip(graph.steps, outlook.groups.of, strict=True)
        }
        return places, "anywhere"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the nodes: how many threads add up a sum is seen in its last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def three(node: Node, make_node: MakeNode, user: Callable[..., None]) -> tuple[Node, ...]:
    others = (make_node("--threads", "1"), make_node("--threads", "1"))
    genie.register_placement_strategy("anywhere", lambda settings: Anywhere())
    user(node, *others, placement="anywhere")
    return (node, *others)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(8 * 36, 10)
    )


def train(model: nn.Module, device: str, steps: int = 4) -> list[float]:
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = torch.randn(4, 3, 8, 8), torch.randint(0, 10, (4,))
    torch.manual_seed(2)  # dropout draws on the device, which has a generator of its own
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_training_gives_the_same_bits_wherever_operators_run(three: tuple[Node, ...]) -> None:
    alone, spread = net(), net().to(EVERYWHERE)
    assert train(spread, EVERYWHERE) == train(alone, "cpu")
    for name, value in alone.state_dict().items():
        assert torch.equal(spread.state_dict()[name].cpu(), value), name
    stats = genie.get_stats()
    assert stats["values_moved"] > 20
    assert stats["values_carried"] == 0


def test_generation_gives_the_same_tokens_wherever_operators_run(three: tuple[Node, ...]) -> None:
    assert tiny_lm.generate(tiny_lm.model().to(EVERYWHERE), count=8) == tiny_lm.generate(tiny_lm.model(), count=8)
    assert genie.get_stats()["values_moved"] > 20


def test_views_layouts_and_writes_are_those_of_one_device(three: tuple[Node, ...]) -> None:
    def program(device: str) -> list[object]:
        torch.manual_seed(2)
        x = torch.randn(4, 6).to(device)
        turned = x.t()
        first = x[:, 1:3]
        y = turned + 1
        z = torch.empty_like(first).copy_(first) * 2
        first.add_(1)
        x.mul_(y.t())
        torch._foreach_add_([x, y], 1)
        wide = x[:1].expand(3, 6) + 0
        torch.manual_seed(3)
        noise = torch.randn(3, device=device)
        results = (x, turned, first, y, z, wide, noise)
        return [(each.cpu().tolist(), each.stride()) for each in results]

    assert program(EVERYWHERE) == program("cpu")


def test_a_failing_operator_is_named_with_its_line(three: tuple[Node, ...]) -> None:
    table = torch.ones(3, 2, device=EVERYWHERE)
    bad = torch.tensor([7]).to(EVERYWHERE)
    fine = table * 2
    wrong = torch.nn.functional.embedding(bad, table)  # the line that is named
    later = (wrong + fine[:1]).sum()
    with pytest.raises(RemoteOpError, match="out of range") as caught:
        later.item()
    line = test_a_failing_operator_is_named_with_its_line.__code__.co_firstlineno + 4
    assert caught.value.source.endswith(f"test_spread.py:{line}")
    assert fine.tolist() == [[2.0, 2.0]] * 3


@pytest.fixture
def small(make_node: MakeNode, user: Callable[..., None]) -> tuple[Node, Node]:
    limited = {"GENIE_MEMORY_LIMIT_GB": str(6 * MIB / (1 << 30))}
    return (make_node("--threads", "1", **limited), make_node("--threads", "1", **limited))


def cluster(*nodes: Node, mib: float = 6) -> Cluster:
    devices = [
        Device(
            id=f"small{number}", type="CPU", memory_gb=mib * MIB / (1 << 30), compute_tflops=0.1, address=node.address
        )
        for number, node in enumerate(nodes)
    ]
    return Cluster(devices=tuple(devices), backend="tcp")


def large() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(512, 512), nn.Tanh())))  # 8 MiB


@torch.no_grad()
def test_two_nodes_hold_a_model_that_neither_holds_alone(small: tuple[Node, Node], fresh_runtime: None) -> None:
    model, x = large(), torch.randn(4, 512)
    genie.init(cluster=cluster(*small))
    assert torch.equal(copy.deepcopy(model).to(EVERYWHERE)(x.to(EVERYWHERE)).cpu(), model(x))
    assert torch.equal(genie.run(model, x), model(x))
    assert genie.get_stats()["values_moved"] >= 2
    genie.shutdown()

    genie.init(cluster=cluster(small[0]))
    with pytest.raises((OutOfMemory, SchedulingError), match="small0"):
        copy.deepcopy(model).to(EVERYWHERE)(x.to(EVERYWHERE)).cpu()


class ByTurns:
    """Layers by turns on one device and the other; a graph with a single one on the last."""

    name = "by_turns"

    def place(self, graph: Graph, devices: Sequence[Device]) -> Mapping[int, str]:
        raise NotImplementedError

    def place_knowing(self, graph: Graph, devices: Sequence[Device], outlook: Outlook) -> tuple[Mapping[int, str], str]:
        assert outlook.groups is not None
        groups = outlook.groups
        chosen: dict[int, int] = {}
        turn = 0 if sum("mm" in node.operation or "linear" in node.operation for node in graph.steps) > 1 else 1
        for node, group in zip(graph.steps, groups.of, strict=True):
            allowed = groups.allowed[group]
            chosen.setdefault(group, turn if allowed >> turn & 1 else 1 - turn)
            turn = 1 - turn if "tanh" in node.operation else turn
        places = {node.id: devices[chosen[group]].id for node, group in zip(graph.steps, groups.of, strict=True)}
        return places, "by turns"


def test_copies_of_weights_go_when_a_node_needs_their_room(small: tuple[Node, Node], fresh_runtime: None) -> None:
    """4 MiB of weights live on each node, of 6; layer by layer, all eight are used on the second."""
    genie.register_placement_strategy("by_turns", lambda settings: ByTurns())
    genie.init(cluster=cluster(*small), placement="by_turns")
    alone, x = large(), torch.randn(4, 512)
    spread, remote = copy.deepcopy(alone).to(EVERYWHERE), x.to(EVERYWHERE)
    with torch.no_grad():
        assert torch.equal(spread(remote).cpu(), alone(x))
        for _ in range(2):
            one, other = x, remote
            for layer, there in zip(alone, spread, strict=True):
                one, other = layer(one), there(other)
                assert torch.equal(other.cpu(), one)
    stats = genie.get_stats()
    assert stats["copies_dropped"] > 4 and stats["values_moved"] > 8
    # What a backward pass would need is kept, where copies were.
    x = torch.randn(64, 512)
    assert torch.equal(spread(x.to(EVERYWHERE)).detach().cpu(), alone(x))


@torch.no_grad()
def test_what_a_node_has_no_room_for_is_explained(small: tuple[Node, Node], fresh_runtime: None) -> None:
    """The client was told that there is more than there is."""
    genie.register_placement_strategy("by_turns", lambda settings: ByTurns())
    genie.init(cluster=cluster(*small, mib=60), placement="by_turns")
    spread, x = large().to(EVERYWHERE), torch.randn(4, 512).to(EVERYWHERE)
    with pytest.raises(OutOfMemory) as caught:  # layer by layer, all on the second
        for layer in spread:
            x = layer(x)
            x.cpu()
    told = str(caught.value)
    assert "device small1 has too little memory" in told
    assert "MiB of weights" in told and "of copies" in told and "GENIE_MEMORY_LIMIT_GB" in told


@torch.no_grad()
def test_a_stream_of_inputs(three: tuple[Node, ...]) -> None:
    model = net().eval()
    batches = [torch.randn(2, 3, 8, 8) for _ in range(9)]
    results = genie.map(model, iter(batches))
    for x, y in zip(batches, results, strict=True):
        assert torch.equal(model(x), y)
    with pytest.raises(genie.GenieError, match="in_flight"):
        genie.map(model, batches, in_flight=0)


def test_a_lost_node_is_named_and_nobody_waits(three: tuple[Node, ...]) -> None:
    model = tiny_lm.model().to(EVERYWHERE)
    tiny_lm.generate(model, count=2)
    three[1].process.kill()
    with pytest.raises(GenieError) as caught:
        tiny_lm.generate(model, count=20)
    assert isinstance(caught.value, ConnectionLost | RemoteOpError)
    assert three[1].address in str(caught.value)


def test_ctrl_c_in_a_spread_program(three: tuple[Node, ...], program: StartProgram) -> None:
    source = """
        import torch, genie_pytorch, tiny_lm
        lm = tiny_lm.model().to("remote_accelerator")
        try:
            while True:
                for token in tiny_lm.stream(lm, count=400):
                    print("token", token, flush=True)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """
    running = program(source, *three)
    for _ in range(4):
        running.said("token")
    running.signal(2)
    running.said("interrupted")
    assert running.ended()[0] == 0
