"""Work that is stopped between two operators: on request, or because it takes too long."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from local.both import Both, Program, tensor_of
from local.long_work import MOST, Executing

from genie.bindings import Prediction, parameters
from genie.errors import Cancelled, DeadlineExceeded, ExecutionTimedOut, Stage
from genie.graph import Many, Ref
from genie.loops import Loop
from genie_backend_local import LocalBackend, LocalSession


@pytest.fixture
def limited() -> Iterator[Both]:
    backend = LocalBackend(execution_seconds=0.2)
    yield Both(backend.connect(backend.devices()[-1]))
    backend.close()


def still_good(both: Both) -> None:
    program = Program()
    x = program.input(torch.arange(3.0))
    both.run(program, program.call("aten::mul.Scalar", x, 3))


def test_what_runs_ends_before_its_next_operator(both: Both) -> None:
    running = Executing(both)
    both.session.cancel("its client is gone")
    running.ended()
    last = running.outputs[1]
    with pytest.raises(Cancelled, match="its client is gone") as caught:
        both.session.fetch(last)
    assert caught.value.op.startswith("aten::")
    assert caught.value.plan == 0
    with pytest.raises(Cancelled):  # what should have been written to is stale
        both.session.fetch(running.inputs[1])
    assert tensor_of(both.session.fetch(running.inputs[0])).equal(torch.eye(512))
    assert both.session.stats()["stopped_executions"] == 1


def test_nothing_more_is_done_until_it_may(both: Both) -> None:
    both.session.cancel("wait")
    program = Program()
    x = program.input(torch.arange(3.0))
    graph = program.graph(program.call("aten::neg", x))
    handle = both.put(program.given[0])
    (made,) = both.execute_native(graph, [handle])
    with pytest.raises(Cancelled, match="wait"):
        both.session.fetch(made)
    both.session.resume()
    (made,) = both.execute_native(graph, [handle])
    assert tensor_of(both.session.fetch(made)).equal(-torch.arange(3.0))


def test_what_depends_on_it_says_the_same(both: Both) -> None:
    both.session.cancel("wait")
    program = Program()
    x = program.input(torch.arange(3.0))
    graph = program.graph(program.call("aten::neg", x))
    (made,) = both.execute_native(graph, [both.put(program.given[0])])
    both.session.resume()
    (further,) = both.execute_native(graph, [made])
    with pytest.raises(Cancelled, match="wait"):
        both.session.fetch(further)


def test_an_execution_that_takes_too_long(limited: Both) -> None:
    started = time.monotonic()
    running = Executing(limited)
    running.ended()
    assert time.monotonic() - started < MOST
    with pytest.raises(ExecutionTimedOut, match=r"longer than the 0\.2 s") as caught:
        limited.session.fetch(running.outputs[1])
    error = caught.value
    assert isinstance(error, DeadlineExceeded)
    assert (error.stage, error.source, error.plan) == (Stage.EXECUTE, "train.py:12", 0)
    assert error.op.startswith("aten::mm")
    assert error.step > 0
    limited.session.fetch(running.outputs[0])  # made in time
    still_good(limited)


def test_a_short_execution_is_not_late(limited: Both) -> None:
    still_good(limited)
    assert limited.session.stats()["stopped_executions"] == 0


def test_a_loop_ends_with_the_iteration_that_is_stopped(both: Both) -> None:
    program = Program()
    x, grown = program.input(torch.eye(64)), program.input(torch.zeros(1, 64), donated=True)
    more = program.call("aten::cat", Many((grown, program.call("aten::slice.Tensor", x, 0, 0, 1, 1))), 0)
    total = program.call("aten::sum", more, None)
    graph = program.graph(more, total)
    handles = [both.put(tensor) for tensor in program.given]
    bindings = Prediction(2, parameters(graph)).encode([both.handles(2), *handles, *parameters(graph)], anew=True)
    iterations = both.session.loop(both.load(graph), bindings, Loop(carries=((1, 0),), emit=(1,)), 1000)
    next(iterations)
    both.session.cancel("enough")
    with pytest.raises(Cancelled, match="enough"):
        next(iterations)
    both.session.resume()
    still_good(both)


def test_one_of_two_that_run_in_lockstep_is_stopped() -> None:
    """The other one's results are those it has alone."""
    backend = LocalBackend()
    device = backend.devices()[-1]
    weights = [torch.randn(64, 64) / 8 for _ in range(24)]
    program = Program()
    x = program.input(torch.randn(1, 64))
    given = [program.input(weight) for weight in weights]
    value: Ref = x
    for weight in given * 8:
        value = program.call("aten::mm", value, program.call("aten::tanh", weight))
    graph = program.graph(value)
    pair = [Both(backend.connect(device)) for _ in range(2)]
    try:
        prepared = [[both.put(tensor) for tensor in program.given] for both in pair]
        results: dict[int, list[torch.Tensor | Cancelled]] = {0: [], 1: []}

        def run(which: int) -> None:
            both = pair[which]
            for number in range(30):
                if which == 1 and number == 10:
                    both.session.cancel("no more")
                (made,) = both.execute_native(graph, prepared[which])
                try:
                    results[which].append(tensor_of(both.session.fetch(made)))
                except Cancelled as error:
                    results[which].append(error)

        threads = [threading.Thread(target=run, args=(which,)) for which in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
            assert not thread.is_alive()
        kept = results[0]
        assert len(kept) == 30
        assert all(isinstance(one, torch.Tensor) and one.equal(kept[0]) for one in kept)
        assert [isinstance(one, Cancelled) for one in results[1]] == [False] * 10 + [True] * 20
    finally:
        backend.close()


def test_a_session_that_was_closed_can_be_cancelled(session: LocalSession) -> None:
    session.close()
    session.cancel("late")
