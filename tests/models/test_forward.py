"""Inference: outputs bit-equal to the CPU's."""

from __future__ import annotations

import pytest
from models import runs
from models.architectures import ALL, Architecture
from models.compare import assert_equal, moved, remote

pytestmark = pytest.mark.models


@pytest.mark.parametrize("architecture", ALL, ids=lambda a: a.name)
def test_forward(architecture: Architecture) -> None:
    model, batch = architecture.build(), architecture.batch()
    expected = runs.forward(model, batch)
    assert len(expected) > 2
    assert_equal(expected, runs.forward(remote(model), moved(batch)))
