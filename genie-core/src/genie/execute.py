"""Plan and host values in, host values out, through one session."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from genie.bindings import Prediction, parameters
from genie.errors import LimitExceeded, PlanError, RemoteOpError, SessionClosed
from genie.host import HostValue
from genie.interfaces import Session
from genie.plan import ExecutionPlan


class Executor:
    """Runs whole plans on a session it has to itself. Any thread may call; calls take turns."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._lock = threading.Lock()
        self._next = 1
        self._predictions: dict[int, Prediction] = {}
        self.closed = False

    def run(self, plan: ExecutionPlan, inputs: Sequence[HostValue]) -> list[HostValue]:
        """The plan's outputs, in order. Raises :class:`PlanError` if ``inputs`` do not fit the plan,
        :class:`RemoteOpError` for a step that failed, :class:`LimitExceeded`; anything else also ends the session."""
        _check(plan, inputs)
        if not plan.graph.outputs:
            raise PlanError(
                "the plan has no outputs: nothing of what it computes would be seen",
                hint="a graph's outputs are the values still held when it is asked for: get_graph() while they are",
            )
        with self._lock:
            if self.closed:
                raise SessionClosed("the session was closed", hint="genie.execute opens a new one")
            try:
                return self._run(plan, inputs)
            except (RemoteOpError, PlanError, LimitExceeded):
                raise
            except BaseException:
                # Both sides remember the last bindings; after a break in the middle they may differ.
                self._close()
                raise

    def _run(self, plan: ExecutionPlan, inputs: Sequence[HostValue]) -> list[HostValue]:
        graph, session = plan.graph, self.session
        number = session.load(plan)
        words = parameters(graph)
        prediction = self._predictions.get(number)
        if prediction is None:
            prediction = self._predictions[number] = Prediction(len(graph.inputs), words)
        handles = self._take(len(inputs))
        made = self._take(len(graph.outputs))
        held: list[int] = []
        try:
            for handle, declared, value in zip(handles, graph.inputs, inputs, strict=True):
                weight = declared.origin in ("parameter", "buffer")
                session.upload(handle, value.spec, value.data, shared=weight)
                held.append(handle)
            session.execute(number, prediction.encode([made.start, *handles, *words]))
            donated = {handle for handle, declared in zip(handles, graph.inputs, strict=True) if declared.donated}
            held = [*(handle for handle in held if handle not in donated), *made]
            fetched = [session.fetch(handle) for handle in made]
        finally:
            session.free(held)
        return [HostValue(value.spec, value.data) for value in fetched]

    def _take(self, count: int) -> range:
        taken = range(self._next, self._next + count)
        self._next += count
        return taken

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        if not self.closed:
            self.closed = True
            self.session.close()


def _check(plan: ExecutionPlan, inputs: Sequence[HostValue]) -> None:
    declared = plan.graph.inputs
    if len(inputs) != len(declared):
        raise PlanError(
            f"the plan takes {len(declared)} inputs, {len(inputs)} were given",
            hint=f"in order: {', '.join(i.name or f'v{i.value}' for i in declared) or 'none'}",
        )
    for number, (its, value) in enumerate(zip(declared, inputs, strict=True)):
        want = plan.graph.values[its.value]
        if (value.spec.shape, value.spec.dtype) != (want.shape, want.dtype):
            raise PlanError(
                f"input {number} ({its.name or f'v{its.value}'}) must be {want.dtype}{list(want.shape)}, "
                f"not {value.spec.dtype}{list(value.spec.shape)}"
            )
