"""Checkpoints on disk: whole or not at all, shared where nothing changed, never believed unread."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from local.both import Program, data_of, spec_of
from local.stateful import Play, Player, looks, state

from genie.checkpoints import CheckpointStore, DiskCheckpoints
from genie.errors import CheckpointError, NodeError
from genie.testing import NullBackend
from genie_backend_local import LocalBackend, LocalSession

LARGE = 1 << 16  # elements


@pytest.fixture
def backend() -> Iterator[LocalBackend]:
    backend = LocalBackend()
    yield backend
    backend.close()


@pytest.fixture
def connect(backend: LocalBackend) -> Callable[[], LocalSession]:
    return lambda: backend.connect(backend.devices()[-1])


@pytest.fixture
def session(connect: Callable[[], LocalSession]) -> LocalSession:
    """Two large values, a small one, and a view."""
    session = connect()
    for handle, tensor in enumerate((torch.rand(LARGE), torch.ones(LARGE), torch.rand(4, 4)), 1):
        session.upload(handle, spec_of(tensor), data_of(tensor))
    program = Program()
    x = program.input(torch.empty(4, 4))
    Player(session).execute(program.graph(program.call("aten::transpose.int", x, 0, 1)), 4, [3])
    return session


def write(session: LocalSession, handle: int) -> None:
    program = Program()
    x = program.input(torch.empty(1))
    program.write("aten::add_.Scalar", x, 1.0, 1, to=[x])
    Player(session).execute(program.graph(), 1, [handle])


def contents(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (directory / "contents").iterdir()}


def test_it_is_a_store(tmp_path: Path) -> None:
    assert isinstance(DiskCheckpoints(tmp_path), CheckpointStore)


def test_a_session_comes_back(tmp_path: Path, session: LocalSession, connect: Callable[[], LocalSession]) -> None:
    store = DiskCheckpoints(tmp_path)
    checkpoint = store.save(session, b"step 7")
    assert checkpoint.snapshot == session.snapshot()
    expected = state(session)
    write(session, 1)
    session.close()
    restored = connect()
    store.load(checkpoint, restored)
    assert state(restored) == expected
    store.close()
    again = DiskCheckpoints(tmp_path)
    assert again.checkpoints() == (checkpoint,)
    assert again.checkpoints()[0].note == b"step 7"
    again.verify(checkpoint)
    again.load(checkpoint, other := connect())
    assert state(other) == expected


def test_only_what_changed_is_read_and_written(
    tmp_path: Path, session: LocalSession, monkeypatch: pytest.MonkeyPatch, connect: Callable[[], LocalSession]
) -> None:
    store = DiskCheckpoints(tmp_path)
    store.save(session)
    before = contents(tmp_path)
    assert len(before) == 2
    write(session, 2)
    read: list[int] = []
    real = LocalSession.read_memory

    def counting(self: LocalSession, id: int, *args: object, **options: object) -> memoryview:
        read.append(id)
        return real(self, id, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalSession, "read_memory", counting)
    second = store.save(session)
    assert set(read) == {session.memory_of(2).id}
    after = contents(tmp_path)
    assert before.items() <= after.items()
    assert len(after) == 3
    # Nothing is read twice by the next process either, or of a session that came back.
    store.close()
    store = DiskCheckpoints(tmp_path)
    store.load(second, restored := connect())
    read.clear()
    store.save(restored)
    assert read == []
    # What only the first had is gone with it.
    assert len(contents(tmp_path)) == 2
    assert len(store.checkpoints()) == 2


def test_equal_contents_are_one_file(tmp_path: Path, connect: Callable[[], LocalSession]) -> None:
    session = connect()
    for handle in (1, 2, 3):
        session.upload(handle, spec_of(torch.ones(LARGE)), data_of(torch.ones(LARGE)))
    store = DiskCheckpoints(tmp_path)
    checkpoint = store.save(session)
    assert len(contents(tmp_path)) == 1
    store.load(checkpoint, restored := connect())
    assert state(restored) == state(session)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 30))
def test_saved_at_any_moment(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What came back and what went on do the same from there, random numbers included."""
    backend = LocalBackend()
    store = DiskCheckpoints(tmp_path_factory.mktemp("checkpoints"), keep=3)
    play = Play(seed, Player(backend.connect(backend.devices()[-1])))
    draw = random.Random(seed)
    for _ in range(30):
        play.step()
        if draw.random() < 0.15:
            restored = backend.connect(backend.devices()[-1])
            store.load(store.save(draw.choice(play.players).session), restored)
            play.players.append(Player(restored))
    seen = [(state(player.session), looks(player.session, play.handles)) for player in play.players]
    assert all(each == seen[0] for each in seen)
    backend.close()
    store.close()


@pytest.mark.parametrize("flip", [0, 1000, LARGE * 4 - 1])
def test_a_flipped_bit_is_found(
    tmp_path: Path, session: LocalSession, connect: Callable[[], LocalSession], flip: int
) -> None:
    store = DiskCheckpoints(tmp_path)
    checkpoint = store.save(session)
    path = tmp_path / "contents" / min(contents(tmp_path))
    data = bytearray(path.read_bytes())
    data[flip] ^= 4
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        store.load(checkpoint, connect())
    with pytest.raises(CheckpointError, match="damaged"):
        store.verify(checkpoint)


