"""A session made from another's snapshot goes on as that would have."""

from __future__ import annotations

import random

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from local.both import Program, data_of, spec_of
from local.stateful import Play, Player, bytes_of, looks, move, state, told

from genie.errors import NodeError, OutOfMemory, RemoteOpError
from genie.graph import Const, Many, TensorSpec
from genie.snapshots import MemoryState, Snapshot, ValueState
from genie_backend_local import LocalBackend, LocalSession


def another(backend: LocalBackend) -> LocalSession:
    return backend.connect(backend.devices()[-1])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_both_go_on_alike(seed: int) -> None:
    backend = LocalBackend()
    try:
        play = Play(seed, Player(another(backend)))
        draw = random.Random(seed)
        for _ in range(40):
            play.step()
            if draw.random() < 0.1:
                restored = another(backend)
                move(play.players[0].session, restored)
                play.players.append(Player(restored))
        seen = [(state(player.session), looks(player.session, play.handles)) for player in play.players]
        assert all(each == seen[0] for each in seen)
    finally:
        backend.close()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_a_version_never_misses_a_write(seed: int) -> None:
    """Also across sessions that go on from one snapshot, differently."""
    backend = LocalBackend()
    try:
        known: dict[tuple[int, int], bytes] = {}
        play = Play(seed, Player(another(backend)))
        for step in range(60):
            play.step()
            snapshot = told(play.players[0].session)
            data = bytes_of(play.players[0].session, snapshot)
            for memory in snapshot.memories:
                assert len(data[memory.id]) == memory.bytes
                assert known.setdefault((memory.id, memory.version), data[memory.id]) == data[memory.id]
            if step % 20 == 10:
                restored = another(backend)
                move(play.players[0].session, restored)
                play.step()  # lost: it goes on from before that
                lost = told(play.players[0].session)
                known |= {
                    (each.id, each.version): bytes(play.players[0].session.read_memory(each.id))  # type: ignore[attr-defined]
                    for each in lost.memories
                }
                play.players = [Player(restored)]
                play.handles = [
                    *(each.handle for each in told(restored).values),
                    *(each.handle for each in told(restored).failures),
                ]
    finally:
        backend.close()


def test_what_was_not_touched_keeps_its_version(session: LocalSession) -> None:
    player = Player(session)
    player.put(1, torch.rand(4, 4))
    player.put(2, torch.rand(4, 4))
    before = {each.id: each.version for each in told(session).memories}
    program = Program()
    x, y = program.input(torch.empty(4, 4)), program.input(torch.empty(4, 4))
    program.write("aten::add_.Tensor", x, y, 1, to=[x])
    player.execute(program.graph(program.call("aten::transpose.int", y, 0, 1)), 3, [1, 2])
    session.fetch(2)
    after = told(session)
    placed = {each.handle: each.memory for each in after.values}
    changed = {each.id for each in after.memories if before[each.id] != each.version}
    assert changed == {placed[1]}
    assert placed[2] == placed[3]
    assert session.memory_of(3).id == placed[2]


def test_shared_memory_is_copied_by_who_writes_first(backend: LocalBackend, session: LocalSession) -> None:
    player, other = Player(session), another(backend)
    player.put(1, torch.ones(4, 4))
    other.adopt(1, session.share(1))
    held = session.read_memory(told(session).memories[0].id)
    move(other, third := another(backend))
    program = Program()
    x = program.input(torch.empty(4, 4))
    program.write("aten::zero_", x, to=[x])
    player.execute(program.graph(), 2, [1])
    assert bytes(held) == bytes(other.fetch(1).data) == bytes(third.fetch(1).data) == data_of(torch.ones(4, 4))
    assert bytes(session.fetch(1).data) == bytes(64)


