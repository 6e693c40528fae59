"""Branches and loops of a program that is being recorded, as regions of its graph.

Functions become graphs: each is recorded once, on tensors without data. What it uses of the program around it becomes
an operand of the region's node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import torch

from genie.graph import Graph, TensorSpec
from genie.graph.regions import COND, SCAN, WHILE_LOOP, cond, scan, while_loop
from genie_jax.record import Body, Recorder, spec_of

Tensor = torch.Tensor


@attrs.frozen
class Regions:
    """Where a program is recorded. Functions may use any tensor there is."""

    _recorder: Recorder

    def cond(self, predicate: Tensor, branches: Sequence[Callable[[], Sequence[Tensor]]]) -> Sequence[Tensor]:
        """What one of the branches gives: the first of two where the predicate is true, or the one of its number."""
        recorder = self._recorder
        bodies = [Body(f"branch {number}", (), branch) for number, branch in enumerate(branches)]
        graphs, outside = recorder.regions(*bodies)
        (chosen,) = recorder.refs([predicate])
        return recorder.call(COND, cond(chosen, graphs, recorder.refs(outside)), _results(graphs[0]))

    def while_loop(
        self, condition: Callable[..., Tensor], body: Callable[..., Sequence[Tensor]], carried: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """What is carried when the condition of it, one truth, has become false."""
        recorder = self._recorder
        start = [each.contiguous() for each in carried]
        takes = [spec_of(each) for each in start]
        (said, turn), outside = recorder.regions(
            Body("condition", takes, lambda *now: [condition(*now)]), Body("body", takes, body)
        )
        args = while_loop(said, turn, recorder.refs(start), recorder.refs(outside))
        return recorder.call(WHILE_LOOP, args, _results(turn))

    def scan(
        self,
        body: Callable[..., Sequence[Tensor]],
        init: Sequence[Tensor],
        xs: Sequence[Tensor],
        *,
        length: int,
        reverse: bool,
    ) -> Sequence[Tensor]:
        """What is carried in the end, and what else the body gives of it and of slices of ``xs``, stacked."""
        recorder = self._recorder
        start, lines = [each.contiguous() for each in init], [each.contiguous() for each in xs]
        slices = [TensorSpec(spec.shape[1:], spec.dtype) for spec in map(spec_of, lines)]
        (turn,), outside = recorder.regions(Body("body", [*map(spec_of, start), *slices], body))
        taken = [recorder.refs(each) for each in (start, lines, outside)]
        made = _results(turn)
        stacked = [TensorSpec((length, *each.shape), each.dtype) for each in made[len(start) :]]
        args = scan(turn, *taken, length=length, reverse=reverse)
        return recorder.call(SCAN, args, [*made[: len(start)], *stacked])


def _results(region: Graph) -> list[TensorSpec]:
    return [region.values[value] for value in region.outputs]
