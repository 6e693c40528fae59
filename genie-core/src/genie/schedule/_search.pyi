"""The native placement search (csrc). Arrays are buffers of int32 (``array("i")``), int64 (``"q"``), float64."""

from collections.abc import Callable, Sequence
from typing import TypedDict

from typing_extensions import Buffer

class Outcome(TypedDict, total=False):
    makespan: float
    busy: list[float]
    sent: list[float]
    received: list[float]
    moved: float
    overflow: float
    peak: list[int]
    begin: list[float]
    end: list[float]
    moves: list[tuple[int, int, int, int, float, float]]

class Answer(TypedDict):
    place: list[int]
    order: list[int]
    rule: str
    feasible: bool
    proven: bool
    judged: int
    score: float
    violation: float
    overflow: float

class Problem:
    def __init__(
        self,
        *,
        steps: int,
        devices: int,
        values: int,
        seconds: Buffer,
        operand_start: Buffer,
        operands: Buffer,
        output_start: Buffer,
        outputs: Buffer,
        parent: Buffer,
        size: Buffer,
        home: Buffer,
        last: Buffer,
        latency: Buffer,
        bandwidth: Buffer,
        capacity: Buffer,
        unit: Buffer,
        units: int,
        allowed: Buffer,
        block: Buffer,
        ports: bool = True,
    ) -> None: ...
    def evaluate(self, place: Buffer, *, order: Buffer | None = None, traced: bool = False) -> Outcome: ...
    def search(
        self,
        *,
        objective: str,
        price: Sequence[float],
        handling: Sequence[float] = (),
        thrift: float = 0.0,
        latency_cap: float = 0.0,
        cost_cap: float = 0.0,
        handover: float = 0.0,
        user: Callable[[float, list[float]], tuple[float, float]] | None = None,
        budget: int,
        seed: int = 0,
        reorder: bool = False,
    ) -> Answer: ...
