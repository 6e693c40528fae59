"""What a session that repeats plans must do; part of :class:`genie.testing.BackendSuite`.

Operators as in the suite.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from genie.bindings import Prediction, parameters
from genie.errors import GenieError, RemoteOpError
from genie.graph import Graph, Input, Ref
from genie.interfaces import Buffer, Looping
from genie.loops import Loop
from genie.testing.plans import Caller, node, single, spec, unpack

# Outputs: x + alpha·y, and a second sum beside it.
COUNTING = Graph(
    values=(spec(2), spec(2), spec(1), spec(1), spec(2), spec(1)),
    inputs=(Input(0, donated=True), Input(1), Input(2, donated=True), Input(3)),
    steps=(
        node(0, "aten::add.Tensor", [Ref(0), Ref(1), 1], [4]),
        node(1, "aten::add.Tensor", [Ref(2), Ref(3), 1], [5]),
    ),
    outputs=(4, 5),
)
COUNT = Loop(carries=((0, 0), (2, 1)), emit=(0,))
_ADD = single("aten::add.Tensor", [spec(2), spec(2)], spec(2), 1)
_FAILING = Graph(
    values=(spec(2), spec(2, 2), spec(2), spec(4)),
    inputs=(Input(0, donated=True), Input(1)),
    steps=(node(0, "aten::add.Tensor", [Ref(0), Ref(0), 1], [2]), node(1, "aten::mm", [Ref(1), Ref(2)], [3])),
    outputs=(2, 3),
)


class LoopSuite:
    """Uses the fixture ``caller``. A session that is no :class:`genie.interfaces.Looping` is let pass."""

    @pytest.fixture
    def looping(self, caller: Caller) -> Caller:
        if not isinstance(caller.session, Looping):
            pytest.skip("this backend's sessions do not repeat plans")
        return caller

    @staticmethod
    def _begin(
        caller: Caller, graph: Graph, inputs: list[int], loop: Loop, times: int
    ) -> tuple[int, Iterator[tuple[Buffer, ...]]]:
        """The first output handle, and the iterations."""
        assert isinstance(caller.session, Looping)
        plan = caller.load(graph)
        first = caller.handles(len(graph.outputs))
        words = [first, *inputs, *parameters(graph)]
        bindings = Prediction(len(graph.inputs), parameters(graph)).encode(words, anew=True)
        return first, caller.session.loop(plan, bindings, loop, times)

    def _counting(
        self, caller: Caller, times: int, loop: Loop = COUNT, left: int = 100
    ) -> tuple[int, Iterator[tuple[Buffer, ...]]]:
        given = [caller.put([0, 10]), caller.put([1, 2]), caller.put([left]), caller.put([-1])]
        return self._begin(caller, COUNTING, given, loop, times)

    @staticmethod
    def _sums(iterations: Iterator[tuple[Buffer, ...]]) -> list[list[float]]:
        return [unpack(emitted, "float32") for (emitted,) in iterations]

    def test_a_loop_carries_and_emits(self, looping: Caller) -> None:
        first, iterations = self._counting(looping, 4)
        assert self._sums(iterations) == [[1, 12], [2, 14], [3, 16], [4, 18]]
        assert looping.get(first) == [4, 18]
        assert looping.get(first + 1) == [96]

    def test_a_loop_of_one(self, looping: Caller) -> None:
        first, iterations = self._counting(looping, 1)
        assert self._sums(iterations) == [[1, 12]]
        assert looping.get(first) == [1, 12]

    def test_a_loop_stops_where_its_flag_is_set(self, looping: Caller) -> None:
        # Three numbers that move up, one place an iteration; the first is the flag.
        graph = Graph(
            values=tuple(spec(1) for _ in range(6)),
            inputs=tuple(Input(index, donated=True) for index in range(3)),
            steps=tuple(node(index, "aten::neg", [Ref(index)], [3 + index]) for index in range(3)),
            outputs=(3, 4, 5),
        )
        for flags, runs in (((0, 0, 4), 3), ((0, 0.5, 0), 2), ((-1, 0, 0), 1), ((0, 0, 0), 3)):
            given = [looping.put([flag]) for flag in flags]
            loop = Loop(carries=((0, 1), (1, 2), (2, 0)), emit=(0,), stop=0)
            first, iterations = self._begin(looping, graph, given, loop, 3)
            assert len(self._sums(iterations)) == runs
            assert list(iterations) == []
            assert abs(looping.get(first)[0]) == abs(flags[runs - 1])

    def test_parameters_step(self, looping: Caller) -> None:
        loop = Loop(carries=((0, 0), (2, 1)), strides=((0, 2),), emit=(0,))
        _, iterations = self._counting(looping, 3, loop)
        assert self._sums(iterations) == [[1, 12], [4, 18], [9, 28]]  # alpha is 1, 3, 5

    def test_other_executions_of_the_plan_stay_as_they_are(self, looping: Caller) -> None:
        x, y = looping.put([1, 2]), looping.put([10, 10])
        graph = Graph(_ADD.values, (Input(0, donated=True), Input(1)), _ADD.steps, _ADD.outputs)
        before = looping.run(graph, [looping.put([0, 0]), y], words=[5])
        _, iterations = self._begin(looping, graph, [x, y], Loop(carries=((0, 0),), strides=((0, 1),), emit=(0,)), 3)
        assert unpack(next(iterations)[0], "float32") == [11, 12]
        assert looping.get(before) == [50, 50]
        assert self._sums(iterations) == [[31, 32], [61, 62]]

    def test_a_loop_leaves_nothing_but_its_outputs(self, looping: Caller) -> None:
        first, iterations = self._counting(looping, 3)
        list(iterations)
        before = looping.session.stats()["values"]
        looping.session.free([first, first + 1])
        looping.session.synchronize()
        assert looping.session.stats()["values"] == before - 2

    def test_values_that_are_not_carried_are_freed(self, looping: Caller) -> None:
        y = looping.put([1, 1])
        graph = Graph(_ADD.values, (Input(0), Input(1)), _ADD.steps, _ADD.outputs)
        before = looping.session.stats()["values"]
        x = looping.put([0, 0])
        _, iterations = self._begin(looping, graph, [x, y], Loop(carries=((0, 0),), emit=()), 6)
        assert len(list(iterations)) == 6
        assert looping.session.stats()["values"] == before + 2  # x and the last sum
        assert looping.get(x) == [0, 0]

    def test_a_loop_that_is_left_is_over(self, looping: Caller) -> None:
        first, iterations = self._counting(looping, 50)
        next(iterations)
        del iterations
        assert looping.get(first)[0] >= 1
        looping.session.free([first, first + 1])
        assert looping.get(looping.run(_ADD, [looping.put([1, 1]), looping.put([2, 2])])) == [3, 3]

    def test_looks_between_iterations(self, looping: Caller) -> None:
        first, iterations = self._counting(looping, 30)
        other = looping.put([7])
        seen = []
        for (emitted,) in iterations:
            seen.append(unpack(emitted, "float32")[0])
            assert looping.get(other) == [7]
        assert seen == [float(i) for i in range(1, 31)]
        assert looping.get(first) == [30, 70]

    def test_a_step_that_fails_ends_the_loop(self, looping: Caller) -> None:
        given = [looping.put([1, 1]), looping.put([1, 2, 3, 4], 2, 2)]
        first, iterations = self._begin(looping, _FAILING, given, Loop(carries=((0, 0),), emit=(1,)), 5)
        with pytest.raises(RemoteOpError) as caught:
            next(iterations)
        assert caught.value.op.startswith("aten::mm")
        assert list(iterations) == []
        assert looping.get(first) == [2, 2]
        with pytest.raises(RemoteOpError):
            looping.get(first + 1)
        assert looping.get(looping.run(_ADD, [looping.put([1, 1]), looping.put([2, 2])])) == [3, 3]

    @pytest.mark.parametrize(
        ("loop", "times"),
        [
            (COUNT, 0),
            (COUNT, -3),
            (COUNT, 1 << 40),
            (Loop(carries=((0, 0),), emit=(0,)), 2),  # input 2 is donated and not carried
            (Loop(carries=((0, 0), (2, 0)), emit=(0,)), 2),  # one output, donated twice
            (Loop(carries=((0, 0), (0, 1), (2, 1)), emit=(0,)), 2),
            (Loop(carries=((0, 0), (2, 2)), emit=(0,)), 2),
            (Loop(carries=((4, 0), (2, 1)), emit=(0,)), 2),
            (Loop(carries=((0, 0), (2, 1)), emit=(2,)), 2),
            (Loop(carries=((0, 0), (2, 1)), stop=2), 2),
            (Loop(carries=((0, 0), (2, 1)), strides=((2, 1),)), 2),
            (Loop(carries=((0, 0), (2, 1)), strides=((0, 1), (0, 1))), 2),
        ],
    )
    def test_a_loop_that_does_not_fit_is_refused(self, looping: Caller, loop: Loop, times: int) -> None:
        with pytest.raises(GenieError):
            list(self._counting(looping, times, loop)[1])
        assert looping.get(looping.run(_ADD, [looping.put([1, 1]), looping.put([2, 2])])) == [3, 3]

    def test_a_stop_of_several_elements_is_refused(self, looping: Caller) -> None:
        with pytest.raises(GenieError):
            list(self._counting(looping, 2, Loop(carries=((0, 0), (2, 1)), stop=0))[1])
        assert looping.get(looping.put([1])) == [1]

    def test_a_float_parameter_does_not_step(self, looping: Caller) -> None:
        graph = single("aten::add.Tensor", [spec(2), spec(2)], spec(2), 0.5)
        given = [looping.put([1, 1]), looping.put([2, 2])]
        with pytest.raises(GenieError):
            list(self._begin(looping, graph, given, Loop(carries=((0, 0),), strides=((0, 1),)), 2)[1])
