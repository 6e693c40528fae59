"""Unmodified ``generate()``: the CPU's tokens, and the logits they were chosen from."""

from __future__ import annotations

from typing import Any

import pytest
from models import runs
from models.architectures import GENERATING, Architecture, named
from models.compare import assert_equal, moved, remote

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
