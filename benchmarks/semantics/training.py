"""Training: two steps, each captured with its forward pass, its gradients and its update, which are three calls here.

An optimizer's moments are state; parameters are weights, though they are written to. So are the running statistics of a
normalization: they are buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from semantics.ingredients import TEXT, built, numbers, text
from semantics.stages import Stage
from semantics.truth import Model, Program, Tower, Truth, calls

STEPS = 2
STEP = ("forward", "backward", "optimizer")
FORWARDS = (0, 3)


def _truth(workload: str, modality: str) -> Truth:
    return Truth(workload, calls(*STEP * STEPS), (Tower("", modality, calls=FORWARDS),))


def _moments(optimizer: Optimizer) -> list[Tensor]:
    return [
        each
        for state in optimizer.state.values()
        for each in state.values()
        if isinstance(each, Tensor) and each.dim() > 0
    ]


def _trained(model: Any, loss_of: Any, optimizer: Any) -> Program:
    """``loss_of(stage, seed)`` is a forward pass."""
    model.train()

    def run(stage: Stage) -> Sequence[Tensor]:
        updates = optimizer(model.parameters())
        losses: list[Tensor] = []
        for step in range(STEPS):
            updates.zero_grad()
            given = loss_of(stage, step)
            with stage.region():
                with stage.call():
                    loss = given()
                with stage.call():
                    loss.backward()
                with stage.call():
                    updates.step()
                    stage.keep(recurrent_state=_moments(updates))
            losses.append(loss.detach())
        return [*losses, *(parameter.detach() for parameter in model.parameters())]

    return Program(run, (model,))


def _bert(stage: Stage) -> Program:
    dropped = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    model = built("BertForSequenceClassification", "BertConfig", {**TEXT, **dropped, "num_labels": 3})

    def forward(stage: Stage, seed: int) -> Any:
        given = {name: stage.put(tensor) for name, tensor in text(seed=seed).items()}
        labels = stage.put(torch.tensor([1, 2]))
        return lambda: model(**given, labels=labels).loss

    return _trained(model, forward, lambda parameters: AdamW(parameters, lr=1e-3))


def _cnn(stage: Stage) -> Program:
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
    )

    def forward(stage: Stage, seed: int) -> Any:
        x, y = stage.put(numbers(4, 3, 16, 16, seed=seed)), stage.put(torch.tensor([0, 1, 2, 3]))
        return lambda: F.cross_entropy(model(x), y)

    return _trained(model, forward, lambda parameters: SGD(parameters, lr=0.05, momentum=0.9))


def _gpt2(stage: Stage) -> Program:
    """With labels and gradients a causal model is trained: no prompt is read."""
    settings = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    model = built("GPT2LMHeadModel", "GPT2Config", {**settings, "bos_token_id": 1, "eos_token_id": 2})

    def forward(stage: Stage, seed: int) -> Any:
        ids = stage.put(text(seed=seed)["input_ids"])
        return lambda: model(input_ids=ids, labels=ids, use_cache=False).loss

    return _trained(model, forward, lambda parameters: AdamW(parameters, lr=1e-3))


def _by_hand(stage: Stage) -> Program:
    """Leaves that belong to no module, and no optimizer but a line."""
    shapes = {"w1": (12, 24), "b1": (24,), "w2": (24, 3)}
    leaves = {name: stage.put(torch.randn(shape) * 0.3).requires_grad_() for name, shape in shapes.items()}

    def run(stage: Stage) -> Sequence[Tensor]:
        losses: list[Tensor] = []
        for step in range(STEPS):
            x, y = stage.put(numbers(8, 12, seed=step)), stage.put(torch.arange(8) % 3)
            with stage.region():
                with stage.call():
                    hidden = torch.tanh(x @ leaves["w1"] + leaves["b1"])
                    loss = F.cross_entropy(hidden @ leaves["w2"], y)
                with stage.call():
                    loss.backward()
                with stage.call(), torch.no_grad():
                    for p in leaves.values():
                        assert p.grad is not None
                        p -= 0.1 * p.grad
                        p.grad = None
            losses.append(loss.detach())
        return [*losses, *leaves.values()]

    return Program(run, tensors=leaves)


MODELS = (
    Model("bert-adamw", _bert, _truth("text_encoder", "text"), ("transformers",), "transformers"),
    Model("cnn-sgd", _cnn, _truth("vision", "vision")),
    Model("gpt2-adamw", _gpt2, _truth("language_model", "text"), ("transformers",), "transformers"),
    Model("mlp-by-hand", _by_hand, _truth("tabular", "tabular")),
)
