"""What every backend must do. Subclass, give ``backend``, and run.

The plans use a few operators any backend has: ``aten::add.Tensor``, ``add_.Tensor``, ``mul.Tensor``, ``neg``, ``mm``,
``view`` and, where ``has_random`` says so, ``rand``.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest

from genie.bindings import float_bits
from genie.errors import GenieError, PlanError, RemoteOpError
from genie.graph import Const, Graph, Input, Many, Ref, TensorSpec
from genie.interfaces import Backend, Session
from genie.testing.loop_suite import LoopSuite
from genie.testing.plans import Caller, nbytes, node, pack, single, spec
from genie.testing.snapshot_suite import SnapshotSuite

_ADD = single("aten::add.Tensor", [spec(3), spec(3)], spec(3), 1)
_NEG = single("aten::neg", [spec(3)], spec(3))


class BackendSuite(LoopSuite, SnapshotSuite):
    """Fixture to give: ``backend``."""

    has_random: ClassVar[bool] = True

    @pytest.fixture
    def backend(self) -> Backend:
        raise pytest.UsageError("a BackendSuite needs the fixture `backend`")

    @pytest.fixture
    def session(self, backend: Backend) -> Iterator[Session]:
        session = backend.connect(backend.devices()[0])
        yield session
        session.close()

    @pytest.fixture
    def caller(self, session: Session) -> Caller:
        return Caller(session)

    # --- the backend ------------------------------------------------------------------------------

    def test_it_is_a_backend(self, backend: Backend) -> None:
        assert isinstance(backend, Backend)
        assert backend.name

    def test_devices_are_real_and_distinct(self, backend: Backend) -> None:
        devices = backend.devices()
        assert devices
        assert len({device.id for device in devices}) == len(devices)
        assert all(device.memory_gb > 0 for device in devices)
        assert backend.devices() == devices

    def test_a_session_is_on_its_device(self, backend: Backend, session: Session) -> None:
        assert isinstance(session, Session)
        assert session.device == backend.devices()[0]

    # --- values -----------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("dtype", "shape"),
        [("float32", (2, 3)), ("float64", (4,)), ("int64", (3, 1)), ("int32", (5,)), ("uint8", (7,)), ("int16", (2,))],
    )
    def test_bytes_come_back_as_they_went(self, caller: Caller, dtype: str, shape: tuple[int, ...]) -> None:
        value = TensorSpec(shape, dtype)
        data = bytes(range(1, nbytes(value) + 1))
        handle = caller.handles()
        caller.session.upload(handle, value, data)
        fetched = caller.session.fetch(handle)
        assert bytes(fetched.data) == data
        assert (tuple(fetched.spec.shape), fetched.spec.dtype) == (shape, dtype)

    @pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)])
    def test_scalars_and_empty_values(self, caller: Caller, shape: tuple[int, ...]) -> None:
        value = TensorSpec(shape, "float32")
        data = pack([1.5] * (nbytes(value) // 4))
        handle = caller.handles()
        caller.session.upload(handle, value, data)
        fetched = caller.session.fetch(handle)
        assert (bytes(fetched.data), tuple(fetched.spec.shape)) == (data, shape)

    @pytest.mark.parametrize("shared", [False, True])
    def test_large_values(self, caller: Caller, shared: bool) -> None:
        data = bytes(range(256)) * 40_000  # more than two chunks of any transfer
        handle = caller.handles()
        caller.session.upload(handle, spec(len(data), dtype="uint8"), data, shared=shared)
        assert bytes(caller.session.fetch(handle).data) == data

    @pytest.mark.parametrize("size", [16, 1 << 20])
    def test_fetching_into_memory_given(self, caller: Caller, size: int) -> None:
        data = bytes(index % 251 for index in range(size))
        handle = caller.handles()
        caller.session.upload(handle, spec(size, dtype="uint8"), data)
        out = bytearray(size)
        caller.session.fetch(handle, memoryview(out))
        assert out == data

    def test_memory_of_another_size_is_refused(self, caller: Caller) -> None:
        handle = caller.put([1, 2, 3])
        with pytest.raises(GenieError):
            caller.session.fetch(handle, memoryview(bytearray(8)))
        assert caller.get(handle) == [1, 2, 3]

    @pytest.mark.parametrize("shared", [False, True])
    def test_uploaded_memory_may_be_reused_at_once(self, caller: Caller, shared: bool) -> None:
        for size in (8, 1 << 18):
            data = bytearray(b"a" * size)
            handle = caller.handles()
            caller.session.upload(handle, spec(size, dtype="uint8"), data, shared=shared)
            data[:] = b"b" * size
            assert bytes(caller.session.fetch(handle).data) == b"a" * size

    def test_describe(self, caller: Caller) -> None:
        value = caller.session.describe(caller.put([1, 2, 3, 4, 5, 6], 2, 3))
        assert (tuple(value.shape), value.dtype) == ((2, 3), "float32")
        assert value.stride is None or tuple(value.stride) == (3, 1)

    def test_a_freed_value_is_gone(self, caller: Caller) -> None:
        kept, freed = caller.put([1]), caller.put([2])
        caller.session.free([freed])
        with pytest.raises(GenieError):
            caller.session.fetch(freed)
        assert caller.get(kept) == [1]

    def test_an_unknown_handle(self, caller: Caller) -> None:
        with pytest.raises(GenieError):
            caller.session.describe(12_345)
        assert caller.get(caller.put([1])) == [1]

    def test_freeing_gives_memory_back(self, caller: Caller) -> None:
        size = 1 << 20
        before = caller.session.stats()["memory_bytes"]
        handle = caller.handles()
        caller.session.upload(handle, spec(size, dtype="uint8"), bytes(size))
        assert caller.session.stats()["memory_bytes"] >= before + size
        caller.session.free([handle])
        caller.session.synchronize()
        after = caller.session.stats()
        assert after["memory_bytes"] < before + size
        assert after["peak_memory_bytes"] >= before + size

    # --- plans ------------------------------------------------------------------------------------

    def test_a_plan_runs(self, caller: Caller) -> None:
        result = caller.run(_ADD, [caller.put([1, 2, 3]), caller.put([10, 20, 30])])
        assert caller.get(result) == [11, 22, 33]

    def test_the_same_plan_is_loaded_once(self, caller: Caller) -> None:
        assert caller.load(_ADD) == caller.load(_ADD)
        assert caller.load(_ADD) != caller.load(_NEG)

    def test_a_plan_runs_again_on_other_values(self, caller: Caller) -> None:
        one = caller.put([1, 1, 1])
        value = caller.put([0, 0, 0])
        for _ in range(10):
            value = caller.run(_ADD, [value, one])
        assert caller.get(value) == [10, 10, 10]

    def test_an_execution_that_may_wait_for_a_look_loses_nothing(self, caller: Caller) -> None:
        one = caller.put([1, 2, 3])
        two = caller.run(_ADD, [one, one], more=True)
        assert caller.get(two) == [2, 4, 6]
        three = caller.run(_ADD, [two, one], more=True)
        caller.session.free([two])
        four = caller.run(_ADD, [three, one])
        assert caller.session.describe(caller.run(_NEG, [one], more=True)).shape == (3,)
        assert caller.get(four) == [4, 8, 12]

    def test_graphs_that_python_finds_equal_are_different_plans(self, caller: Caller) -> None:
        results = [
            caller.run(single("aten::add.Tensor", [spec(2), spec(2)], spec(2), alpha), [caller.put([1, 2])] * 2)
            for alpha in (1, 1.0)
        ]
        for result in results:
            assert caller.get(result) == [2, 4]

    def test_parameters_change_between_runs(self, caller: Caller) -> None:
        one, other = caller.put([1, 2, 3]), caller.put([1, 1, 1])
        results = [caller.run(_ADD, [one, other], words=[alpha & (1 << 64) - 1]) for alpha in (1, 5, -2)]
        assert [caller.get(result) for result in results] == [[2, 3, 4], [6, 7, 8], [-1, 0, 1]]

    def test_float_parameters(self, caller: Caller) -> None:
        graph = single("aten::add.Tensor", [spec(2), spec(2)], spec(2), 0.5)
        one, other = caller.put([1, 2]), caller.put([2, 4])
        results = [caller.run(graph, [one, other], words=[float_bits(alpha)]) for alpha in (0.5, -0.25)]
        assert [caller.get(result) for result in results] == [[2, 4], [0.5, 1]]

    def test_several_steps_and_outputs(self, caller: Caller) -> None:
        graph = Graph(
            values=tuple(spec(2, 2) for _ in range(4)),
            inputs=(Input(0), Input(1)),
            steps=(node(0, "aten::mm", [Ref(0), Ref(1)], [2]), node(1, "aten::neg", [Ref(2)], [3])),
            outputs=(3, 2),
        )
        first = caller.run(graph, [caller.put([1, 2, 3, 4], 2, 2), caller.put([0, 1, 1, 0], 2, 2)])
        assert caller.get(first) == [-2, -1, -4, -3]
        assert caller.get(first + 1) == [2, 1, 4, 3]

    def test_writing_in_place_through_a_view(self, caller: Caller) -> None:
        graph = Graph(
            values=(spec(4), spec(2, 2), spec(2, 2)),
            inputs=(Input(0), Input(1)),
            steps=(
                node(0, "aten::view", [Ref(0), Many((2, 2))], [2], aliases=[(2, 0)]),
                node(1, "aten::add_.Tensor", [Ref(2), Ref(1), 1], [-1], mutates=[2]),
            ),
            outputs=(2,),
        )
        value = caller.put([1, 2, 3, 4])
        view = caller.run(graph, [value, caller.put([10, 10, 10, 10], 2, 2)])
        assert caller.get(view) == [11, 12, 13, 14]
        assert caller.get(value) == [11, 12, 13, 14]

    def test_a_donated_input_is_gone(self, caller: Caller) -> None:
        graph = Graph(
            values=(spec(3), spec(3)),
            inputs=(Input(0, donated=True),),
            steps=(node(0, "aten::neg", [Ref(0)], [1]),),
            outputs=(1,),
        )
        given = caller.put([1, 2, 3])
        assert caller.get(caller.run(graph, [given])) == [-1, -2, -3]
        with pytest.raises(GenieError):
            caller.session.fetch(given)

    def test_an_unknown_operator_is_refused(self, caller: Caller) -> None:
        graph = single("aten::no_such_operator", [spec(3)], spec(3))
        given = caller.put([1, 2, 3])
        with pytest.raises((PlanError, GenieError)):
            # Refused when it is loaded, or, if nobody waits for that, at the next look.
            caller.get(caller.run(graph, [given]))
        with contextlib.suppress(GenieError):
            caller.session.describe(given)
        assert caller.get(caller.run(_NEG, [given])) == [-1, -2, -3]

    def test_an_unknown_plan_is_refused(self, caller: Caller) -> None:
        with pytest.raises(GenieError):
            caller.session.execute(99, b"\0")

    # --- failures ---------------------------------------------------------------------------------

    def _failing(self, caller: Caller) -> int:
        graph = Graph(
            values=(spec(2, 2), spec(3, 3), spec(2, 2), spec(2, 2), spec(2, 2)),
            inputs=(Input(0), Input(1)),
            steps=(
                node(0, "aten::neg", [Ref(0)], [2]),
                node(1, "aten::mm", [Ref(0), Ref(1)], [3]),
                node(2, "aten::neg", [Ref(3)], [4]),
            ),
            outputs=(2, 3, 4),
        )
        return caller.run(graph, [caller.put([1] * 4, 2, 2), caller.put([1] * 9, 3, 3)])

    def test_a_failing_step_is_told_at_the_next_look(self, caller: Caller) -> None:
        first = self._failing(caller)
        with pytest.raises(RemoteOpError) as caught:
            caller.get(first + 1)
        error = caught.value
        assert error.op.startswith("aten::mm")
        assert error.step == 1
        assert error.kind == "RuntimeError"
        assert "mat1 and mat2" in error.message
        assert isinstance(error, RuntimeError)

    def test_only_what_depends_on_it_fails(self, caller: Caller) -> None:
        first = self._failing(caller)
        with pytest.raises(RemoteOpError):
            caller.session.describe(first + 2)
        assert caller.get(first) == [-1] * 4

    def test_a_failure_travels_into_later_plans(self, caller: Caller) -> None:
        first = self._failing(caller)
        later = caller.run(single("aten::neg", [spec(2, 2)], spec(2, 2)), [first + 2])
        with pytest.raises(RemoteOpError) as caught:
            caller.get(later)
        assert caught.value.op.startswith("aten::mm")

    def test_synchronize_is_no_look(self, caller: Caller) -> None:
        self._failing(caller)
        caller.session.synchronize()

    def test_the_session_lives_on(self, caller: Caller) -> None:
        first = self._failing(caller)
        with pytest.raises(RemoteOpError):
            caller.get(first + 1)
        caller.session.free([first, first + 1, first + 2])
        assert caller.get(caller.run(_NEG, [caller.put([1, 2, 3])])) == [-1, -2, -3]

    # --- random numbers ---------------------------------------------------------------------------

    def test_a_generator_state_can_be_kept(self, caller: Caller) -> None:
        session = caller.session
        session.seed(0, 42)
        first = session.generator_state(0)
        session.seed(0, 43)
        assert session.generator_state(0) != first
        session.set_generator_state(0, first)
        assert session.generator_state(0) == first

    def test_seeds_repeat(self, caller: Caller) -> None:
        if not self.has_random:
            pytest.skip("this backend has no aten::rand")
        self._seeds_repeat(caller, caller)

    def test_sessions_draw_apart(self, backend: Backend, caller: Caller) -> None:
        if not self.has_random:
            pytest.skip("this backend has no aten::rand")
        other = backend.connect(backend.devices()[0])
        try:
            self._seeds_repeat(caller, Caller(other))
        finally:
            other.close()

    @staticmethod
    def _seeds_repeat(one: Caller, other: Caller) -> None:
        value = spec(8)
        rand = Graph(
            values=(value,),
            inputs=(),
            steps=(
                node(
                    0,
                    "aten::rand",
                    [Many((8,)), Const("dtype", "float32"), None, Const("device", "self"), None],
                    [0],
                ),
            ),
            outputs=(0,),
        )
        one.session.seed(0, 7)
        first = one.get(one.run(rand, []))
        one.get(one.run(rand, []))
        other.session.seed(0, 7)
        assert other.get(other.run(rand, [])) == first
        assert all(0 <= number < 1 for number in first)

    # --- sessions ---------------------------------------------------------------------------------

    def test_sessions_do_not_share_handles(self, backend: Backend, caller: Caller) -> None:
        other = backend.connect(backend.devices()[0])
        try:
            theirs = Caller(other)
            mine = caller.put([1, 2, 3])
            assert theirs.put([4, 5, 6]) == mine
            assert (caller.get(mine), theirs.get(mine)) == ([1, 2, 3], [4, 5, 6])
        finally:
            other.close()

    def test_writing_into_shared_content_stays_private(self, backend: Backend, caller: Caller) -> None:
        size = 1 << 14
        content = struct.pack(f"<{size}f", *([1.0] * size))
        other = backend.connect(backend.devices()[0])
        add = Graph(
            values=(spec(size), spec(size)),
            inputs=(Input(0), Input(1)),
            steps=(node(0, "aten::add_.Tensor", [Ref(0), Ref(1), 1], [-1], mutates=[0]),),
            outputs=(),
        )
        try:
            theirs = Caller(other)
            for each in (caller, theirs):
                each.session.upload(each.handles(), spec(size), content, shared=True)
            caller.run(add, [1, 1])
            again = caller.handles()
            caller.session.upload(again, spec(size), content, shared=True)
            assert caller.get(1)[:2] == [2.0, 2.0]
            assert theirs.get(1)[:2] == [1.0, 1.0]
            assert caller.get(again)[:2] == [1.0, 1.0]
        finally:
            other.close()

    def test_sessions_work_at_the_same_time(self, backend: Backend) -> None:
        def work(number: int) -> list[float]:
            session = backend.connect(backend.devices()[0])
            try:
                caller = Caller(session)
                value, step = caller.put([0, 0, 0]), caller.put([number] * 3)
                for _ in range(20):
                    value = caller.run(_ADD, [value, step])
                return caller.get(value)
            finally:
                session.close()

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(work, range(4), timeout=60))
        assert results == [[20 * number] * 3 for number in range(4)]

    def test_a_closed_session_refuses(self, backend: Backend) -> None:
        session = backend.connect(backend.devices()[0])
        caller = Caller(session)
        handle = caller.put([1])
        session.close()
        session.close()
        with pytest.raises(GenieError):
            session.fetch(handle)

    def test_stats_are_counts(self, caller: Caller) -> None:
        caller.run(_NEG, [caller.put([1, 2, 3])])
        stats = caller.session.stats()
        assert stats["plans"] == 1
        assert all(isinstance(number, int) and number >= 0 for number in stats.values())
