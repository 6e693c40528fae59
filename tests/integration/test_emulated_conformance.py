"""The suite, with the local backend's kernels behind an emulated device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from genie.device import Cluster, Device
from genie.emulate import EmulatedBackend
from genie.schedule.cost import RooflineCostModel
from genie.testing import BackendSuite
from genie_backend_local import LocalBackend

DEVICES = (Device("gpu0", "GPU", 1, 10, 25), Device("gpu1", "GPU", 1, 5, 25))


class TestEmulatedOverLocal(BackendSuite):
    @pytest.fixture
    def backend(self) -> Iterator[EmulatedBackend]:
        backend = EmulatedBackend(Cluster(devices=DEVICES), LocalBackend(), RooflineCostModel(), timeout=20.0)
        yield backend
        backend.close()
