"""Every program here is recorded on the local backend, in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from structlog.testing import capture_logs

import genie
from genie import runtime


@pytest.fixture(autouse=True)
def local_backend() -> Iterator[None]:
    if runtime.current().settings.backend != "local":
        genie.shutdown()
        genie.init(backend="local")
    torch.manual_seed(0)
    yield
    assert not genie.is_capturing()


@pytest.fixture(autouse=True)
def no_complaints() -> Iterator[None]:
    """No pattern is left out, and no two disagree with nothing between them; a test that wants that looks itself."""
    with capture_logs() as logs:
        yield
    complaints = [entry for entry in logs if entry["event"] in ("pattern left out", "patterns disagree")]
    assert complaints == []
