"""Links between devices: figures, calibration, observation, queues."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genie.device import Device
from genie.schedule import RooflineCostModel
from genie.schedule.links import Links, Reach, Transfers, waiting

HERE = Device(id="here", type="CPU", memory_gb=1, compute_tflops=1)
A = Device(id="a", type="GPU", memory_gb=1, compute_tflops=1, network_gbps=10, address="a:1")
B = Device(id="b", type="GPU", memory_gb=1, compute_tflops=1, network_gbps=1, address="b:1")
A2 = Device(id="a2", type="GPU", memory_gb=1, compute_tflops=1, network_gbps=10, address="a:1", index=1)
MEASURED = Reach(latency=2e-4, up=5e8, down=8e8)


def test_nothing_known_is_what_figures_say():
    plain, links = Transfers(), Links()
    for src, dst in ((HERE, A), (A, B), (A, A2), (A, A)):
        assert links.seconds(src, dst, 10**6) == plain.seconds(src, dst, 10**6)
    assert links.seconds(A, B, 10**9) == pytest.approx(8 / 0.9, rel=1e-4)  # the slower of both
    assert links.seconds(A, A, 10**9) == 0.0


def test_a_measured_link_has_two_speeds():
    links = Links(reaches={"a:1": MEASURED})
    assert links.seconds(HERE, A, 10**9) == pytest.approx(2 + 2e-4)
    assert links.seconds(A, HERE, 10**9) == pytest.approx(1.25 + 2e-4)
    assert links.seconds(A, A2, 10**9) == Transfers().seconds(A, A2, 10**9)


def test_between_two_nodes_the_slower_of_both_counts():
    links = Links(reaches={"a:1": MEASURED, "b:1": Reach(1e-3, 1e9, 1e7)})
    assert links.line(A, B) == (1e-3, 8e8)
    assert links.line(B, A) == (1e-3, 1e7)
    one = Links(reaches={"a:1": MEASURED})
    assert one.line(A, B) == (2e-4, pytest.approx(0.9e9 / 8))  # the one that was not measured is slower


@settings(max_examples=30, deadline=None)
@given(latency=st.floats(1e-5, 1e-2), speed=st.floats(1e6, 1e10), seed=st.integers(0, 100))
def test_what_is_observed_is_learnt(latency: float, speed: float, seed: int):
    links, rng = Links(), random.Random(seed)
    for _ in range(300):
        size = int(latency * speed * 10 ** rng.uniform(-2, 2))
        links.observe(A, B, size, (latency + size / speed) * rng.uniform(0.95, 1.05))
    for size in (0, int(latency * speed), int(latency * speed * 100)):
        assert links.seconds(A, B, size) == pytest.approx(latency + size / speed, rel=0.15)
    assert links.seconds(B, A, 10**6) == Transfers().seconds(B, A, 10**6)


def test_one_odd_transfer_moves_little():
    links = Links(reaches={"a:1": MEASURED})
    before = links.seconds(HERE, A, 10**6)
    links.observe(HERE, A, 10**6, 50 * before)
    assert links.seconds(HERE, A, 10**6) < 1.5 * before


def test_small_transfers_alone_tell_the_latency():
    links = Links()
    for _ in range(100):
        links.observe(A, B, 16, 5e-3)
    assert links.seconds(A, B, 16) == pytest.approx(5e-3, rel=0.05)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_observations_are_passed_over(seconds: float):
    links = Links()
    links.observe(A, B, 10, seconds)
    links.observe(A, B, -1, 1.0)
    assert links.seconds(A, B, 10**6) == Transfers().seconds(A, B, 10**6)


def test_a_new_measurement_replaces_what_was_observed():
    links = Links()
    for _ in range(50):
        links.observe(HERE, A, 10**6, 9.0)
    links.measured("a:1", MEASURED)
    assert links.line(HERE, A) == (2e-4, 5e8)


@pytest.mark.parametrize("bad", [{"latency": -1.0}, {"latency": float("nan")}, {"up": 0.0}, {"down": float("inf")}])
def test_impossible_links_are_refused(bad: dict[str, float]):
    with pytest.raises(ValueError):
        Reach(**{"latency": 1e-4, "up": 1e9, "down": 1e9, **bad})


def test_links_of_a_plan_name_its_devices_by_number():
    links = Links(reaches={"a:1": MEASURED}).links([HERE, A])
    assert [(link.source, link.target, link.bytes_per_second) for link in links] == [(0, 1, 5e8), (1, 0, 8e8)]


def test_a_cost_model_takes_links():
    model = RooflineCostModel(transfers=Links(reaches={"a:1": MEASURED}))
    assert model.estimate_transfer(HERE, A, 10**9) == pytest.approx(2 + 2e-4)


def test_a_queue_waits_as_pollaczek_and_khinchine_say():
    assert waiting(2.0, 0.0) == 0.0
    assert waiting(2.0, 0.5) == pytest.approx(2.0)  # M/M/1
    assert waiting(2.0, 0.5, variation=0.0) == pytest.approx(1.0)  # M/D/1
    assert waiting(1.0, 0.9, variation=2.0) == pytest.approx(9 * 2.5)
    for utilisation in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="steady state"):
            waiting(1.0, utilisation)


def test_a_queue_simulated_waits_as_long():
    """Arrivals at random, service times of two lengths."""
    rng = random.Random(5)
    clock = free = waited = 0.0
    services = [rng.choice([0.5, 1.5]) for _ in range(60_000)]
    mean = sum(services) / len(services)
    spread = (sum((each - mean) ** 2 for each in services) / len(services)) ** 0.5
    for service in services:
        clock += rng.expovariate(0.7)
        waited += max(free - clock, 0.0)
        free = max(free, clock) + service
    assert waited / len(services) == pytest.approx(waiting(mean, 0.7 * mean, spread / mean), rel=0.05)