def test_a_memory_is_read_in_parts(session: LocalSession) -> None:
    tensor = torch.arange(5000, dtype=torch.int32)
    session.upload(1, spec_of(tensor), data_of(tensor))
    (memory,) = told(session).memories
    assert memory.bytes == 20000
    parts = [bytes(session.read_memory(memory.id, None, start, 5000)) for start in range(0, 20000, 5000)]
    assert b"".join(parts) == data_of(tensor)
    out = memoryview(bytearray(20000))
    assert session.read_memory(memory.id, out, version=memory.version) == data_of(tensor)
    for offset, size in ((20001, None), (-1, 5), (19999, 2)):
        with pytest.raises(NodeError):
            session.read_memory(memory.id, None, offset, size)
    with pytest.raises(NodeError, match="was written to since"):
        session.read_memory(memory.id, version=memory.version + 1)
    session.free([1])
    with pytest.raises(NodeError, match="no memory"):
        session.read_memory(memory.id)


def test_undefined_and_wrapped_values(backend: LocalBackend, session: LocalSession) -> None:
    """A number that became a tensor still yields in promotion."""
    session.upload(1, TensorSpec((), "float64"), data_of(torch.tensor(2.0, dtype=torch.float64)))
    snapshot = told(session)
    (value,) = snapshot.values
    wrapped = msgspec.structs.replace(
        snapshot, values=(msgspec.structs.replace(value, wrapped=True), ValueState(2, 0, value.spec))
    )
    other = another(backend)
    other.restore(wrapped, lambda memory: session.read_memory(memory.id))
    assert [each.wrapped for each in told(other).values] == [True, False]
    other.upload(3, TensorSpec((2,), "float32"), data_of(torch.ones(2)))
    program = Program()
    x, y = program.input(torch.ones(())), program.input(torch.ones(2))
    Player(other).execute(program.graph(program.call("aten::mul.Tensor", x, y)), 4, [1, 3])
    assert other.describe(4).dtype == "float32"
    with pytest.raises(RemoteOpError, match="undefined"):
        other.fetch(2)


def test_what_has_no_plain_memory_is_refused_by_its_handle(session: LocalSession) -> None:
    session.upload(1, TensorSpec((2, 2), "float32"), data_of(torch.eye(2)))
    program = Program()
    x = program.input(torch.eye(2))
    Player(session).execute(program.graph(program.call("aten::_to_sparse", x, None, None, None)), 2, [1])
    with pytest.raises(NodeError, match="handle 2 .*not strided"):
        session.snapshot()
    session.free([2])
    assert [each.handle for each in told(session).values] == [1]


def test_memory_counts_once_and_is_admitted(backend: LocalBackend, session: LocalSession) -> None:
    tensor = torch.rand(1000, 1000)
    session.upload(1, spec_of(tensor), data_of(tensor))
    program = Program()
    x = program.input(tensor)
    Player(session).execute(program.graph(program.call("aten::transpose.int", x, 0, 1)), 2, [1])
    other = another(backend)
    move(session, other)
    assert other.stats()["memory_bytes"] == session.stats()["memory_bytes"] == 4_000_000
    other.free([1, 2])
    assert other.stats()["memory_bytes"] == 0
    small = LocalBackend(memory_limit_gb=1 / 1024)
    with pytest.raises(OutOfMemory):
        move(session, another(small))
    small.close()


def _snapshot(**fields: object) -> Snapshot:
    memory = MemoryState(5, 64, 6)
    value = ValueState(1, 5, TensorSpec((4, 4), "float32"))
    return msgspec.structs.replace(Snapshot((memory,), (value,)), **fields)


