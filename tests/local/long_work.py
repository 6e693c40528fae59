"""Work that would take minutes, to be stopped."""

from __future__ import annotations

import threading

import torch
from local.both import Both, Program

from genie.bindings import Prediction, parameters
from genie.graph import Graph

MOST = 30.0  # seconds; what is stopped would take minutes


def long_program(steps: int = 20_000) -> tuple[Program, Graph]:
    """Products of some milliseconds each, minutes in all; besides, the first value and a write at the end."""
    program = Program()
    x, written = program.input(torch.eye(512)), program.input(torch.zeros(3))
    first = value = program.call("aten::add.Scalar", x, 0.0, 1)
    for _ in range(steps):
        value = program.call("aten::mm", value, x, source=0)
    program.write("aten::add_.Scalar", written, 1.0, 1, to=[written])
    return program, program.graph(first, value, sources=("train.py:12",))


class Executing:
    """An execution in a thread of its own. ``outputs`` are its outputs' handles."""

    def __init__(self, both: Both) -> None:
        program, graph = long_program()
        self.inputs = [both.put(tensor) for tensor in program.given]
        plan = both.load(graph)
        first = both.handles(2)
        self.outputs = (first, first + 1)
        bindings = Prediction(2, parameters(graph)).encode([first, *self.inputs, *parameters(graph)], anew=True)
        self._begun = threading.Event()

        def run() -> None:
            self._begun.set()
            both.session.execute(plan, bindings)

        self._thread = threading.Thread(target=run)
        self._thread.start()
        assert self._begun.wait(MOST)

    def ended(self) -> None:
        self._thread.join(MOST)
        assert not self._thread.is_alive()
