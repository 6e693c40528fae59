"""Threads that use one device at once."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

import genie_jax
from genie_jax import device

import genie
from genie.errors import UnsupportedOperation

WHILE = 0.2  # seconds, for another thread to come between where it may


def test_an_engine_has_one_place_whoever_asks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    genie.shutdown()
    engine = genie.api.engine()
    others: list[device.Place] = []
    other = threading.Thread(target=lambda: others.append(device.place_of(engine)))

    class Slow(device.Place):
        def __init__(self, engine: Any) -> None:
            if not other.ident:
                other.start()
                other.join(WHILE)
            super().__init__(engine)

    monkeypatch.setattr(device, "Place", Slow)
    mine = device.place_of(engine)
    other.join(10)
    assert others == [mine]


@pytest.mark.parametrize("kind", ["remote", "jax"])
def test_of_two_threads_that_donate_an_array_one_is_refused(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    step = genie_jax.remote(lambda x: x + 1, donate_argnums=0)
    make = genie_jax.remote(lambda x: x * 1)
    mine = make(np.ones(3, np.float32))
    step(make(np.ones(3, np.float32)))
    if kind == "jax":
        mine = mine.__jax_array__()
        make(mine)  # it is kept there
    made: list[Any] = []

    def also() -> None:
        try:
            made.append(np.asarray(step(mine)).tolist())
        except UnsupportedOperation as error:
            made.append(error)

    other = threading.Thread(target=also)
    run = device.Place.run

    def slow(place: device.Place, *given: Any) -> int:
        if not other.ident:
            other.start()
            other.join(WHILE)
        return run(place, *given)

    monkeypatch.setattr(device.Place, "run", slow)
    assert np.asarray(step(mine)).tolist() == [2, 2, 2]
    other.join(10)
    assert len(made) == 1 and "donated" in str(made[0])
    assert np.asarray(make(np.ones(2, np.float32))).tolist() == [1, 1]
