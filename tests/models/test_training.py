"""Training with dropout: losses, gradients, parameters and buffers bit-equal to the CPU's, step by step."""

from __future__ import annotations

from typing import cast

import pytest
import torch
import transformers
from models import runs
from models.architectures import ALL, Architecture, named
from models.compare import assert_equal, moved, remote
from torch import Tensor

pytestmark = pytest.mark.models


def assert_trains(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    losses = [float(expected[f"{step} loss"]) for step in range(runs.STEPS)]
    assert len(set(losses)) == runs.STEPS
    assert_equal(expected, found)


@pytest.mark.parametrize("architecture", ALL, ids=lambda a: a.name)
def test_training(architecture: Architecture) -> None:
    model, batch = architecture.build(), architecture.batch()
    optimizer = sorted(runs.OPTIMIZERS)[ALL.index(architecture) % len(runs.OPTIMIZERS)]
    on_device = remote(model)
    assert_trains(runs.train(model, batch, optimizer), runs.train(on_device, moved(batch), optimizer))


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_recomputed_activations(name: str) -> None:
    """Dropout draws in the second forward what it drew in the first."""
    model, batch = named(name).build(), named(name).batch()
    cast(transformers.PreTrainedModel, model).gradient_checkpointing_enable()
    on_device = remote(model)
    assert_trains(runs.train(model, batch, "adamw"), runs.train(on_device, moved(batch), "adamw"))


@pytest.mark.parametrize("name", ["gpt2", "llama", "resnet"])
def test_mixed_precision(name: str) -> None:
    model, batch = named(name).build(), named(name).batch()
    on_device = remote(model)
    expected = runs.train(model, batch, "adamw", lambda: torch.autocast("cpu", torch.bfloat16))
    found = runs.train(on_device, moved(batch), "adamw", lambda: torch.autocast("remote_accelerator", torch.bfloat16))
    assert_trains(expected, found)


@pytest.mark.parametrize("name", ["resnet", "convnext", "segformer"])
def test_channels_last(name: str) -> None:
    """Kernels choose the layout of what they make; views after them must see that layout."""
    model, batch = named(name).build().to(memory_format=torch.channels_last), named(name).batch()
    batch["pixel_values"] = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
    on_device = remote(model)
    assert_trains(runs.train(model, batch, "sgd"), runs.train(on_device, moved(batch), "sgd"))
