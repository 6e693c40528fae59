"""The CNN stream on two nodes: stages side by side, values from node to node, the client out of their way."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import genie
from disaggregation import forms
from disaggregation.modes import Mode
from disaggregation.programs import Pictures, best, normalised

IN_FLIGHT = 6
FIRST, SECOND = "node0", "node1"


class Classifier(nn.Module):
    """Decoded pictures (n, 3, side, side), 8 bits a colour → (2, n), as the stream's program computes it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.normalise, self.best = Normalise(), Best()
        self.model = model

    def forward(self, pictures: Tensor) -> Tensor:
        result: Tensor = self.best(self.model(self.normalise(pictures)).logits)
        return result


class Normalise(nn.Module):
    def forward(self, pictures: Tensor) -> Tensor:
        return normalised(pictures)


class Best(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return best(logits)


def pinned(classifier: Classifier) -> Classifier:
    """Its first half is to run on the first node, the rest on the second: by the user's word."""
    net = classifier.model.resnet
    for module in (classifier.normalise, net.embedder, *net.encoder.stages[:2]):
        genie.mark(module, device=FIRST)
    for module in (*net.encoder.stages[2:], net.pooler, classifier.model.classifier, classifier.best):
        genie.mark(module, device=SECOND)
    return classifier


def modes(work: Pictures, native: nn.Module) -> dict[str, Mode]:
    plain = Classifier(native)
    halves = pinned(copy.deepcopy(plain))
    one, two = genie.devices()[:1], genie.devices()[:2]

    def run(program: nn.Module, devices: Any) -> Tensor:
        return torch.cat(list(genie.map(program, work.inputs(), devices=devices, in_flight=IN_FLIGHT)), 1)

    moves = forms.form(work, "full")
    made = [
        Mode("local", "native PyTorch", work, lambda: torch.cat([plain(*each) for each in work.inputs()], 1), None),
        Mode("one node", "several batches under way on one node", work, lambda: run(plain, one), moves, 0),
        Mode("two nodes", "… on two, as the scheduler splits the network", work, lambda: run(plain, two), moves),
        Mode(
            "two, pinned",
            "… on two, cut after the second stage by the user",
            work,
            lambda: run(halves, two),
            moves,
            forms.between(work),
        ),
    ]
    return {mode.name: mode for mode in made}
