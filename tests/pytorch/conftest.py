"""Every test here runs on the local backend, in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import genie
from genie import runtime


@pytest.fixture(autouse=True)
def local_backend() -> Iterator[None]:
    if runtime.current().settings.backend != "local":
        genie.shutdown()
    torch.manual_seed(0)
    yield
    assert not genie.is_capturing()


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """Nothing compiled before, and nothing left behind."""
    import torch._dynamo

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
