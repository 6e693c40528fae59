"""A cost model that learns has plans made anew, in the background, where that is worth the moving."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from genie.device import Device
from genie.engines import SpreadEngine
from genie.graph import Graph, Input, Node, Ref, TensorSpec
from genie.interfaces import Session
from genie.schedule import Scheduler
from genie.testing import NullBackend
from genie.testing.null import NullSession
from genie.testing.plans import Caller
from genie.timing import Timing

X = TensorSpec((16, 16), "float32")
ROW = Timing("aten::mm", "", (), (), 1, 1.0, 1.0, 0.0, 1.0)


class Timed(NullSession):
    """A null session that says it timed one operator."""

    def __init__(self, device: Device) -> None:
        super().__init__(device, 1 << 30)

    def profile(self, share: float | None = None) -> Sequence[Timing]:
        return [ROW]


class Weather:
    """Says that one device is fast; which one, it learns."""

    name = "weather"

    def __init__(self, fast: str) -> None:
        self.fast = fast
        self.forecast = fast
        self.epoch = 0
        self.observed: list[tuple[str, Sequence[Timing]]] = []

    def estimate_compute(self, node: Node, device: Device | None = None) -> float:
        assert device is not None
        return 0.001 if device.id == self.fast else 1.0

    def estimate_transfer(self, src: Device, dst: Device, bytes: int) -> float:
        return 1e-3 + bytes / 1e6

    def observe(self, device: Device, rows: Sequence[Timing]) -> None:
        self.observed.append((device.id, rows))
        if self.forecast != self.fast:
            self.fast = self.forecast
            self.epoch += 1

    def save(self) -> None:
        raise NotImplementedError


def product(origin: str = "parameter") -> Graph:
    return Graph(
        (X, X, X),
        (Input(0, "w", origin), Input(1, "x", "input")),  # type: ignore[arg-type]
        (Node(0, "aten::mm", "", (Ref(0), Ref(1)), (2,)),),
        (2,),
    )


@pytest.fixture
def model() -> Weather:
    return Weather("null:0")


@pytest.fixture
def engine(model: Weather) -> SpreadEngine:
    sessions: list[Session] = [Timed(device) for device in NullBackend(devices=2).devices()]
    scheduler = Scheduler([session.device for session in sessions])
    scheduler.set_cost_model(model)
    return SpreadEngine(sessions, scheduler, lambda graph: graph, model)


class Program:
    def __init__(self, engine: SpreadEngine, graph: Graph) -> None:
        self.caller = Caller(engine.session)
        self._graph = graph
        self._weight = self.caller.put([1.0] * 256, 16, 16)
        self._engine = engine
        self.plan = engine.prepare(graph, [self._weight, 0])

    def run(self, times: int = 1) -> list[float]:
        for _ in range(times):
            x = self.caller.put([2.0] * 256, 16, 16)
            first = self.caller.handles()
            self._engine.session.execute_words(self.plan, [first, self._weight, x])  # type: ignore[attr-defined]
        return self.caller.get(first)


def executions(engine: SpreadEngine) -> list[int]:
    return [int(session.stats()["executions"]) for session in engine.sessions()]


def test_a_plan_moves_when_that_pays(engine: SpreadEngine, model: Weather) -> None:
    program = Program(engine, product())
    assert program.run(20) == [32.0] * 256
    assert executions(engine) == [20, 0]

    model.forecast = "null:1"
    engine.learn()
    assert engine.replanner.wait(10.0)
    assert [device for device, _ in model.observed] == ["null:0", "null:1"]
    assert program.run(3) == [32.0] * 256
    assert executions(engine) == [20, 3]
    assert engine.session.stats()["values_carried"] == 1  # the weight, once


def test_it_stays_when_moving_costs_more_than_it_brings(
    engine: SpreadEngine, model: Weather, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Program(engine, product())
    program.run(2)
    monkeypatch.setattr(model, "estimate_transfer", lambda src, dst, size: 100.0)
    engine._scheduler.set_cost_model(model)
    model.forecast = "null:1"
    engine.learn()
    assert engine.replanner.wait(10.0)
    program.run(2)
    assert executions(engine) == [4, 0]


def test_the_same_estimates_change_nothing(engine: SpreadEngine, model: Weather) -> None:
    program = Program(engine, product())
    program.run(5)
    engine.learn()
    assert engine.replanner.wait(10.0)
    assert model.epoch == 0
    program.run(1)
    assert executions(engine) == [6, 0]


def test_what_is_written_stays_at_home(engine: SpreadEngine, model: Weather) -> None:
    """A value that a plan writes to is no weight to be copied: it moves with what writes to it, or stays."""
    steps = (Node(0, "aten::add_", "Tensor", (Ref(0), Ref(1), 1), (-1,), (0,)),)
    engine_graph = Graph((X, X), (Input(0, "w", "parameter"), Input(1, "x", "input")), steps, ())
    caller = Caller(engine.session)
    weight, x = caller.put([1.0] * 256, 16, 16), caller.put([2.0] * 256, 16, 16)
    plan = engine.prepare(engine_graph, [weight, x])
    for _ in range(9):
        engine.session.execute_words(plan, [0, weight, x, 1])  # type: ignore[attr-defined]
    model.forecast = "null:1"
    engine.learn()
    assert engine.replanner.wait(10.0)
    for _ in range(3):
        engine.session.execute_words(plan, [0, weight, x, 1])  # type: ignore[attr-defined]
    assert caller.get(weight) == [25.0] * 256
