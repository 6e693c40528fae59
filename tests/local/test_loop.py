"""Loops of the native executor beside the same plan executed again and again."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
import torch
from local.both import Both, Program, tensor_of

from genie.bindings import Prediction, parameters
from genie.errors import NodeError, OutOfMemory, RemoteOpError, SessionClosed
from genie.graph import Const, Graph, Many
from genie.interfaces import Buffer
from genie.loops import Loop
from genie_backend_local import LocalBackend, LocalSession


def loop(
    both: Both, graph: Graph, inputs: Sequence[int], how: Loop, times: int
) -> tuple[int, Iterator[tuple[Buffer, ...]]]:
    first = both.handles(len(graph.outputs))
    words = [first, *inputs, *parameters(graph)]
    bindings = Prediction(len(inputs), parameters(graph)).encode(words, anew=True)
    return first, both.session.loop(both.load(graph), bindings, how, times)


def growing() -> tuple[Program, Graph]:
    """A cache that grows by a row, read from a table at a position that moves; and what is the sum of it all."""
    program = Program()
    table, cache = program.input(torch.randn(32, 4)), program.input(torch.randn(1, 4), donated=True)
    row = program.call("aten::slice.Tensor", table, 0, 1, 2, 1)
    noise = program.call("aten::rand_like", row, None, None, None, None, None)
    row = program.call("aten::mul.Tensor", row, noise)
    grown = program.call("aten::cat", Many((cache, row)), 0)
    total = program.call("aten::sum", grown, None)
    return program, program.graph(grown, total)


def test_a_loop_is_the_plan_executed_again_and_again(both: Both) -> None:
    program, graph = growing()
    both.session.seed(0, 3)
    handles = [both.put(tensor) for tensor in program.given]
    words = list(parameters(graph))
    expected = []
    cache = handles[1]
    moving = [i for i, word in enumerate(words) if word in (1, 2)][:2]  # the slice's bounds
    for step in range(6):
        stepped = [word + step if i in moving else word for i, word in enumerate(words)]
        cache, total = again(both, graph, handles[0], cache, stepped)
        expected.append(bytes(both.session.fetch(total).data))
    final = bytes(both.session.fetch(cache).data)

    both.session.seed(0, 3)
    handles = [both.put(tensor) for tensor in program.given]
    how = Loop(carries=((1, 0),), strides=tuple((i, 1) for i in moving), emit=(1,))
    first, iterations = loop(both, graph, handles, how, 6)
    assert [bytes(total) for (total,) in iterations] == expected
    assert bytes(both.session.fetch(first).data) == final
    assert both.session.describe(first).shape == (7, 4)


def again(both: Both, graph: Graph, table: int, cache: int, words: Sequence[int]) -> tuple[int, int]:
    first = both.handles(2)
    vector = [first, table, cache, *words]
    plan = both.load(graph)
    both.session.execute(plan, Prediction(2, parameters(graph)).encode(vector, anew=True))
    return first, first + 1


def test_writing_in_place_reaches_the_value_that_is_not_carried(both: Both) -> None:
    program = Program()
    static, count = program.input(torch.zeros(8)), program.input(torch.zeros(1, dtype=torch.int64))
    one = program.call("aten::add.Scalar", count, 1, 1)
    value = program.call("aten::to.dtype", one, Const("dtype", "float32"), False, False, None)
    program.write("aten::index_copy_", static, 0, count, value, to=[static])
    program.write("aten::add_.Scalar", count, 1, 1, to=[count])
    graph = program.graph(one)
    handles = [both.put(tensor) for tensor in program.given]
    _, iterations = loop(both, graph, handles, Loop(emit=(0,)), 5)
    assert len(list(iterations)) == 5
    assert tensor_of(both.session.fetch(handles[0])).tolist() == [1, 2, 3, 4, 5, 0, 0, 0]
    assert tensor_of(both.session.fetch(handles[1])).tolist() == [5]


def test_a_loop_keeps_no_memory(both: Both) -> None:
    program, graph = growing()
    handles = [both.put(tensor) for tensor in program.given]
    before = both.session.stats()
    first, iterations = loop(both, graph, handles, Loop(carries=((1, 0),), emit=(1,)), 20)
    list(iterations)
    after = both.session.stats()
    assert after["values"] == before["values"] + 1  # the cache went, two outputs came
    assert after["memory_bytes"] - before["memory_bytes"] == 20 * 4 * 4 + 4
    both.session.free([first, first + 1])
    assert both.session.stats()["values"] == before["values"] - 1


def test_running_out_of_memory_ends_it(both: Both) -> None:
    backend = LocalBackend(memory_limit_gb=1e-6)  # 1,073 bytes
    limited = Both(backend.connect(backend.devices()[-1]))
    program, graph = growing()
    handles = [limited.put(tensor) for tensor in program.given]
    first, iterations = loop(limited, graph, handles, Loop(carries=((1, 0),), emit=(1,)), 100)
    with pytest.raises(OutOfMemory):
        list(iterations)
    assert list(iterations) == []
    limited.session.free([first, first + 1])
    assert limited.session.stats()["values"] == 1
    fine = limited.put(torch.ones(3))
    assert tensor_of(limited.session.fetch(fine)).tolist() == [1, 1, 1]
    backend.close()


def test_a_failure_says_where(both: Both) -> None:
    program = Program()
    table, at = program.input(torch.arange(4.0)), program.input(torch.tensor([0]), donated=True)
    found = program.call("aten::index_select", table, 0, at, source=0)
    after = program.call("aten::add.Scalar", at, 1, 1)
    graph = program.graph(after, found, sources=("decode.py:12",))
    handles = [both.put(tensor) for tensor in program.given]
    first, iterations = loop(both, graph, handles, Loop(carries=((1, 0),), emit=(1,)), 10)
    with pytest.raises(RemoteOpError) as caught:
        list(iterations)
    assert caught.value.source == "decode.py:12"
    assert tensor_of(both.session.fetch(first)).tolist() == [5]  # what did not fail is that iteration's


def test_what_it_goes_on_with_was_freed(both: Both) -> None:
    program, graph = growing()
    handles = [both.put(tensor) for tensor in program.given]
    first, iterations = loop(both, graph, handles, Loop(carries=((1, 0),), emit=(1,)), 10)
    next(iterations)
    both.session.free([first])
    with pytest.raises(NodeError, match="was freed"):
        next(iterations)
    assert list(iterations) == []
    assert both.session.stats()["values"] == 1


def test_a_session_that_is_closed_in_the_middle(session: LocalSession) -> None:
    both = Both(session)
    program, graph = growing()
    handles = [both.put(tensor) for tensor in program.given]
    _, iterations = loop(both, graph, handles, Loop(carries=((1, 0),), emit=(1,)), 10)
    next(iterations)
    session.close()
    with pytest.raises(SessionClosed):
        next(iterations)


def test_other_threads_run_meanwhile(both: Both) -> None:
    """An iteration needs no GIL: this thread counts while it runs."""
    program = Program()
    x = program.input(torch.randn(512, 512), donated=True)
    y = x
    for _ in range(6):
        y = program.call("aten::mm", y, y)
        y = program.call("aten::tanh", y)
    graph = program.graph(y)
    _, iterations = loop(both, graph, [both.put(program.given[0])], Loop(carries=((0, 0),), emit=()), 3)
    counted, over = 0, threading.Event()

    def run() -> None:
        list(iterations)
        over.set()

    thread = threading.Thread(target=run)
    thread.start()
    while not over.is_set():
        counted += 1
    thread.join(30.0)
    assert counted > 100


def test_emitted_bytes_are_those_of_their_iteration(both: Both) -> None:
    program = Program()
    x = program.input(torch.arange(1000.0), donated=True)
    y = program.call("aten::add.Scalar", x, 1, 1)
    _, iterations = loop(both, program.graph(y), [both.put(program.given[0])], Loop(carries=((0, 0),), emit=(0,)), 4)
    kept = [memoryview(value) for (value,) in iterations]
    firsts = [torch.frombuffer(bytearray(value), dtype=torch.float32)[0].item() for value in kept]
    assert firsts == [1, 2, 3, 4]
