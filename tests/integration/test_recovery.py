"""A user's programs whose nodes are killed: they go on, elsewhere or when the node is back, with the same results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import genie
from genie.errors import Cancelled, ConnectionLost
from genie.lineage import checkpointing
from genie.remote import RemoteSession

from . import tiny_lm
from .conftest import MakeNode, Node, Nursery, start_node
from .test_spread import Anywhere

DEVICE = "remote_accelerator"


def _user(user: Callable[..., None], *nodes: Node, **settings: Any) -> None:
    user(*nodes, recovery=True, recovery_seconds=30.0, **settings)


def _recoveries() -> int:
    return int(genie.get_stats()["recoveries"])


def _restarted(node: Node, nursery: Nursery) -> Node:
    """Killed, and another one at its address."""
    node.stop()
    return start_node(nursery, node.log, "--port", node.address.rpartition(":")[2])


def test_generation_goes_on_elsewhere(make_node: MakeNode, user: Callable[..., None]) -> None:
    expected = tiny_lm.generate(tiny_lm.model(), count=32)
    first, second = make_node(), make_node()
    _user(user, first, second)
    model = tiny_lm.model().to(f"{DEVICE}:0")
    tokens = []
    for token in tiny_lm.stream(model, count=32):
        tokens.append(token)
        if len(tokens) == 11:
            first.stop()
    assert tokens == expected
    assert _recoveries() == 1


def test_a_node_that_is_silent_is_given_up(make_node: MakeNode, user: Callable[..., None]) -> None:
    """It is stopped where it is: its host answers, it does not."""
    expected = tiny_lm.generate(tiny_lm.model(), count=16)
    first, second = make_node(), make_node()
    _user(user, first, second, recovery_silence_seconds=2.0, heartbeat_seconds=0.5, connect_timeout=1.0)
    model = tiny_lm.model().to(f"{DEVICE}:0")
    tokens = []
    for token in tiny_lm.stream(model, count=16):
        tokens.append(token)
        if len(tokens) == 6:
            first.process.pause()
    assert tokens == expected
    assert _recoveries() == 1


def test_a_node_that_dies_before_it_was_used(make_node: MakeNode, user: Callable[..., None]) -> None:
    first, second = make_node(), make_node()
    _user(user, first, second)
    first.stop()
    assert (torch.arange(3, device=f"{DEVICE}:0") * 2).tolist() == [0, 2, 4]
    assert second.sessions() == 1


def test_work_that_was_cancelled_stays_so(make_node: MakeNode, user: Callable[..., None]) -> None:
    first, second = make_node(), make_node()
    _user(user, first, second)
    x = torch.eye(512, device=f"{DEVICE}:0")
    assert x.sum().item() == 512
    y = x
    for _ in range(2000):
        y = y @ x
    genie.cancel()
    with pytest.raises(Cancelled, match="its client asked"):
        y.sum().item()
    assert x.sum().item() == 512  # a look: the state of now is kept
    first.stop()
    with pytest.raises(Cancelled, match="its client asked"):
        y.sum().item()
    assert (x * 2).sum().item() == 1024
    assert _recoveries() == 1


def _sampled(device: str, count: int = 24, at: Callable[[int], None] = lambda _: None) -> list[int]:
    model = tiny_lm.model().to(device)
    torch.manual_seed(11)
    ids, cache, tokens = tiny_lm.PROMPT.to(device), None, []
    with torch.no_grad():
        for number in range(count):
            logits, cache = model(ids, cache)
            ids = torch.multinomial(logits[:, -1].softmax(dim=-1), 1)
            tokens.append(int(ids.item()))
            at(number)
    return tokens


def _trained(device: str, steps: int = 12, at: Callable[[int], None] = lambda _: None) -> Any:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 8))
    data = [(torch.randn(96, 64), torch.randint(0, 8, (96,))) for _ in range(steps)]
    model.to(device)
    torch.manual_seed(6)  # of the dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for number, (inputs, labels) in enumerate(data):
        at(number)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [parameter.detach().cpu().tolist() for parameter in model.parameters()]


@pytest.mark.parametrize("program", [_sampled, _trained])
def test_a_node_that_is_started_anew(
    program: Callable[..., Any], make_node: MakeNode, nursery: Nursery, user: Callable[..., None]
) -> None:
    node = make_node()
    _user(user, node)
    expected = program(DEVICE)
    nodes = [node]

    def restart(number: int) -> None:
        if number == 7:
            nodes.append(_restarted(node, nursery))

    _user(user, node)
    assert program(DEVICE, at=restart) == expected
    assert _recoveries() == 1
    nodes[-1].stop()


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("program", [_sampled, _trained])
def test_plans_over_two_nodes(
    program: Callable[..., Any], victim: int, make_node: MakeNode, user: Callable[..., None]
) -> None:
    """Their operators are scattered over both, so that each plan stops in the middle."""
    nodes = [make_node(), make_node()]
    _user(user, nodes[0])
    expected = program(DEVICE)
    genie.register_placement_strategy("anywhere", lambda settings: Anywhere())
    _user(user, *nodes, placement="anywhere")
    assert program(DEVICE, at=lambda number: nodes[victim].stop() if number == 6 else None) == expected
    stats = genie.get_stats()
    assert stats["recoveries"] == 1
    assert stats["values_moved"] > 20


def test_death_during_recovery(make_node: MakeNode, user: Callable[..., None]) -> None:
    nodes = [make_node() for _ in range(3)]
    _user(user, *nodes)
    expected = _trained(DEVICE)

    def kill(number: int) -> None:
        if number == 6:
            nodes[0].stop()
            nodes[1].process.pause()

    _user(user, *nodes, connect_timeout=1.0)
    assert _trained(DEVICE, at=kill) == expected
    assert _recoveries() == 1


def test_a_loop_on_the_node(make_node: MakeNode, nursery: Nursery, user: Callable[..., None]) -> None:
    expected = tiny_lm.generate(tiny_lm.model(), count=200)
    node = make_node()
    _user(user, node)
    model = tiny_lm.Logits(tiny_lm.model().to(DEVICE))
    tokens = []
    for token in genie.generate(model, tiny_lm.PROMPT, max_new_tokens=200, stream=True):
        tokens.append(int(token))
        if len(tokens) == 20:
            again = _restarted(node, nursery)
    assert tokens == expected
    assert _recoveries() == 1
    again.stop()


def test_no_node_is_left(make_node: MakeNode, user: Callable[..., None]) -> None:
    node = make_node()
    _user(user, node, recovery_attempts=3)
    value = torch.ones(8, device=DEVICE) + 1
    assert value.cpu().tolist() == [2.0] * 8
    node.stop()
    value += 1
    with pytest.raises(ConnectionLost, match="no node could take its place"):
        value.cpu()
    with pytest.raises(ConnectionLost, match="no node could take its place"):
        value.cpu()


@pytest.mark.parametrize("to", ["disk", "node"])
@pytest.mark.parametrize("program", [_sampled, _trained])
def test_from_a_checkpoint(
    program: Callable[..., Any],
    to: str,
    make_node: MakeNode,
    user: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One after every look; so hardly anything is repeated."""
    monkeypatch.setattr(checkpointing, "_SHARE", 0)
    nodes = [make_node(), make_node()]
    _user(user, nodes[0])
    expected = program(DEVICE)
    _user(user, *nodes, checkpoint_interval=1e-6, checkpoint_to=to)
    assert program(f"{DEVICE}:0", at=lambda number: nodes[0].stop() if number == 7 else None) == expected
    stats = genie.get_stats()
    assert stats["recoveries"] == 1
    assert stats["checkpoints"] > 7
    assert stats["recovery_calls"] < 100


