from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lineage.mortals import Mortals, recovered, terms

from genie.remote import RemoteBackend
from genie.testing import Caller


@pytest.fixture
def mortals() -> Iterator[Callable[..., Mortals]]:
    made: list[Mortals] = []

    def make(count: int = 1, **options: Any) -> Mortals:
        made.append(Mortals(count, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[..., list[Caller]]]:
    """A group of sessions, one on each node."""
    made: list[RemoteBackend] = []

    def make(nodes: Mortals, count: int = 1, **more: Any) -> list[Caller]:
        made.append(nodes.backend())
        sessions = recovered(made[-1], made[-1].devices()[:count], terms(tmp_path / "kept", **more))
        return [Caller(session) for session in sessions]

    yield make
    for backend in made:
        backend.close()
