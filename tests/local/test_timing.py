"""What the executor reports of how long operators took."""

from __future__ import annotations

import msgspec
import pytest
import torch
from local.both import Both, Program

from genie.errors import NodeError
from genie.graph import Graph, Many, Semantics
from genie.timing import Operand, Timing, fault
from genie_backend_local import LocalSession


def labelled(graph: Graph, phase: str) -> Graph:
    steps = [msgspec.structs.replace(node, semantics=Semantics(phase=phase)) for node in graph.steps]
    return msgspec.structs.replace(graph, steps=tuple(steps))


def rows_by_name(session: LocalSession) -> dict[str, Timing]:
    return {row.target: row for row in session.profile()}


@pytest.fixture
def run(both: Both):  # type: ignore[no-untyped-def]
    program = Program()
    x, w = program.input(torch.rand(3, 5)), program.input(torch.rand(5, 4))
    turned = program.call("aten::t", program.call("aten::mm", x, w))
    joined = program.call("aten::cat", Many((turned, turned)), 0)
    graph = program.graph(joined)
    handles = [both.put(tensor) for tensor in program.given]

    def execute(phase: str = "", times: int = 1) -> None:
        for _ in range(times):
            both.session.free(both.execute_native(labelled(graph, phase) if phase else graph, handles))

    return execute


def test_a_row_says_the_operator_its_tensors_and_times(session: LocalSession, run):  # type: ignore[no-untyped-def]
    session.profile(share=1.0)
    run(times=5)
    rows = rows_by_name(session)
    mm = rows["aten::mm"]
    assert mm.operands == (Operand("float32", (3, 5)), Operand("float32", (5, 4)))
    assert mm.results == (Operand("float32", (3, 4)),)
    assert mm.phase == ""
    assert mm.count == 5
    assert 0 < mm.least <= mm.typical
    assert mm.least <= mm.mean < 1
    assert mm.variance >= 0
    assert rows["aten::t"].results == (Operand("float32", (4, 3), contiguous=False),)
    assert rows["aten::cat"].operands == (Operand("float32", (4, 3), contiguous=False),) * 2
    assert not any(fault(row) for row in rows.values())


def test_asking_starts_anew(session: LocalSession, run):  # type: ignore[no-untyped-def]
    session.profile(share=1.0)
    run()
    assert len(session.profile()) == 3
    assert session.profile() == ()


def test_phases_are_kept_apart(session: LocalSession, run):  # type: ignore[no-untyped-def]
    session.profile(share=1.0)
    run("prefill", times=2)
    run("decode", times=3)
    counts = {row.phase: row.count for row in session.profile() if row.target == "aten::mm"}
    assert counts == {"prefill": 2, "decode": 3}


def test_no_share_no_rows(session: LocalSession, run):  # type: ignore[no-untyped-def]
    session.profile(share=0.0)
    run(times=300)
    assert session.profile() == ()
    assert session.stats()["timed_executions"] == 0


def test_unasked_some_executions_are_timed_and_never_the_first(session: LocalSession, run):  # type: ignore[no-untyped-def]
    run()
    assert session.profile() == ()
    run(times=4000)
    rows = session.profile()
    assert {row.target for row in rows} == {"aten::mm", "aten::t", "aten::cat"}
    assert 0 < session.stats()["timed_executions"] < 2000


def test_a_step_that_failed_is_no_row(both: Both) -> None:
    program = Program()
    x, y = program.input(torch.rand(3, 5)), program.input(torch.rand(3, 5))
    bad = program.call("aten::mm", x, y)
    after = program.call("aten::neg", bad)
    good = program.call("aten::neg", y)
    graph = program.graph(after, good)
    both.session.profile(share=1.0)
    both.execute_native(graph, [both.put(tensor) for tensor in program.given])
    rows = both.session.profile()
    assert [(row.target, row.count) for row in rows] == [("aten::neg", 1)]


def test_an_operator_that_writes_in_place_has_no_result(both: Both) -> None:
    program = Program()
    x = program.input(torch.rand(3, 5))
    program.write("aten::add_.Tensor", x, x, 1, to=[x])
    graph = program.graph()
    both.session.profile(share=1.0)
    both.execute_native(graph, [both.put(tensor) for tensor in program.given])
    (row,) = both.session.profile()
    assert row.target == "aten::add_.Tensor"
    assert row.results == ()
    assert len(row.operands) == 2


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_an_impossible_share_is_refused(session: LocalSession, share: float) -> None:
    with pytest.raises(NodeError, match="share of the time from 0 to 1"):
        session.profile(share=share)
