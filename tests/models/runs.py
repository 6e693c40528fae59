"""What is done with a model, the same on the CPU and on the device. Everything comes back to be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from models.compare import tensors
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

STEPS = 3
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "adamw": lambda parameters: AdamW(parameters, lr=1e-3),
    "sgd": lambda parameters: SGD(parameters, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=1e-2),
}


@torch.no_grad()
def forward(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return tensors(model(**batch, output_hidden_states=True))


def generate(model: Any, inputs: Mapping[str, Tensor], **options: Any) -> dict[str, Tensor]:
    if "grouped_mm" in model.get_experts_implementation().values():
        # Left alone, generate() takes other kernels on a CPU than on any other device.
        model.set_experts_implementation("batched_mm")
    torch.manual_seed(11)
    length = {"max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 0}
    return tensors(model.generate(**inputs, **length, **options, return_dict_in_generate=True, output_logits=True))


def train(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    optimizer: str,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, Tensor]:
    """Losses and gradients of all steps; parameters, buffers and the optimizer's state after the last."""
    model.train()
    torch.manual_seed(5)
    seen: dict[str, Tensor] = {}
    updates = OPTIMIZERS[optimizer](model.parameters())
    for step in range(STEPS):
        updates.zero_grad()
        with precision():
            loss = model(**batch).loss
        loss.backward()
        seen[f"{step} loss"] = loss.detach()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                seen[f"{step} gradient of {name}"] = parameter.grad.detach().clone()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        updates.step()
    for index, state in updates.state_dict()["state"].items():
        seen |= {f"{key} of {index}": value for key, value in state.items() if value is not None and value.dim() > 0}
    return seen | {name: value.detach() for name, value in model.state_dict().items()}
