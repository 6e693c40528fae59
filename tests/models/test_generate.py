"""Unmodified ``generate()``: the CPU's tokens, and the logits they were chosen from; and by the node's own loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import runs
from models.architectures import GENERATING, Architecture, named
from models.compare import assert_equal, moved, remote

import genie
from genie_pytorch import decode_loop

pytestmark = pytest.mark.models

STRATEGIES: dict[str, dict[str, Any]] = {
    "sampled": {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 0.8},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampled beams": {"do_sample": True, "num_beams": 2},
    "several": {"do_sample": True, "num_return_sequences": 3},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
    "penalties": {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
}


def assert_generates(architecture: Architecture, **options: Any) -> None:
    model, inputs = architecture.build(), architecture.inputs()
    expected = runs.generate(model, inputs, **options)
    assert_equal(expected, runs.generate(remote(model), moved(inputs), **options))


@pytest.mark.parametrize("architecture", GENERATING, ids=lambda a: a.name)
def test_greedy(architecture: Architecture) -> None:
    assert_generates(architecture, do_sample=False)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategy(name: str, strategy: str) -> None:
    assert_generates(named(name), **STRATEGIES[strategy])


# They keep state in modules, upload an index list in each step, or look at a mask of their own making.
STEP_BY_STEP = {"recurrent-gemma", "falcon", "bart"}


def assert_loops(architecture: Architecture, **options: Any) -> None:
    model, inputs = architecture.build(), architecture.inputs()
    if "grouped_mm" in model.get_experts_implementation().values():
        model.set_experts_implementation("batched_mm")
    there = remote(model)
    length = {"max_new_tokens": 20, "min_new_tokens": 20, "pad_token_id": 0}
    torch.manual_seed(11)
    expected = model.generate(**inputs, **length, **options)
    before = genie.get_stats().get("loop_iterations", 0)
    torch.manual_seed(11)
    found = there.generate(**moved(inputs), **length, **options, custom_generate=decode_loop)
    assert found.tolist() == expected.tolist()
    looped = genie.get_stats().get("loop_iterations", 0) - before
    assert looped == 0 if architecture.name in STEP_BY_STEP else looped >= 8


@pytest.mark.parametrize("architecture", GENERATING, ids=lambda a: a.name)
def test_greedy_in_a_loop(architecture: Architecture) -> None:
    assert_loops(architecture, do_sample=False)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("strategy", ["sampled", "several", "static cache", "penalties"])
def test_strategy_in_a_loop(name: str, strategy: str) -> None:
    assert_loops(named(name), **STRATEGIES[strategy])
