"""Emulated devices: their memory, their values, their errors, and how they begin and end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

import genie
from genie import emulate
from genie.bindings import Prediction, parameters
from genie.device import Cluster, Device, LinkSpec
from genie.emulate import EmulatedBackend
from genie.errors import (
    BackendUnavailable,
    ConfigError,
    GenieError,
    OutOfMemory,
    RemoteOpError,
    SchedulingError,
    SessionClosed,
)
from genie.graph import Graph, Input, Node, Ref
from genie.interfaces import Linked, Session
from genie.schedule import Scheduler
from genie.schedule.cost import RooflineCostModel
from genie.testing import NullBackend
from genie.testing.plans import Caller, node, pack, single, spec, unpack

KIB = 1 / (1 << 20)  # of a GiB


def cluster(*kib: float) -> Cluster:
    devices = tuple(Device(f"d{number}", "GPU", size * KIB, 1) for number, size in enumerate(kib))
    return Cluster(devices=devices, backend="emulated")


@pytest.fixture
def make() -> Iterator[Callable[..., EmulatedBackend]]:
    made: list[EmulatedBackend] = []

    def backend(*kib: float, timeout: float = 10.0) -> EmulatedBackend:
        made.append(EmulatedBackend(cluster(*kib), NullBackend, RooflineCostModel(), timeout))
        return made[-1]

    yield backend
    for each in made:
        each.close()


def sessions(backend: EmulatedBackend) -> list[Session]:
    return [backend.connect(device) for device in backend.devices()]


def put(session: Session, handle: int, size: int) -> None:
    session.upload(handle, spec(size, dtype="uint8"), bytes(size))


# --- memory ----------------------------------------------------------------------------------------


def test_each_device_has_the_memory_its_file_says(make):
    large, small = sessions(make(64, 4))
    for session in (large, small):
        put(session, 1, 3000)
        put(session, 2, 3000)
    assert len(large.fetch(2).data) == 3000
    with pytest.raises(OutOfMemory, match="3000 bytes needed, 1096 of 4096 free") as caught:
        small.fetch(2)
    assert caught.value.device == "d1"
    assert len(small.fetch(1).data) == 3000


def test_sessions_of_one_device_share_its_memory(make):
    backend = make(4)
    one, other = (backend.connect(backend.devices()[0]) for _ in range(2))
    put(one, 1, 3000)
    one.synchronize()
    put(other, 1, 3000)
    with pytest.raises(OutOfMemory):
        other.describe(1)
    one.free([1])
    one.synchronize()
    put(other, 2, 3000)
    assert other.describe(2).shape == (3000,)


def test_a_device_too_small_for_a_value_is_named_with_its_key(make):
    (session,) = sessions(make(4))
    put(session, 1, 5000)
    with pytest.raises(OutOfMemory, match=r"5000 bytes does not fit: d0 has 4096 bytes in all \(memory_gb: ") as caught:
        session.fetch(1)
    assert caught.value.device == "d0"


# --- values from device to device -------------------------------------------------------------------


def linked(source: Session, target: Session) -> tuple[int, object]:
    assert isinstance(source, Linked) and isinstance(target, Linked)
    inlet = target.inlet(source.device.id)
    return source.outlet(inlet), inlet


def test_values_arrive_by_their_position(make):
    source, target = sessions(make(64, 64))
    outlet, inlet = linked(source, target)
    for handle in (1, 2, 3):
        source.upload(handle, spec(2), pack([handle, 0]))
        source.send(outlet, handle)
    for handle, position in ((10, 2), (11, 0), (12, 1)):
        target.receive(inlet, position, handle)
    assert [unpack(target.fetch(handle).data)[0] for handle in (10, 11, 12)] == [3, 1, 2]


def test_what_is_sent_is_what_the_value_is_at_that_point(make):
    source, target = sessions(make(64, 64))
    outlet, inlet = linked(source, target)
    caller = Caller(source)
    value = caller.put([1, 2])
    in_place = Graph(
        (spec(2),), (Input(0),), (node(0, "aten::add_.Tensor", [Ref(0), Ref(0), 1], [-1], mutates=[0]),), ()
    )
    source.send(outlet, value)
    caller.run(in_place, [value])
    source.send(outlet, value)
    target.receive(inlet, 0, 1)
    target.receive(inlet, 1, 2)
    assert unpack(target.fetch(2).data) == [2, 4]
    assert unpack(source.fetch(value).data) == [2, 4]


def test_an_error_travels_in_place_of_its_value(make):
    source, target = sessions(make(64, 64))
    outlet, inlet = linked(source, target)
    caller = Caller(source)
    square, odd = caller.put([1] * 4, 2, 2), caller.put([1] * 9, 3, 3)
    failed = caller.run(single("aten::mm", [spec(2, 2), spec(3, 3)], spec(2, 2)), [square, odd])
    source.send(outlet, failed)
    target.receive(inlet, 0, 1)
    with pytest.raises(RemoteOpError, match="mat1 and mat2") as caught:
        target.fetch(1)
    assert caught.value.device == "d0"
    assert caught.value.op == "aten::mm"


def test_a_value_too_large_for_the_receiver(make):
    source, target = sessions(make(64, 2))
    outlet, inlet = linked(source, target)
    put(source, 1, 3000)
    source.send(outlet, 1)
    target.receive(inlet, 0, 1)
    with pytest.raises(OutOfMemory) as caught:
        target.fetch(1)
    assert caught.value.device == "d1"


def test_who_waits_for_a_session_that_ended_is_told(make):
    source, target = sessions(make(64, 64))
    _, inlet = linked(source, target)
    target.receive(inlet, 0, 1)
    source.close()
    with pytest.raises(RemoteOpError, match="the session that was to send ended") as caught:
        target.fetch(1)
    assert caught.value.kind == "ConnectionLost"


def test_closing_does_not_wait_for_what_will_never_come(make):
    source, target = sessions(make(64, 64))
    _, inlet = linked(source, target)
    target.receive(inlet, 0, 1)
    done = threading.Thread(target=target.close)
    done.start()
    done.join(10.0)
    assert not done.is_alive()
    with pytest.raises(SessionClosed):
        target.fetch(1)


def test_time_goes_on_when_a_session_ends_with_work_left(make):
    backend = make(64, 64)
    source, target = sessions(backend)
    _, inlet = linked(source, target)
    target.receive(inlet, 0, 1)
    put(target, 2, 100)
    target.close()
    put(source, 1, 100)
    source.synchronize()
    assert backend.report().seconds > 0


def test_devices_run_side_by_side(make):
    """One waits for a value that the other will send only later: were there one thread, nothing would move."""
    source, target = sessions(make(64, 64))
    outlet, inlet = linked(source, target)
    target.receive(inlet, 0, 1)
    put(source, 1, 10)
    assert source.describe(1).shape == (10,)
    source.send(outlet, 1)
    assert target.describe(1).shape == (10,)


# --- programs ---------------------------------------------------------------------------------------


def test_a_cost_model_that_fails_says_so(make):
    class Broken:
        name = "broken"

        def estimate_compute(self, node: Node, device: Device | None = None) -> float:
            raise KeyError("no such operator")

        def estimate_transfer(self, src: Device, dst: Device, bytes: int) -> float:
            return 0.0

    backend = EmulatedBackend(cluster(64), NullBackend, Broken(), 10.0)
    session = backend.connect(backend.devices()[0])
    with pytest.raises(SchedulingError, match=r"'broken' gives no times: KeyError.*no such operator"):
        session.load(Scheduler([session.device]).schedule(single("aten::neg", [spec(3)], spec(3))))
    backend.close()


def test_a_plan_that_was_refused_is_told_once(make):
    (session,) = sessions(make(64))
    caller = Caller(session)
    given = caller.put([1, 2, 3])
    unknown = caller.run(single("aten::nothing", [spec(3)], spec(3)), [given])
    with pytest.raises(GenieError, match="no operator aten::nothing"):
        session.fetch(unknown)
    assert caller.get(given) == [1, 2, 3]


# --- settings ---------------------------------------------------------------------------------------


@pytest.fixture
def null_is_local(fresh_runtime: None) -> Iterator[None]:
    genie.register_backend("local", lambda settings: NullBackend())
    yield
    from genie.plugins import registry

    genie.shutdown()
    registry.unregister("backend", "local")


FILE = """
cluster:
  devices:
    - {id: gpu0, type: GPU, memory_gb: 1, compute_tflops: 10, address: "10.0.0.1:8888"}
    - {id: gpu1, type: GPU, memory_gb: 2, compute_tflops: 20}
  links:
    - {source: gpu0, target: gpu1, gbps: 25, latency_ms: 0.2}
  backend: emulated
