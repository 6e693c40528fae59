"""The protocol over a simulated network, in virtual time: the same packets for the same seed, everywhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from dpdk.simulator import SANITIZERS, build, simulate

BAD = {"loss": 0.05, "duplicate": 0.02, "reorder": 0.05}  # each way
FULL = bool(os.environ.get("GENIE_TEST_FULL"))
SCENARIOS = ("refusals", "negotiation", "versions", "dropping", "farewell", "tickets")
TIMEOUT = 1500.0 if FULL else 150.0
pytestmark = pytest.mark.timeout(max(TIMEOUT, 400.0))  # it compiles


@pytest.fixture(scope="module")
def simulator() -> Path:
    return build()


@pytest.fixture(scope="module")
def sanitized() -> Path:
    return build("-g", *SANITIZERS)


def test_messages_of_all_sizes_arrive_in_bad_weather(simulator: Path) -> None:
    """Bit-exact, and all memory is returned. ``GENIE_TEST_FULL=1`` sends a thousand messages up to 64 MB."""
    count, largest = (1000, 64 << 20) if FULL else (150, 8 << 20)
    seen = simulate(
        simulator, "transfer", timeout=TIMEOUT, messages=count, largest=largest, mss=8192, window=8 << 20, **BAD
    )
    assert seen["bytes"] > largest
    assert seen["resent"] > 0


@pytest.mark.parametrize("seed", range(1, 9))
def test_small_packets_and_small_windows(simulator: Path, seed: int) -> None:
    simulate(simulator, "transfer", seed=seed, messages=50, mss=100 * seed, window=10_000 * seed, **BAD)


def test_without_digests_where_both_sides_say_so(simulator: Path) -> None:
    simulate(simulator, "transfer", messages=50, digests=0, **BAD)
    simulate(simulator, "transfer", messages=50, digests=0, key=1, **BAD)


def test_foul_weather(simulator: Path) -> None:
    seen = simulate(simulator, "transfer", messages=60, loss=0.3, duplicate=0.3, reorder=0.5)
    assert seen["timeouts"] > 0


def test_forged_and_mutated_packets_change_nothing(simulator: Path) -> None:
    seen = simulate(simulator, "transfer", messages=200, forge=54, **BAD)
    assert seen["forged"] >= 1_000_000


def test_a_change_of_keys_loses_nothing(simulator: Path) -> None:
    for seed in range(1, 11):
        simulate(simulator, "transfer", seed=seed, key=1, messages=20, forge=2, **BAD)


@pytest.mark.parametrize("seed", range(1, 21))
def test_a_peer_that_dies_is_noticed_within_the_deadline(simulator: Path, seed: int) -> None:
    assert simulate(simulator, "death", seed=seed, **BAD)["noticed_s"] <= 11


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario(simulator: Path, scenario: str) -> None:
    simulate(simulator, scenario)


@pytest.mark.parametrize("scenario", [*SCENARIOS, "death"])
def test_a_scenario_sanitized(sanitized: Path, scenario: str) -> None:
    simulate(sanitized, scenario)


def test_bad_weather_and_forgeries_sanitized(sanitized: Path) -> None:
    count = 200 if FULL else 40
    seen = simulate(sanitized, "transfer", timeout=TIMEOUT, messages=count, forge=54 if FULL else 20, key=1, **BAD)
    assert seen["forged"] > (1_000_000 if FULL else 10_000)


def test_a_clean_network_costs_nothing_twice(simulator: Path) -> None:
    """Without loss nothing is sent again, and the window fills the wire of 1.25 GB/s (of virtual time) each way."""
    seen = simulate(simulator, "transfer", messages=40, largest=4 << 20, mss=8192, window=8 << 20)
    assert (seen["resent"], seen["timeouts"]) == (0, 0)
    assert seen["bytes"] / seen["seconds"] > 0.8 * 1.25e9


def test_the_same_seed_is_the_same_run(simulator: Path) -> None:
    runs = [simulate(simulator, "transfer", seed=3, messages=30, **BAD) for _ in range(2)]
    assert runs[0] == runs[1]
