"""Ctrl-C at any line of ours, in a program that catches it and goes on, as a notebook does."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch

import genie
from genie.errors import GenieError

from . import tiny_lm
from .conftest import Node

DEVICE = "remote_accelerator"
_OURS = (f"{os.sep}genie{os.sep}", f"{os.sep}genie_")


def interrupted(model: tiny_lm.TinyLM, at: int) -> bool:
    """Generate, with a KeyboardInterrupt at the line of ours that comes ``at``-th. Whether it came to that."""
    left = at

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not any(part in frame.f_code.co_filename for part in _OURS):
            return None
        if event == "line":
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        tiny_lm.generate(model, count=4)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("backend", ["node", "local"])
def test_an_interrupt_anywhere_leaves_right_results_or_a_clear_error(
    node: Node, user: Callable[..., None], backend: str
) -> None:
    def start() -> tiny_lm.TinyLM:
        if backend == "node":
            user(node)
        else:
            genie.shutdown()
            genie.init(backend="local")
        return tiny_lm.model().to(DEVICE)

    expected = tiny_lm.generate(tiny_lm.model(), count=4)
    model = start()
    assert tiny_lm.generate(model, count=4) == expected
    at = ended = 0
    while interrupted(model, at):
        at += 1 + at // 12  # each of the first lines, then fewer and fewer
        try:
            for _ in range(2):
                assert tiny_lm.generate(model, count=4) == expected, f"after an interrupt at line {at}"
        except GenieError as error:
            ended += 1
            assert "interrupted" in str(error), f"after an interrupt at line {at}"
            model = start()
            assert tiny_lm.generate(model, count=4) == expected
    assert at > 50
    if backend == "local":
        assert not ended
    assert torch.ones(1, device=DEVICE).item() == 1.0
