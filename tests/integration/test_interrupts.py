"""Ctrl-C at any moment in our code, in a program that catches it and goes on, as a notebook does."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch

import genie

from . import tiny_lm
from .conftest import Node

DEVICE = "remote_accelerator"
_OURS = (f"{os.sep}genie{os.sep}", f"{os.sep}genie_")


def interrupted(at: int, work: Callable[..., Any], *args: Any) -> bool:
    """Do ``work`` with a KeyboardInterrupt at the ``at``-th moment within our code. Whether it came to that.

    The moments are those at which the interpreter looks for signals: when a function of Python begins, and when one
    of C has returned.
    """
    left = at

    def watch(frame: FrameType, event: str, _: Any) -> None:
        nonlocal left
        if event in ("call", "c_return") and any(part in frame.f_code.co_filename for part in _OURS):
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        work(*args)
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(before)
    return False


@pytest.fixture(params=["node", "local"])
def start(request: pytest.FixtureRequest, node: Node, user: Callable[..., None]) -> Callable[[], None]:
    """Connects anew, to a node or in process."""

    def connect() -> None:
        if request.param == "node":
            user(node)
        else:
            genie.shutdown()
            genie.init(backend="local")

    return connect


def test_in_generation(start: Callable[[], None]) -> None:
    """Afterwards results are right, and the session is the same."""
    expected = tiny_lm.generate(tiny_lm.model(), count=4)
    start()
    model = tiny_lm.model().to(DEVICE)
    assert tiny_lm.generate(model, count=4) == expected
    at = 0
    while interrupted(at, tiny_lm.generate, model, tiny_lm.PROMPT, 4):
        at += 1 + at // 24  # each of the first moments, then fewer and fewer
        for _ in range(2):
            assert tiny_lm.generate(model, count=4) == expected, f"after an interrupt at moment {at}"
    assert at > 60
    assert torch.ones(1, device=DEVICE).item() == 1.0


def test_in_a_loop_on_the_node(start: Callable[[], None]) -> None:
    """The loop ends with the program's call; what is begun afterwards is right."""

    class Logits(torch.nn.Module):
        def __init__(self, lm: torch.nn.Module) -> None:
            super().__init__()
            self.lm = lm

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.lm(ids)[0]
            return logits

    def generate(lm: torch.nn.Module) -> list[int]:
        tokens: list[list[int]] = genie.generate(Logits(lm), tiny_lm.PROMPT, max_new_tokens=12).tolist()
        return tokens[0][tiny_lm.PROMPT.shape[1] :]

    expected = tiny_lm.generate(tiny_lm.model(), count=12)
    start()
    model = tiny_lm.model().to(DEVICE)
    assert generate(model) == expected
    at = 0
    while interrupted(at, generate, model):
        at += 1 + at // 8
        for _ in range(2):
            assert generate(model) == expected, f"after an interrupt at moment {at}"
    assert at > 150
    assert torch.ones(1, device=DEVICE).item() == 1.0


def test_in_upload(start: Callable[[], None]) -> None:
    """The model is whole: what has not moved can be moved again."""
    expected = tiny_lm.generate(tiny_lm.model(), count=2)
    start()
    at = 0
    while True:
        model = tiny_lm.model()
        if not interrupted(at, model.to, DEVICE):
            break
        at += 1 + at // 8
        model.to(DEVICE)
        assert tiny_lm.generate(model, count=2) == expected, f"after an interrupt at moment {at}"
    assert at > 60
    assert tiny_lm.generate(model, count=2) == expected
