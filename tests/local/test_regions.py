"""Branches and loops, run natively, by the reference and as plain Python over torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
import torch
from core.region_examples import NUMBER, ROW, TRUTH, chosen, counted, doubled, halved, nested, region, summed
from hypothesis import given, settings
from hypothesis import strategies as st
from local.both import Both, bits, tensor_of
from msgspec.structs import replace

from genie.bindings import float_bits, parameters
from genie.errors import Cancelled, ExecutionTimedOut, PlanError, RemoteOpError
from genie.graph import Graph, Input, Node, Ref, TensorSpec
from genie.graph.regions import COND, SCAN, WHILE_LOOP, cond, scan, while_loop
from genie_backend_local import LocalBackend

_EACH = settings(max_examples=40, deadline=None, derandomize=True)
_floats = st.floats(-8, 8, width=32)


@pytest.fixture(scope="module")
def both_once() -> Iterator[Both]:
    """One for all examples of a property."""
    backend = LocalBackend()
    yield Both(backend.connect(backend.devices()[-1]))
    backend.close()


_rows = st.lists(_floats, min_size=3, max_size=3).map(lambda numbers: torch.tensor(numbers, dtype=torch.float32))


def run(both: Both, graph: Graph, *inputs: torch.Tensor, words: Sequence[int] | None = None) -> list[torch.Tensor]:
    handles = [both.put(tensor) for tensor in inputs]
    made = both.execute(graph, handles, words)
    both.check(*handles)
    return both.check(*made)


def same(got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    assert [bits(one) for one in got] == [bits(one) for one in expected]


@_EACH
@given(st.booleans(), _rows)
def test_a_predicate_chooses(both_once, truth, row):
    same(run(both_once, chosen(), torch.tensor(truth), row), [row * 2 if truth else row * 0.5])


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_a_number_chooses(both, at, dtype):
    negated = region([ROW], [("aten::neg", (Ref(0),), ROW)], [1])
    predicate = TensorSpec((), str(dtype).removeprefix("torch."))
    graph = chosen(predicate, (doubled(), halved(), negated))
    row = torch.tensor([1.0, -2.0, 3.0])
    same(run(both, graph, torch.tensor(at, dtype=dtype), row), [(row * 2, row * 0.5, -row)[at]])


def test_a_number_without_branch_is_the_steps_failure(both):
    graph = chosen(NUMBER, (doubled(), halved()))
    made = both.execute(graph, [both.put(torch.tensor(2)), both.put(torch.ones(3))])
    both.check(*made)
    with pytest.raises(RemoteOpError, match="there is no branch 2: a cond has 2") as caught:
        both.session.fetch(made[0])
    assert (caught.value.kind, caught.value.op) == ("IndexError", "genie::cond")


@_EACH
@given(st.integers(-3, 12), st.integers(-3, 12), _rows, _rows)
def test_a_loop_goes_on_while_its_condition_holds(both_once, start, limit, row, more):
    at, expected = start, row
    while at < limit:
        at, expected = at + 1, expected + more
    same(run(both_once, counted(limit), torch.tensor(start), row, more), [torch.tensor(at), expected])


@_EACH
@given(st.booleans(), _rows, st.lists(_rows, min_size=4, max_size=4), _rows)
def test_a_scan_takes_slices_and_stacks(both_once, reverse, start, rows, factor):
    expected, given_back = start, [torch.empty(0)] * 4
    for at in reversed(range(4)) if reverse else range(4):
        expected = expected + rows[at]
        given_back[at] = expected * factor
    same(run(both_once, summed(reverse), start, torch.stack(rows), factor), [expected, torch.stack(given_back)])


@_EACH
@given(st.integers(0, 9), _rows, _rows)
def test_a_loop_in_a_branch(both_once, start, row, more):
    at, expected = start, row
    if start < 3:
        while at < 7:
            at, expected = at + 1, expected + more
    else:
        expected = -row
    same(run(both_once, nested(), torch.tensor(start), row, more), [torch.tensor(at), expected])


@pytest.mark.parametrize("length", [0, 1, 5])
def test_a_scan_of_nothing_but_a_length(both, length):
    body = region([NUMBER], [("aten::mul.Tensor", (Ref(0), Ref(0)), NUMBER)], [1, 1], "square")
    graph = Graph(
        values=(NUMBER, NUMBER, TensorSpec((length,), "int64")),
        inputs=(Input(0),),
        steps=(Node(0, SCAN, "", scan(body, [Ref(0)], [], length=length), (1, 2)),),
        outputs=(1, 2),
    )
    squares = [torch.tensor(2) ** (2**n) for n in range(length + 1)]
    stacked = torch.stack(squares[1:]) if length else torch.empty(0, dtype=torch.int64)
    same(run(both, graph, torch.tensor(2)), [squares[-1], stacked])


def test_numbers_of_regions_are_bound_anew(both):
    """Another execution of the same plan, with other numbers, those of nested regions too."""
    start, row, more = torch.tensor(0), torch.zeros(3), torch.ones(3)
    words = list(parameters(nested()))
    assert words[1] == 7
    words[1] = 4
    handles = [both.put(tensor) for tensor in (start, row, more)]
    first = both.execute(nested(), handles)
    second = both.execute(nested(), handles, words)
    same(both.check(*first), [torch.tensor(7), row + 7])
    same(both.check(*second), [torch.tensor(4), row + 4])
    words = [float_bits(3.0), float_bits(0.25)]
    same(run(both, chosen(), torch.tensor(True), more, words=words), [more * 3])
    same(run(both, chosen(), torch.tensor(False), more, words=words), [more * 0.25])


def test_what_is_passed_through_is_a_value_of_its_own(both):
    through = region([ROW], [], [0], "through")
    twice = region([ROW], [], [0, 0], "twice")
    row = torch.tensor([1.0, 2.0, 3.0])
    graph = Graph(
        values=(TensorSpec((), "bool"), ROW, ROW, ROW, ROW),
        inputs=(Input(0), Input(1)),
        steps=(
            Node(0, COND, "", cond(Ref(0), [twice, twice], [Ref(1)]), (2, 3)),
            Node(1, "aten::zero_", "", (Ref(2),), (-1,), mutates=(2,)),
            Node(2, COND, "", cond(Ref(0), [through, through], [Ref(3)]), (4,)),
            Node(3, "aten::zero_", "", (Ref(4),), (-1,), mutates=(4,)),
        ),
        outputs=(2, 3, 4),
    )
    zero = torch.zeros(3)
    same(run(both, graph, torch.tensor(True), row), [zero, row, zero])


def test_regions_draw_from_the_sessions_stream(both):
    draw = region([ROW], [("aten::bernoulli.p", (Ref(0), 0.5, None), ROW)], [1], "draw")
    args = scan(replace(draw, outputs=(1, 1)), [Ref(0)], [], length=6)
    graph = Graph(
        values=(ROW, ROW, TensorSpec((6, 3), "float32")),
        inputs=(Input(0),),
        steps=(Node(0, SCAN, "", args, (1, 2)), Node(1, "aten::bernoulli_", "float", (Ref(1), 0.5, None), (-1,), (1,))),
        outputs=(1, 2),
    )
    both.session.seed(0, 7)
    both.reference.generator(0).manual_seed(7)
    natively = torch.Generator().manual_seed(7)
    draws = [torch.bernoulli(torch.ones(3), 0.5, generator=natively) for _ in range(7)]
    same(run(both, graph, torch.ones(3)), [draws[6], torch.stack(draws[:6])])


def test_a_failure_names_region_iteration_and_step(both):
    graph = failing()
    made = both.execute(graph, [both.put(torch.tensor(0)), both.put(torch.ones(3))])
    both.check(*made)
    with pytest.raises(RemoteOpError) as caught:
        both.session.fetch(made[1])
    error = caught.value
    assert error.message.startswith("in body, iteration 1, step 0 (genie::cond): in branch 1, step 1 (aten::mm): ")
    assert (error.op, error.step, error.source) == ("genie::while_loop", 0, "model.py:7")


def failing() -> Graph:
    """A loop whose body fails in its second iteration: a branch multiplies what can't be."""
    still = region([ROW], [("aten::neg", (Ref(0),), ROW)], [1])
    broken = region([ROW], [("aten::neg", (Ref(0),), ROW), ("aten::mm", (Ref(1), Ref(1)), ROW)], [2])
    broken = replace(broken, sources=("model.py:7",), steps=(broken.steps[0], replace(broken.steps[1], source=0)))
    body = region(
        [NUMBER, ROW],
        [
            ("genie::cond", cond(Ref(0), [still, broken], [Ref(1)]), ROW),
            ("aten::add.Scalar", (Ref(0), 1, 1), NUMBER),
        ],
        [3, 2],
    )
    below = region([NUMBER, ROW], [("aten::lt.Scalar", (Ref(0), 5), TRUTH)], [2])
    return Graph(
        values=(NUMBER, ROW, NUMBER, ROW),
        inputs=(Input(0), Input(1)),
        steps=(Node(0, WHILE_LOOP, "", while_loop(below, body, [Ref(0), Ref(1)]), (2, 3)),),
        outputs=(2, 3),
    )


