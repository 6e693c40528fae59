"""A user's programs whose nodes are killed: they go on, elsewhere or when the node is back, with the same results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import genie
from genie.errors import ConnectionLost

from . import tiny_lm
from .conftest import MakeNode, Node, Nursery, start_node

DEVICE = "remote_accelerator"


def _user(user: Callable[..., None], *nodes: Node, **settings: Any) -> None:
    user(*nodes, recovery=True, recovery_seconds=30.0, **settings)


def _recoveries() -> int:
    return int(genie.get_stats()["recoveries"])


def test_generation_goes_on_elsewhere(make_node: MakeNode, user: Callable[..., None]) -> None:
    expected = tiny_lm.generate(tiny_lm.model(), count=32)
    first, second = make_node(), make_node()
    _user(user, first, second)
    model = tiny_lm.model().to(f"{DEVICE}:0")
    tokens = []
    for token in tiny_lm.stream(model, count=32):
        tokens.append(token)
        if len(tokens) == 11:
            first.stop()
    assert tokens == expected
    assert _recoveries() == 1
