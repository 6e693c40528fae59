"""Recurrent networks: of torch.nn, and out of linears. As language models they read a prompt in one call (prefill) and
then a token per call (decode), with a state that is replaced. On features they are ``recurrent``, and ``forward``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from semantics.ingredients import VOCABULARY, numbers, tokens
from semantics.stages import Stage
from semantics.truth import Model, Program, Tower, Truth, calls, generation

WIDTH, STEPS = 24, 5

WRITES = Truth("language_model", generation(STEPS), (Tower("", "text"),))
# Numbers over time: which of the modalities that is, if any, the definitions do not say. It is not asked.
STEPPING = Truth("recurrent", calls(*["forward"] * STEPS), ())
SEQUENCES = Truth("recurrent", calls("forward", "forward"), ())


class Teller(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x, state = self.lstm(self.embed(ids), state)
        return self.head(x[:, -1:]), state


def _lstm(stage: Stage) -> Program:
    model = Teller().eval()

    @torch.no_grad()
    def run(stage: Stage) -> Sequence[Tensor]:
        new, made = stage.put(tokens(8, 2)), []
        state: tuple[Tensor, Tensor] | None = None
        for _ in range(STEPS):
            with stage.call():
                out, state = model(new, state)
                new = out.argmax(-1)
                stage.keep(recurrent_state=state)
            made.append(new)
        return made

    return Program(run, (model,))


class Quux(nn.Module):
    """An LSTM of one layer, a token at a time, its states in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.t1 = nn.Embedding(VOCABULARY, WIDTH)
        self.u2, self.v3 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.w4 = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: Tensor, box: dict[str, Tensor]) -> Tensor:
        for x in self.t1(ids).unbind(1):
            i, f, g, o = (self.u2(x) + self.v3(box["h"])).chunk(4, -1)
            box["c"] = torch.sigmoid(f) * box["c"] + torch.sigmoid(i) * torch.tanh(g)
            box["h"] = torch.sigmoid(o) * torch.tanh(box["c"])
        return self.w4(box["h"])  # type: ignore[no-any-return]


def _linears(stage: Stage) -> Program:
    model = Quux().eval()

    @torch.no_grad()
    def run(stage: Stage) -> Sequence[Tensor]:
        box = {name: torch.zeros(2, WIDTH, device=stage.device) for name in "hc"}
        stage.keep(recurrent_state=box.values())
        new, made = stage.put(tokens(6, 2)), []
        for _ in range(STEPS):
            with stage.call():
                new = model(new, box).argmax(-1, keepdim=True)
                stage.keep(recurrent_state=box.values())
            made.append(new)
        return [*made, *box.values()]

    return Program(run, (model,))


def _gru_cell(stage: Stage) -> Program:
    cell, head = nn.GRUCell(6, WIDTH), nn.Linear(WIDTH, 1)

    @torch.no_grad()
    def run(stage: Stage) -> Sequence[Tensor]:
        state = torch.zeros(3, WIDTH, device=stage.device)
        stage.keep(recurrent_state=[state])
        made: list[Tensor] = []
        for x in stage.put(numbers(STEPS, 3, 6)):
            with stage.call():
                state = cell(x, state)
                made.append(head(state))
                stage.keep(recurrent_state=[state])
        return [*made, state]

    return Program(run, (cell, head))


def _regression(stage: Stage) -> Program:
    """Nothing is kept between calls: each sequence starts anew."""
    lstm, head = nn.LSTM(6, WIDTH, batch_first=True), nn.Linear(WIDTH, 1)

    @torch.no_grad()
    def run(stage: Stage) -> Sequence[Tensor]:
        made: list[Tensor] = []
        for seed in (7, 8):
            x = stage.put(numbers(3, 9, 6, seed=seed))
            with stage.call():
                made.append(head(lstm(x)[0][:, -1]))
        return made

    return Program(run, (lstm, head))


MODELS = (
    Model("lstm-language-model", _lstm, WRITES),
    Model("quux-linears-lstm", _linears, WRITES),
    Model("gru-cell-loop", _gru_cell, STEPPING),
    Model("lstm-regression", _regression, SEQUENCES),
)