def endless(steps: bool) -> Graph:
    """A loop nobody ends, with operators in it or with none at all."""
    always = region([TRUTH, ROW], [], [0])
    turn = region([TRUTH, ROW], [("aten::neg", (Ref(1),), ROW)], [0, 2]) if steps else region([TRUTH, ROW], [], [0, 1])
    return Graph(
        values=(TRUTH, ROW, TRUTH, ROW),
        inputs=(Input(0), Input(1)),
        steps=(Node(0, WHILE_LOOP, "", while_loop(always, turn, [Ref(0), Ref(1)]), (2, 3)),),
        outputs=(3,),
    )


@pytest.mark.parametrize("steps", [True, False])
def test_a_loop_takes_no_longer_than_an_execution_may(steps):
    backend = LocalBackend(execution_seconds=0.2)
    both = Both(backend.connect(backend.devices()[-1]))
    (made,) = both.execute_native(endless(steps), [both.put(torch.tensor(True)), both.put(torch.ones(3))])
    with pytest.raises(ExecutionTimedOut, match=r"in (condition|body), iteration \d+"):
        both.session.fetch(made)
    assert both.session.stats()["stopped_executions"] == 1
    same(run(both, chosen(), torch.tensor(True), torch.ones(3)), [torch.full((3,), 2.0)])
    backend.close()