@pytest.mark.parametrize(
    ("snapshot", "reason"),
    [
        (_snapshot(values=(ValueState(1, 5, TensorSpec((4, 4), "float32"), 1),)), "beyond the 64 bytes"),
        (_snapshot(values=(ValueState(1, 5, TensorSpec((4, 5), "float32", (4, 1))),)), "beyond the 64 bytes"),
        (_snapshot(values=(ValueState(1, 5, TensorSpec((1 << 62, 1 << 62), "float32", (0, 0))),)), "does not lie"),
        (_snapshot(values=(ValueState(1, 5, TensorSpec((1 << 40,), "float64", (1 << 60,))),)), "beyond the 64 bytes"),
        (_snapshot(values=(ValueState(1, 5, TensorSpec((4,), "float32", (-1,))),)), "impossible strides"),
        (_snapshot(values=(ValueState(1, 9, TensorSpec((4,), "float32")),)), "memory 9"),
        (_snapshot(values=(ValueState(0, 5, TensorSpec((4,), "float32")),)), "no handle"),
        (_snapshot(values=(ValueState(1, 5, TensorSpec((4,), "float99")),)), "unknown dtype"),
        (_snapshot(values=(ValueState(1, 5, TensorSpec((4,), "float32"), conj=True),)), "does not lie"),
        (_snapshot(values=(ValueState(1, 5, TensorSpec((4,), "float32")),) * 2), "one handle"),
        (_snapshot(memories=(MemoryState(5, 65, 6),)), "65 bytes"),
        (_snapshot(memories=(MemoryState(0, 64, 6),)), "impossible memory"),
    ],
)  # fmt: skip
def test_an_impossible_state_changes_nothing(session: LocalSession, snapshot: Snapshot, reason: str) -> None:
    session.upload(9, TensorSpec((64,), "uint8"), bytes(64))
    with pytest.raises(NodeError, match=reason):
        session.restore_staged(snapshot, {5: 9})
    assert bytes(session.fetch(9).data) == bytes(64)


def test_only_what_is_given_may_be_there(session: LocalSession) -> None:
    session.upload(9, TensorSpec((64,), "uint8"), bytes(64))
    with pytest.raises(NodeError, match="missing"):
        session.restore_staged(_snapshot(memories=(MemoryState(5, 64, 6), MemoryState(7, 1, 7))), {5: 9})
    for staged in ({}, {5: 8}, {5: 9, 6: 9}):
        with pytest.raises(NodeError):
            session.restore_staged(_snapshot(), staged)
    session.upload(8, TensorSpec((1,), "uint8"), b"x")
    with pytest.raises(NodeError, match="values of its own"):
        session.restore_staged(_snapshot(), {5: 9})
    with pytest.raises(NodeError, match="nobody has"):
        session.restore(_snapshot(), lambda memory: None)


def test_seeds_of_generators_that_were_not_used_yet(backend: LocalBackend, session: LocalSession) -> None:
    session.seed(3, 77)
    other = another(backend)
    move(session, other)
    assert (
        other.generator_state(3)
        == session.generator_state(3)
        == bytes(torch.Generator().manual_seed(77).get_state().numpy())
    )


def test_kv_cache_that_grows_and_one_that_is_written_into(backend: LocalBackend, session: LocalSession) -> None:
    """What a decoder does: the cache it grows is a new memory each step, the one it fills the same."""
    player = Player(session)
    fixed, grown, new = torch.zeros(1, 2, 8, 4), torch.rand(1, 2, 3, 4), torch.rand(1, 2, 1, 4)
    for handle, tensor in enumerate((fixed, grown, new), 1):
        player.put(handle, tensor)
    program = Program()
    static, cache, token = (program.input(each) for each in (fixed, grown, new))
    slot = program.call("aten::slice.Tensor", static, 2, 5, 6, 1)
    program.write("aten::copy_", slot, token, to=[slot])
    graph = program.graph(program.call("aten::cat", Many((cache, token)), 2))
    player.execute(graph, 4, [1, 2, 3])
    other = Player(another(backend))
    before = {each.id: each.version for each in move(session, other.session).memories}
    for each in (player, other):
        each.execute(graph, 5, [1, 4, 3])
    assert state(other.session) == state(session)
    after = told(session)
    placed = {each.handle: each.memory for each in after.values}
    assert placed[5] not in before
    assert {each.id for each in after.memories if before.get(each.id) == each.version} == {
        placed[2],
        placed[3],
        placed[4],
    }


def test_the_dtype_of_a_view_is_its_own(backend: LocalBackend, session: LocalSession) -> None:
    session.upload(1, TensorSpec((4,), "float32"), data_of(torch.rand(4)))
    program = Program()
    x = program.input(torch.empty(4))
    Player(session).execute(program.graph(program.call("aten::view.dtype", x, Const("dtype", "uint8"))), 2, [1])
    other = another(backend)
    move(session, other)
    assert (other.describe(2), bytes(other.fetch(2).data)) == (TensorSpec((16,), "uint8"), bytes(session.fetch(1).data))
