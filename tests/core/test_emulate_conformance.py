"""An emulated device is a device like any other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from genie.device import Cluster, Device
from genie.emulate import EmulatedBackend
from genie.schedule.cost import RooflineCostModel
from genie.testing import BackendSuite, NullBackend

DEVICES = (Device("gpu0", "GPU", 1, 10, 25), Device("gpu1", "GPU", 1, 5, 25))


class TestEmulatedOverNull(BackendSuite):
    @pytest.fixture
    def backend(self) -> Iterator[EmulatedBackend]:
        backend = EmulatedBackend(Cluster(devices=DEVICES), NullBackend, RooflineCostModel(), timeout=10.0)
        yield backend
        backend.close()
