"""Running whole plans: what is uploaded, what is freed, and what ends a session."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import pytest

from genie import HostValue, Scheduler, TensorSpec
from genie.errors import ConnectionLost, OutOfMemory, PlanError, RemoteOpError, SessionClosed
from genie.execute import Executor
from genie.graph import Graph, Input, Node, Ref
from genie.plan import ExecutionPlan
from genie.testing import NullBackend, NullSession

ROW = TensorSpec((2,), "float32")


def value(*numbers: float) -> HostValue:
    return HostValue(TensorSpec((len(numbers),), "float32"), memoryview(array("f", numbers)).cast("B"))


def numbers(value: HostValue) -> list[float]:
    return list(value.data.cast("f"))


class Recorded:
    """A session that remembers what it was asked."""

    def __init__(self, session: NullSession) -> None:
        self.session = session
        self.uploads: list[tuple[int, bool]] = []
        self.freed: list[int] = []
        self.fail: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def upload(self, handle: int, spec: TensorSpec, data: memoryview, *, shared: bool = False) -> None:
        self.uploads.append((handle, shared))
        self.session.upload(handle, spec, data, shared=shared)

    def fetch(self, handle: int) -> Any:
        if self.fail is not None:
            raise self.fail
        return self.session.fetch(handle)

    def free(self, handles: Sequence[int]) -> None:
        self.freed += handles
        self.session.free(handles)


@pytest.fixture
def session() -> Recorded:
    backend = NullBackend()
    return Recorded(backend.connect(backend.devices()[0]))


def plan(*inputs: Input, alpha: int = 1, outputs: tuple[int, ...] = (2,)) -> ExecutionPlan:
    steps = (
        Node(0, "aten::add", "Tensor", (Ref(0), Ref(1), alpha), (2,)),
        Node(1, "aten::neg", "", (Ref(2),), (3,)),
    )
    return Scheduler(NullBackend().devices()).schedule(Graph((ROW,) * 4, inputs, steps, outputs))


def test_outputs_come_in_order_and_nothing_stays(session: Recorded) -> None:
    executor = Executor(session)
    out = executor.run(plan(Input(0), Input(1), outputs=(3, 2)), [value(1, 2), value(3, 4)])
    assert [numbers(each) for each in out] == [[-4, -6], [4, 6]]
    assert session.stats()["values"] == 0


def test_plans_that_differ_in_parameters_run_by_their_own(session: Recorded) -> None:
    executor = Executor(session)
    for alpha in (1, 2, 5, 1):
        (out,) = executor.run(plan(Input(0), Input(1), alpha=alpha), [value(1, 2), value(3, 4)])
        assert numbers(out) == [1 + alpha * 3, 2 + alpha * 4]


def test_handles_are_never_used_twice(session: Recorded) -> None:
    executor = Executor(session)
    for _ in range(3):
        executor.run(plan(Input(0), Input(1)), [value(1, 2), value(3, 4)])
    handles = [handle for handle, _ in session.uploads]
    assert len(set(handles)) == len(handles) == 6


def test_weights_are_offered_as_shared_content(session: Recorded) -> None:
    Executor(session).run(plan(Input(0, origin="parameter"), Input(1, origin="input")), [value(1, 2), value(3, 4)])
    assert [shared for _, shared in session.uploads] == [True, False]


def test_a_donated_input_is_not_freed_again(session: Recorded) -> None:
    Executor(session).run(plan(Input(0, donated=True), Input(1)), [value(1, 2), value(3, 4)])
    assert session.uploads[0][0] not in session.freed
    assert session.uploads[1][0] in session.freed


def test_inputs_must_fit(session: Recorded) -> None:
    executor = Executor(session)
    with pytest.raises(PlanError, match="2 inputs, 1"):
        executor.run(plan(Input(0, "x"), Input(1)), [value(1, 2)])
    with pytest.raises(PlanError, match=r"input 0 \(x\) must be float32\[2\]"):
        executor.run(plan(Input(0, "x"), Input(1)), [value(1, 2, 3), value(1, 2)])
    assert session.uploads == []
    assert not executor.closed


def test_a_failed_operator_leaves_the_session_usable(session: Recorded) -> None:
    executor = Executor(session)
    session.fail = RemoteOpError("no", op="aten::add")
    with pytest.raises(RemoteOpError):
        executor.run(plan(Input(0), Input(1)), [value(1, 2), value(3, 4)])
    assert session.stats()["values"] == 0
    session.fail = None
    assert numbers(executor.run(plan(Input(0), Input(1)), [value(1, 2), value(3, 4)])[0]) == [4, 6]


def test_a_broken_link_ends_it(session: Recorded) -> None:
    executor = Executor(session)
    session.fail = ConnectionLost("gone")
    with pytest.raises(ConnectionLost):
        executor.run(plan(Input(0), Input(1)), [value(1, 2), value(3, 4)])
    assert executor.closed
    with pytest.raises(SessionClosed):
        executor.run(plan(Input(0), Input(1)), [value(1, 2), value(3, 4)])


def test_an_upload_that_is_refused_leaves_nothing() -> None:
    backend = NullBackend(memory_bytes=12)
    session = backend.connect(backend.devices()[0])
    with pytest.raises(OutOfMemory):
        Executor(session).run(plan(Input(0), Input(1)), [value(1, 2), value(3, 4)])
    assert session.stats()["values"] == 0


def test_a_plan_the_device_cannot_run_does_not_end_it(session: Recorded) -> None:
    executor = Executor(session)
    strange = Graph((ROW,), (), (Node(0, "aten::strange", "", (), (0,)),), (0,))
    with pytest.raises(PlanError, match="aten::strange"):
        executor.run(Scheduler(NullBackend().devices()).schedule(strange), [])
    assert not executor.closed
