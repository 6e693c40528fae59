"""What a session that tells its state must do; part of :class:`genie.testing.BackendSuite`.

Operators as in the suite.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from genie.errors import NodeError, RemoteOpError, UnsupportedOperation
from genie.graph import Graph, Input, Many, Ref
from genie.interfaces import Backend, Snapshotting
from genie.snapshots import MemoryState, Snapshot
from genie.testing.plans import Caller, node, single, spec

_VIEW = Graph(
    values=(spec(4), spec(2, 2)),
    inputs=(Input(0),),
    steps=(node(0, "aten::view", [Ref(0), Many((2, 2))], [1], aliases=[(1, 0)]),),
    outputs=(1,),
)
_WRITE = Graph(
    values=(spec(2, 2),),
    inputs=(Input(0),),
    steps=(node(0, "aten::add_.Tensor", [Ref(0), Ref(0), 1], [-1], mutates=[0]),),
    outputs=(),
)
_FAILING = single("aten::mm", [spec(4), spec(4)], spec(4))


class SnapshotSuite:
    """Uses the fixtures ``backend`` and ``caller``. A session that is no :class:`genie.interfaces.Snapshotting`, or
    whose node's is none, is let pass."""

    @pytest.fixture
    def telling(self, caller: Caller) -> Caller:
        try:
            if isinstance(caller.session, Snapshotting):
                caller.session.snapshot()
                return caller
        except UnsupportedOperation:
            pass
        pytest.skip("this backend's sessions do not tell their state")

    @pytest.fixture
    def other(self, backend: Backend) -> Iterator[Caller]:
        session = backend.connect(backend.devices()[0])
        yield Caller(session)
        session.close()

    @staticmethod
    def _told(caller: Caller) -> Snapshot:
        assert isinstance(caller.session, Snapshotting)
        return caller.session.snapshot()

    def _moved(self, source: Caller, target: Caller) -> Snapshot:
        first, second = source.session, target.session
        assert isinstance(first, Snapshotting)
        assert isinstance(second, Snapshotting)
        snapshot = first.snapshot()
        data = {each.id: bytes(first.read_memory(each.id, version=each.version)) for each in snapshot.memories}

        def memories(memory: MemoryState) -> bytes:
            return data[memory.id]

        second.restore(snapshot, memories)
        return snapshot

    def test_a_session_becomes_another(self, telling: Caller, other: Caller) -> None:
        """Two names of one memory are two names of one memory there."""
        base = telling.put([1, 2, 3, 4])
        view = telling.run(_VIEW, [base])
        failed = telling.run(_FAILING, [base, base])
        snapshot = self._moved(telling, other)
        assert self._told(other) == snapshot
        assert {value.handle: value.memory for value in snapshot.values}.keys() == {base, view}
        assert len(snapshot.memories) == 1
        for caller in (telling, other):
            caller.run(_WRITE, [view])
            assert caller.get(base) == caller.get(view) == [2, 4, 6, 8]
            with pytest.raises(RemoteOpError):
                caller.get(failed)

    def test_what_is_written_has_another_version(self, telling: Caller) -> None:
        written, kept = telling.run(_VIEW, [telling.put([1, 2, 3, 4])]), telling.put([5])
        before = self._told(telling)
        telling.run(_WRITE, [written])
        after = self._told(telling)
        placed = {value.handle: value.memory for value in before.values}
        assert placed == {value.handle: value.memory for value in after.values}
        same = {memory.id for memory in after.memories if memory in before.memories}
        assert same == {placed[kept]}
        session = telling.session
        assert isinstance(session, Snapshotting)
        for memory in before.memories:
            if memory.id not in same:
                with pytest.raises(NodeError):
                    session.read_memory(memory.id, version=memory.version)

    def test_only_a_session_without_values_becomes_another(self, telling: Caller, other: Caller) -> None:
        telling.put([1])
        mine = other.put([2])
        with pytest.raises(NodeError):
            self._moved(telling, other)
        assert other.get(mine) == [2]
