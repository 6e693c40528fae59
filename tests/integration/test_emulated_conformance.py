"""The suite, with the local backend's kernels behind an emulated device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from genie.device import Cluster, Device
from genie.emulate import EmulatedBackend
from genie.errors import OutOfMemory
from genie.graph import Graph, Input, Ref
from genie.schedule.cost import RooflineCostModel
from genie.testing import BackendSuite
from genie.testing.plans import Caller, node, spec
from genie_backend_local import LocalBackend

DEVICES = (Device("gpu0", "GPU", 1, 10, 25), Device("gpu1", "GPU", 1 / 1024, 5, 25))
DOUBLED = Graph((spec(1000),), (Input(0),), (node(0, "aten::add_.Tensor", [Ref(0), Ref(0), 1], [-1], mutates=[0]),), ())


class TestEmulatedOverLocal(BackendSuite):
    @pytest.fixture
    def backend(self) -> Iterator[EmulatedBackend]:
        backend = EmulatedBackend(Cluster(devices=DEVICES), LocalBackend, RooflineCostModel(), timeout=20.0)
        yield backend
        backend.close()

    def test_memory_that_two_devices_share_is_written_by_neither(self, backend: EmulatedBackend) -> None:
        source, target = (backend.connect(device) for device in backend.devices())
        here, there = Caller(source), Caller(target)
        value = here.put([1.0] * 1000)
        inlet = target.inlet("gpu0")
        source.send(source.outlet(inlet), value)
        arrived = there.handles()
        target.receive(inlet, 0, arrived)
        for caller, handle in ((here, value), (there, arrived)):
            caller.run(DOUBLED, [handle])
        there.run(DOUBLED, [arrived])
        assert here.get(value) == [2.0] * 1000
        assert there.get(arrived) == [4.0] * 1000

    def test_sessions_of_a_device_share_its_memory(self, backend: EmulatedBackend) -> None:
        device = backend.devices()[1]
        one, other = Caller(backend.connect(device)), Caller(backend.connect(device))
        held = one.put([0.0] * 150_000)
        assert len(one.get(held)) == 150_000
        refused = other.put([0.0] * 150_000)
        with pytest.raises(
            OutOfMemory, match="needs 600000 bytes, 600000 of the device's 1048576 are in use"
        ) as caught:
            other.get(refused)
        assert caught.value.device == "gpu1"
        one.session.free([held])
        one.session.synchronize()
        assert len(other.get(other.put([0.0] * 150_000))) == 150_000

    def test_a_session_that_ends_gives_its_memory_back(self, backend: EmulatedBackend) -> None:
        device = backend.devices()[1]
        for _ in range(3):
            caller = Caller(backend.connect(device))
            assert len(caller.get(caller.put([0.0] * 200_000))) == 200_000
            caller.session.close()
