"""A training step with Adam and batch normalisation that goes on in another session."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from local.recording import Recording
from local.stateful import Player, move, state, told

from genie.graph import Graph
from genie_backend_local import LocalBackend, LocalSession


@pytest.fixture
def connect() -> Iterator[Callable[[], LocalSession]]:
    backend = LocalBackend()
    yield lambda: backend.connect(backend.devices()[-1])
    backend.close()


class Repeated:
    """A recorded step, whose memory is written in place, run again and again in a session."""

    def __init__(self, step: Callable[[], torch.Tensor], *, warm: int) -> None:
        for _ in range(warm):
            step()
        recording = Recording()
        with recording:
            result = step()
        self.graph: Graph = recording.program.graph(recording.ref(result))
        self.given = [tensor.clone() for tensor in recording.program.given]

    def begin(self, player: Player) -> None:
        for handle, tensor in enumerate(self.given, 1):
            player.put(handle, tensor)

    def run(self, player: Player, number: int) -> bytes:
        result = 1000 + number
        player.execute(self.graph, result, range(1, len(self.given) + 1))
        return bytes(player.session.fetch(result).data)


def training() -> Callable[[], torch.Tensor]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Dropout(0.3), torch.nn.Linear(16, 3)
    )
    weights = list(model.parameters())
    firsts, seconds = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    steps = [torch.zeros(()) for _ in weights]
    x, y = torch.rand(8, 6), torch.randint(3, (8,))

    def step() -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(model(x), y)
        with torch.no_grad():
            grads = torch.autograd.grad(loss, weights)
            torch._foreach_add_(steps, 1)
            torch._fused_adam_(
                weights, grads, firsts, seconds, [], steps, lr=1e-2, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8,
                amsgrad=False, maximize=False,
            )  # fmt: skip
        return loss.detach()

    return step


def test_a_training_step_goes_on(connect: Callable[[], LocalSession]) -> None:
    work = Repeated(training(), warm=2)
    one = Player(connect())
    one.session.seed(0, 11)
    work.begin(one)
    losses = [work.run(one, number) for number in range(3)]
    other = Player(connect())
    before = move(one.session, other.session)
    after = [[work.run(player, number) for number in range(3, 7)] for player in (one, other)]
    assert after[0] == after[1]
    assert len({*losses, *after[0]}) == 7  # it does train
    assert state(one.session) == state(other.session)
    changed = {each.id: each.version for each in told(one.session).memories}
    assert any(changed[each.id] != each.version for each in before.memories)
    assert any(changed[each.id] == each.version for each in before.memories)


def test_the_statistics_of_a_batch_are_seen_to_change(connect: Callable[[], LocalSession]) -> None:
    """Batch normalisation writes to them though its schema says nothing of it."""
    model = torch.nn.BatchNorm1d(4)
    x = torch.rand(8, 4)
    work = Repeated(lambda: model(x).detach(), warm=1)
    player = Player(connect())
    work.begin(player)
    before = {each.id: each.version for each in told(player.session).memories}
    work.run(player, 0)
    written = [each for each in told(player.session).memories if before.get(each.id, each.version) != each.version]
    assert len(written) == 3  # mean, variance, and how many batches there were