@pytest.mark.parametrize("steps", [True, False])
def test_a_loop_ends_when_its_work_is_cancelled(both, steps):
    handles = [both.put(torch.tensor(True)), both.put(torch.ones(3))]
    graph = endless(steps)
    both.load(graph)
    made: list[int] = []
    thread = threading.Thread(target=lambda: made.extend(both.execute_native(graph, handles)))
    thread.start()
    both.session.cancel("its client is gone")
    thread.join(timeout=60)
    assert made
    with pytest.raises(Cancelled, match="its client is gone"):
        both.session.fetch(made[0])


def test_a_loop_holds_what_one_iteration_needs(both):
    """However many iterations there are: what enters, what is carried on, and what is made of it."""
    many = TensorSpec((1 << 16,), "float32")
    size = many.nbytes
    body = region(
        [NUMBER, many], [("aten::add.Scalar", (Ref(0), 1, 1), NUMBER), ("aten::neg", (Ref(1),), many)], [2, 3]
    )
    below = region([NUMBER, many], [("aten::lt.Scalar", (Ref(0), 50), TRUTH)], [2])
    graph = Graph(
        values=(NUMBER, many, NUMBER, many),
        inputs=(Input(0), Input(1)),
        steps=(Node(0, WHILE_LOOP, "", while_loop(below, body, [Ref(0), Ref(1)]), (2, 3)),),
        outputs=(2, 3),
    )
    made = both.execute_native(graph, [both.put(torch.tensor(0)), both.put(torch.ones(1 << 16))])
    stats = both.session.stats()
    assert 3 * size <= stats["peak_memory_bytes"] < 3.1 * size
    assert stats["memory_bytes"] < 2.1 * size
    assert tensor_of(both.session.fetch(made[1])).equal(torch.ones(1 << 16))


def test_regions_are_refused_when_they_are_loaded(both):
    hostile = region([ROW], [("aten::from_file", (Ref(0),), ROW)], [1])
    with pytest.raises(PlanError, match=r"step 0 .genie::cond.: region 1: step 0 .aten::from_file.: .* not allowed"):
        both.load(chosen(branches=(doubled(), hostile)))
    wrong = region([ROW], [("aten::mul.Tensor", (Ref(0), "two"), ROW)], [1])
    with pytest.raises(PlanError, match="region 0: .*argument 'other'"):
        both.load(chosen(branches=(wrong, doubled())))


def test_regions_are_not_timed_as_operators(both):
    both.session.profile(1.0)
    run(both, nested(), torch.tensor(0), torch.ones(3), torch.ones(3))
    run(both, nested(), torch.tensor(0), torch.ones(3), torch.ones(3))
    assert {row.target for row in both.session.profile()} == {"aten::lt.Scalar", "aten::view"}
