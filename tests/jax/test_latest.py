"""The latest graph, in programs that use both frontends."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("jax")

import genie_jax
import jax.numpy as jnp
import numpy as np
import torch

import genie
from genie.errors import CaptureError


@pytest.fixture(autouse=True)
def local(fresh_runtime: None) -> None:
    genie.init(backend="local")


def operations() -> list[str]:
    return [node.operation for node in genie.get_graph().nodes()]


def sine(x: Any) -> Any:
    return jnp.sin(x)


def cosine(x: Any) -> Any:
    return jnp.cos(x)


def tanh() -> None:
    with genie.capture():
        torch.tanh(torch.ones(2))


def test_it_is_the_last_one_whoever_captured_it() -> None:
    with pytest.raises(CaptureError, match="no graph"):
        genie.get_graph()
    decorated = genie_jax.remote(sine)
    decorated(np.ones(2, np.float32))
    assert operations() == ["aten::sin"]
    tanh()
    assert operations()[-1] == "aten::tanh"
    genie.run(cosine, jnp.ones(2), frontend="jax")
    assert operations() == ["aten::cos"]
    decorated(np.ones(2, np.float32))  # known already
    assert operations() == ["aten::sin"]
    genie.run(torch.exp, torch.ones(2), frontend="pytorch")
    assert operations() == ["aten::exp"]


def test_operators_that_go_on_after_a_program_are_later() -> None:
    x = torch.ones(2, device="remote_accelerator")
    y = x + 1
    genie_jax.remote(sine)(np.ones(2, np.float32))
    assert operations() == ["aten::sin"]
    z = y * 2
    assert operations()[-1] == "aten::mul"
    assert z.tolist() == [4, 4]


def test_a_shutdown_forgets_it() -> None:
    genie_jax.remote(sine)(np.ones(2, np.float32))
    genie.shutdown()
    genie.init(backend="local")
    with pytest.raises(CaptureError, match="no graph"):
        genie.get_graph()
