"""A session on the CPU, alone and beside the reference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from local.both import Both

from genie_backend_local import LocalBackend, LocalSession


@pytest.fixture
def backend() -> Iterator[LocalBackend]:
    backend = LocalBackend()
    yield backend
    backend.close()


@pytest.fixture
def session(backend: LocalBackend) -> LocalSession:
    return backend.connect(backend.devices()[-1])


@pytest.fixture
def both(session: LocalSession) -> Both:
    return Both(session)
