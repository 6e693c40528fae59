"""The suite every backend passes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from genie.testing import BackendSuite
from genie_backend_local import LocalBackend


class TestLocalBackend(BackendSuite):
    @pytest.fixture
    def backend(self) -> Iterator[LocalBackend]:
        backend = LocalBackend()
        yield backend
        backend.close()