@pytest.mark.parametrize("victim", [0, 1])
def test_plans_over_two_nodes_from_a_checkpoint(
    victim: int, make_node: MakeNode, user: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "_SHARE", 0)
    nodes = [make_node(), make_node()]
    _user(user, nodes[0])
    expected = _trained(DEVICE)
    genie.register_placement_strategy("anywhere", lambda settings: Anywhere())
    _user(user, *nodes, placement="anywhere", checkpoint_interval=1e-6)
    assert _trained(DEVICE, at=lambda number: nodes[victim].stop() if number == 6 else None) == expected
    stats = genie.get_stats()
    assert stats["recoveries"] == 1
    assert stats["checkpoints"] > 6
    assert stats["values_moved"] > 20


def test_a_checkpoint_makes_up_for_an_interrupted_call(
    make_node: MakeNode, user: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_node(), make_node()
    _user(user, first, second)
    value = torch.arange(4.0, device=f"{DEVICE}:0")
    assert value.tolist() == [0, 1, 2, 3]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RemoteSession, "seed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            torch.manual_seed(3)
    assert value.sum().item() == 6
    first.stop()
    assert (value * 2).tolist() == [0, 2, 4, 6]
    assert genie.get_stats()["checkpoints"] == 1


def test_the_node_with_the_checkpoint_dies_first(
    make_node: MakeNode, user: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "_SHARE", 0)
    nodes = [make_node() for _ in range(3)]
    _user(user, *nodes, checkpoint_interval=1e-6, checkpoint_to="node")
    value = torch.arange(4.0, device=f"{DEVICE}:0")
    assert value.tolist() == [0, 1, 2, 3]
    nodes[1].stop()
    value += 1
    assert value.tolist() == [1, 2, 3, 4]  # kept on the third node from here on
    nodes[0].stop()
    assert (value * 2).tolist() == [2, 4, 6, 8]


def test_the_checkpoint_dies_with_the_node(
    make_node: MakeNode, user: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "_SHARE", 0)
    nodes = [make_node() for _ in range(3)]
    _user(user, *nodes, checkpoint_interval=1e-6, checkpoint_to="node")
    value = torch.arange(4.0, device=f"{DEVICE}:0")
    assert value.tolist() == [0, 1, 2, 3]
    nodes[1].stop()
    nodes[0].stop()
    with pytest.raises(ConnectionLost, match="its last checkpoint is of no use: the node that kept it is gone, too"):
        value.tolist()
