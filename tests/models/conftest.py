"""Models here and on a node, side by side."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
import transformers


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Kernels add up in another order with another number of threads; a node in its own process has one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    yield
    torch.set_num_threads(before)