@pytest.mark.parametrize("change", ["flip", "cut", "gone", "grown"])
def test_damaged_checkpoints_are_not_offered(
    tmp_path: Path, session: LocalSession, connect: Callable[[], LocalSession], change: str
) -> None:
    store = DiskCheckpoints(tmp_path)
    first = store.save(session)
    write(session, 1)
    second = store.save(session)
    path = tmp_path / f"{second.id:016d}.checkpoint"
    data = bytearray(path.read_bytes())
    if change == "flip":
        data[len(data) // 2] ^= 1
    if change == "cut":
        del data[-1:]
    if change == "grown":
        data += b"x"
    path.write_bytes(data)
    if change == "gone":
        path.unlink()
    with pytest.raises(CheckpointError, match="damaged|cannot be read"):
        store.load(second, connect())
    store.close()
    store = DiskCheckpoints(tmp_path)
    assert store.checkpoints() == (first,)
    store.load(first, connect())
    assert store.save(session).id == second.id


def test_content_that_is_gone_is_said_and_written_again(
    tmp_path: Path, session: LocalSession, connect: Callable[[], LocalSession]
) -> None:
    store = DiskCheckpoints(tmp_path)
    checkpoint = store.save(session)
    (tmp_path / "contents" / min(contents(tmp_path))).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        store.load(checkpoint, connect())
    store.load(store.save(session), restored := connect())
    assert state(restored) == state(session)


class Full(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_full_disk_leaves_the_last_whole_one(
    tmp_path: Path,
    session: LocalSession,
    connect: Callable[[], LocalSession],
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    """However far the save has come."""
    store = DiskCheckpoints(tmp_path)
    first = store.save(session)
    expected = state(session)
    there = sorted(path.name for path in tmp_path.rglob("*"))
    write(session, 1)
    write(session, 2)
    real, written = os.write, 0

    def full(file: int, data: memoryview) -> int:
        nonlocal written
        if written >= after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += 1
        return real(file, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        store.save(session)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.rglob("*")) == there
    store.load(first, restored := connect())
    assert state(restored) == expected
    store.load(store.save(session), restored := connect())
    assert state(restored) == state(session)


def test_a_killed_save_leaves_the_last_whole_one(
    tmp_path: Path, session: LocalSession, connect: Callable[[], LocalSession]
) -> None:
    """Files as a process leaves them that ends at its worst moment: half written, or written and of no checkpoint."""
    store = DiskCheckpoints(tmp_path)
    first = store.save(session)
    expected = state(session)
    store.close()
    (tmp_path / "123.unfinished").write_bytes(b"half")
    (tmp_path / "contents" / "123.unfinished").write_bytes(b"half")
    (tmp_path / "contents" / ("ab" * 32)).write_bytes(b"of nobody")
    store = DiskCheckpoints(tmp_path)
    assert store.checkpoints() == (first,)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith("unfinished")]
    assert len(contents(tmp_path)) == 2
    store.load(first, restored := connect())
    assert state(restored) == expected


def test_bytes_are_bounded(tmp_path: Path, session: LocalSession) -> None:
    """Four bytes a float: both large values are half a MiB."""
    store = DiskCheckpoints(tmp_path, max_bytes=1 << 20, keep=10)
    kept = []
    for _ in range(4):
        write(session, 1)
        kept.append(store.save(session))
        assert store.bytes <= 1 << 20
    assert store.checkpoints() == tuple(kept[-len(store.checkpoints()) :])
    assert 1 < len(store.checkpoints()) < 4
    for checkpoint in store.checkpoints():
        store.verify(checkpoint)
    with pytest.raises(CheckpointError, match="not kept any more"):
        store.verify(kept[0])
    big = torch.rand(3 * LARGE)
    session.upload(9, spec_of(big), data_of(big))
    with pytest.raises(CheckpointError, match="max_bytes"):
        store.save(session)
    store.verify(store.checkpoints()[-1])
    store.drop(store.checkpoints()[-1])
    assert store.checkpoints() == ()
    assert store.bytes == 0
    with pytest.raises(CheckpointError, match="1048576 are allowed"):
        store.save(session)
    session.free([9])
    store.save(session)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    store = DiskCheckpoints(tmp_path)
    with pytest.raises(CheckpointError, match="another process"):
        DiskCheckpoints(tmp_path)
    store.close()
    store.close()
    DiskCheckpoints(tmp_path)


def test_mistakes_are_said(tmp_path: Path, session: LocalSession) -> None:
    with pytest.raises(CheckpointError, match="at least one"):
        DiskCheckpoints(tmp_path, keep=0)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoints can be kept there: .*exists|Not a directory"):
        DiskCheckpoints(tmp_path / "file" / "below")
    store = DiskCheckpoints(tmp_path / "there")
    nothing = NullBackend()
    with pytest.raises(CheckpointError, match="tells no state"):
        store.save(nothing.connect(nothing.devices()[0]))
    checkpoint = store.save(session)
    with pytest.raises(NodeError, match="values of its own"):
        store.load(checkpoint, session)
    store.close()
    for use in (store.save, lambda session: store.load(checkpoint, session)):
        with pytest.raises(CheckpointError, match="closed"):
            use(session)
