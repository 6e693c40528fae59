"""Pieces of recovery by themselves: bindings for a session that did not see the earlier ones, values under way, the
budget, and where a session may go."""

from __future__ import annotations

import contextlib
import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genie.backoff import LONGEST
from genie.bindings import Prediction, parameters
from genie.device import Device
from genie.errors import BackendUnavailable
from genie.graph import Graph
from genie.lineage import budget
from genie.lineage.budget import Budget
from genie.lineage.flight import Flight
from genie.lineage.log import Execute
from genie.lineage.member import Inlet, Member
from genie.lineage.places import Places, alike
from genie.remote import NodeServer, RemoteBackend
from genie.remote.greeting import Wish
from genie.schedule import Scheduler
from genie.testing import MemoryTransport, NullBackend, single
from genie.testing.plans import spec
from genie.wire.messages import Waiting

DEVICE = Device(id="gpu", type="GPU", memory_gb=1, compute_tflops=1, hardware="H, 2 cores, 1 threads, torch 2, here")
GRAPH: Graph = single("aten::add.Tensor", [spec(2), spec(2)], spec(2))
WORDS = len(parameters(GRAPH)) + 3

_vectors = st.lists(
    st.tuples(st.lists(st.integers(0, (1 << 64) - 1), min_size=WORDS, max_size=WORDS), st.booleans()), max_size=12
)


@given(_vectors, st.integers(0, 12))
def test_bindings_mean_the_same_to_a_session_that_begins_at_a_checkpoint(
    vectors: list[tuple[list[int], bool]], at: int
) -> None:
    """Whatever the sender remembers; ``anew`` is what one sends that was interrupted."""
    backend = NullBackend()
    plan = Scheduler(devices=backend.devices()).schedule(GRAPH)
    member = Member(0, backend.connect(backend.devices()[0]), DEVICE)  # type: ignore[arg-type]
    assert member.load(plan) == 0
    sender = Prediction(2, parameters(GRAPH))
    sent = [sender.encode(words, anew) for words, anew in vectors]
    member.follow(Execute(0, 0, bindings, False) for bindings in sent[:at])
    member.move(backend.connect(backend.devices()[0]), member.device)  # type: ignore[arg-type]
    receiver = Prediction(2, parameters(GRAPH))
    for (words, _), bindings in zip(vectors[at:], sent[at:], strict=True):
        assert receiver.decode(member.bound(0, bindings)) == tuple(words)
    backend.close()


def test_what_is_under_way() -> None:
    flight = Flight()
    there = Inlet(1, 0)
    assert not flight.anything
    flight.send(there)
    flight.send(there)
    flight.receive(there, 1)
    assert flight.anything
    flight.receive(there, 0)
    assert not flight.anything
    assert flight.sent(1, 2) == [2, 0]
    flight.expect(0, 7)
    flight.looked(1, 7)
    assert flight.anything
    flight.looked(0, 7)
    flight.expect(0, 8)
    flight.freed(0, [8])
    assert not flight.anything


def test_what_a_broken_off_execution_sent_is_not_waited_for_for_ever() -> None:
    flight = Flight()
    one, other = Inlet(0, 0), Inlet(1, 0)
    flight.send(one)
    for position in range(2000):
        flight.send(other)
        flight.receive(other, position)
    assert not flight.anything


def test_a_budget_ends_and_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(budget.time, "sleep", pauses.append)
    its = Budget(5, 100.0)
    assert [its.again() for _ in range(6)] == [True] * 4 + [False] * 2
    assert all(0.5 * 0.05 * 2**n <= pause <= 0.05 * 2**n for n, pause in enumerate(pauses))
    its.renew()
    assert its.again()
    its.spend(100.0)
    assert not its.again()
    patient = Budget(5000, 1e6)
    assert all(patient.again() for _ in range(2000))
    assert max(pauses) <= LONGEST


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"id": "other", "hardware": "H, 2 cores, 1 threads, torch 2, there"}, True),
        ({"hardware": "H, 64 cores, 1 threads, torch 2, there"}, True),
        ({"hardware": "I, 2 cores, 1 threads, torch 2, there"}, False),
        ({"hardware": "H, 2 cores, 8 threads, torch 2, there"}, False),
        ({"hardware": "H, 2 cores, 1 threads, torch 3, there"}, False),
        ({"type": "CPU"}, False),
    ],
)
def test_devices_that_compute_the_same(change: dict[str, str], same: bool) -> None:
    assert alike(msgspec.structs.replace(DEVICE, **change), DEVICE) is same


def test_the_place_it_had_comes_first_then_one_that_is_free() -> None:
    tried: list[str] = []
    devices = tuple(msgspec.structs.replace(DEVICE, id=name) for name in "abcd")

    class Down(NullBackend):
        def devices(self) -> tuple[Device, ...]:
            return devices

        def connect(self, device: Device) -> None:  # type: ignore[override]
            tried.append(device.id)
            raise BackendUnavailable("down")

    places = Places(Down())
    with pytest.raises(BackendUnavailable, match="no node could take the place of c"):
        places.connect(devices[2], (devices[0],))
    assert tried == ["c", "b", "d", "a"]
    assert places.tried() == "c: down; b: down; d: down; a: down"


def test_another_node_is_asked_before_one_that_is_full_is_waited_for() -> None:
    """And when all are full the one it was on is waited for."""
    transport = MemoryTransport(stall_timeout=10.0)
    addresses = ["place:1", "place:2"]
    waits: list[Waiting] = []
    came = threading.Event()
    wish = Wish(60.0, on_wait=lambda place: (waits.append(place), came.set()))
    with contextlib.ExitStack() as stack:
        for address in addresses:
            stack.enter_context(NodeServer(NullBackend(), transport, address, max_sessions=1))
        first, patient = (RemoteBackend("memory", transport, addresses, wish=wish, timeout=10.0) for _ in range(2))
        stack.callback(first.close)
        stack.callback(patient.close)
        here, there = patient.devices()
        holder = first.connect(here)
        places = Places(patient)
        _, place = places.connect(here, ())
        assert place == there and not waits
        assert "has 1 of 1 sessions" in places.tried()

        leaving = threading.Thread(target=lambda: came.wait(30.0) and holder.close())
        leaving.start()
        _, place = Places(patient).connect(here, ())
        leaving.join(30.0)
        assert place == here and waits