"""


def test_init_cluster_emulates_what_the_file_says(null_is_local, tmp_path):
    path = tmp_path / "emulated.yaml"
    path.write_text(FILE)
    genie.init_cluster(path)
    assert [device.id for device in genie.devices()] == ["gpu0", "gpu1"]
    assert genie.settings().nodes == ()
    plan = genie.Scheduler(genie.devices()[1:]).schedule(single("aten::neg", [spec(3)], spec(3)))
    (result,) = genie.execute(plan, [(spec(3), pack([1, 2, 3]))])
    assert unpack(result.data) == [-1, -2, -3]
    report = emulate.report()
    assert report.busy["gpu1"] > report.busy["gpu0"] == 0
    stats = genie.get_stats()
    assert stats["emulated_seconds"] == report.seconds
    assert stats["emulated_busy_seconds gpu1"] == report.busy["gpu1"]
    assert stats["emulated_bytes client to gpu1"] == 12
    text = str(report)
    assert "client → gpu1: 12 bytes, 1 value" in text
    assert "gpu0: 0.000 ms of work" in text
    emulate.reset()
    assert emulate.report().seconds == 0
    assert emulate.report().trace == ()
    genie.shutdown()
    with pytest.raises(ConfigError, match="nothing is emulated"):
        emulate.report()


def test_a_cluster_of_nodes_can_be_emulated_by_a_variable(null_is_local, tmp_path, monkeypatch):
    path = tmp_path / "cluster.yaml"
    path.write_text(FILE.replace("emulated", "tcp"))
    monkeypatch.setenv("GENIE_BACKEND", "emulated")
    monkeypatch.setenv("GENIE_CLUSTER", str(path))
    genie.init()
    assert [device.id for device in genie.devices()] == ["gpu0", "gpu1"]


def test_the_scheduler_knows_the_links_of_the_file(null_is_local, tmp_path):
    path = tmp_path / "emulated.yaml"
    path.write_text(FILE)
    genie.init_cluster(path)
    from genie.plugins import registry

    cost = registry.make("cost_model", "roofline", genie.settings())
    one, other = genie.devices()
    assert cost.estimate_transfer(one, other, 1000) == pytest.approx(0.2e-3 + 1000 / (25e9 / 8))
    assert cost.estimate_transfer(one, one, 1000) == 0


def test_nothing_to_emulate(fresh_runtime):
    with pytest.raises(ConfigError, match="has no cluster") as caught:
        genie.init(backend="emulated")
    assert "init_cluster" in caught.value.hint
    with pytest.raises(ConfigError, match=r"cluster\.devices"):
        genie.init_cluster(Cluster(backend="emulated"))


def test_a_backend_that_cannot_stand_in(fresh_runtime):
    class Plain:
        name = "plain"

    with pytest.raises(ConfigError, match="'plain' cannot stand in"):
        EmulatedBackend(cluster(1), Plain, RooflineCostModel()).devices()  # type: ignore[arg-type]


def test_a_device_that_is_not_emulated(make):
    with pytest.raises(BackendUnavailable, match="'gpu9'") as caught:
        make(1, 1).connect(Device("gpu9", "GPU", 1, 1))
    assert "d0, d1" in caught.value.hint


def test_devices_without_address_are_linked_by_their_networks(make):
    slow, fast = (Device(f"d{speed}", "GPU", 1, 1, network_gbps=speed) for speed in (1, 100))
    backend = EmulatedBackend(Cluster(devices=(slow, fast)), NullBackend, RooflineCostModel(), 10.0)
    one, other = backend.devices()
    assert one.address != other.address
    assert RooflineCostModel().estimate_transfer(one, other, 10**9) > 8.0
    backend.close()


def test_links_of_one_way_differ(make):
    links = (
        LinkSpec("client", "d0", gbps=1, latency_ms=0, oneway=True),
        LinkSpec("d0", "client", gbps=0.01, latency_ms=0, oneway=True),
    )
    backend = EmulatedBackend(Cluster(devices=cluster(64).devices, links=links), NullBackend, RooflineCostModel())
    (session,) = sessions(backend)
    put(session, 1, 1000)
    session.fetch(1)
    assert backend.report().seconds == pytest.approx(1000 / (1e9 / 8) + 1000 / (0.01e9 / 8))
    backend.close()


def test_words_of_parameters_reach_the_device(make):
    (session,) = sessions(make(64))
    graph = single("aten::add.Tensor", [spec(2), spec(2)], spec(2), 3)
    session.upload(1, spec(2), pack([1, 2]))
    number = session.load(Scheduler([session.device]).schedule(graph))
    session.execute(number, Prediction(2, parameters(graph)).encode([2, 1, 1, 5]))
    assert unpack(session.fetch(2).data) == [6, 12]
