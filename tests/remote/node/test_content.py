"""Uploads by content: known, shared, interrupted, resumed, wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import blake3
import pytest
from remote.peers import Node

from genie.errors import ProtocolError
from genie.interfaces import Connection
from genie.remote import RemoteSession
from genie.remote.client.offers import CHUNK
from genie.remote.greeting import meet
from genie.remote.node.content_store import ContentStore
from genie.testing import Caller
from genie.testing.plans import spec
from genie.wire import Kind, frames, messages

_SIZE = 3 * CHUNK + 1000


@pytest.fixture
def content() -> bytes:
    return os.urandom(_SIZE)


def _upload(caller: Caller, content: bytes) -> tuple[int, int]:
    """The handle, and the bytes sent for it."""
    session = caller.session
    assert isinstance(session, RemoteSession)
    before = session.traffic["bytes_sent"]
    handle = caller.handles()
    session.upload(handle, spec(len(content), dtype="uint8"), content, shared=True)
    session.synchronize()
    return handle, session.traffic["bytes_sent"] - before


def _holds(caller: Caller, handle: int, content: bytes) -> bool:
    return bytes(caller.session.fetch(handle).data) == content


class _HalfAClient:
    """Offers a content and sends only part of it."""

    def __init__(self, node: Node, content: bytes) -> None:
        self.connection: Connection = meet(node.transport, node.server.address, 0, 5.0).connection
        self._content = content
        self._digest = blake3.blake3(content).digest()
        self._seq = 0

    def send(self, kind: Kind, payload: bytes, data: bytes | None = None) -> None:
        self._seq += 1
        if data is None:
            self.connection.send(frames.one(self._seq, kind, payload))
        else:
            self.connection.send(frames.one(self._seq, kind, payload, len(data)), (data,))

    def answer(self) -> memoryview:
        message = self.connection.receive(lambda header, sizes: [], 5.0)
        return frames.single(message.header)[2]

    def begin(self) -> tuple[int, bool]:
        self.send(Kind.UPLOAD_BEGIN, messages.put_chunk(self._digest, len(self._content)))
        return messages.get_held(self.answer())

    def chunk(self, offset: int, data: bytes | None = None) -> None:
        data = self._content[offset : offset + CHUNK] if data is None else data
        self.send(Kind.UPLOAD_CHUNK, messages.put_chunk(self._digest, offset), data)

    def settle(self) -> None:
        self.send(Kind.SYNC, b"")
        self.answer()


def test_a_second_client_sends_nothing(node: Node, content: bytes) -> None:
    first, second = node.client(), node.client()
    handle, sent = _upload(first, content)
    assert sent > _SIZE
    again, sent_again = _upload(second, content)
    assert sent_again < 200
    assert _holds(first, handle, content)
    assert _holds(second, again, content)


def test_content_outlives_its_client(node: Node, content: bytes) -> None:
    first = node.client()
    _upload(first, content)
    first.session.close()
    node.wait_for_sessions(0)
    second = node.client()
    handle, sent = _upload(second, content)
    assert sent < 200
    assert _holds(second, handle, content)


def test_one_upload_is_sent_once_under_two_handles(node: Node, content: bytes) -> None:
    caller = node.client()
    one, _ = _upload(caller, content)
    other, sent = _upload(caller, content)
    assert sent < 200
    assert _holds(caller, one, content)
    assert _holds(caller, other, content)


def test_a_client_killed_while_uploading_and_the_upload_resumed(node: Node, content: bytes) -> None:
    half = _HalfAClient(node, content)
    assert half.begin() == (0, False)
    half.chunk(0)
    half.chunk(CHUNK)
    half.settle()
    half.connection.close()
    node.wait_for_sessions(0)
    assert all(session.stats()["memory_bytes"] == 0 for session in node.local.sessions)
    caller = node.client()
    handle, sent = _upload(caller, content)
    assert sent < _SIZE - 2 * CHUNK + 1000
    assert _holds(caller, handle, content)


def test_what_another_client_left_is_not_believed(node: Node, content: bytes) -> None:
    liar = _HalfAClient(node, content)
    assert liar.begin() == (0, False)
    liar.chunk(0, bytes(CHUNK))
    liar.settle()
    liar.connection.close()
    node.wait_for_sessions(0)
    caller = node.client()
    handle, sent = _upload(caller, content)
    assert _holds(caller, handle, content)
    assert sent > _SIZE  # the rest, and then all of it
    other, sent = _upload(caller, content)
    assert sent > _SIZE  # the lie is forgotten, and this one is kept
    assert _holds(caller, other, content)
    assert _upload(caller, content)[1] < 200


def test_two_clients_upload_the_same_at_once(node: Node, content: bytes) -> None:
    """The one who comes second waits for the first, and sends nothing."""
    callers = [node.client() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda caller: _upload(caller, content), callers, timeout=30))
    assert sorted(sent > _SIZE for _, sent in found) == [False, False, True]
    assert all(_holds(caller, handle, content) for caller, (handle, _) in zip(callers, found, strict=True))


def test_nobody_waits_for_a_client_that_stands_still(node: Node, content: bytes) -> None:
    half = _HalfAClient(node, content)
    half.begin()
    half.chunk(0)
    half.settle()
    caller = node.client()
    handle, sent = _upload(caller, content)
    assert sent > _SIZE
    assert _holds(caller, handle, content)
    half.chunk(CHUNK)
    half.settle()


def test_content_beyond_the_budget_goes_directly(make_node: Callable[..., Node], content: bytes) -> None:
    node = make_node(content_bytes=_SIZE - 1)
    caller = node.client()
    for _ in range(2):
        handle, sent = _upload(caller, content)
        assert sent > _SIZE
        assert _holds(caller, handle, content)
    assert node.server.content().stats()["content_bytes"] == 0


def test_a_commit_of_what_was_not_offered(node: Node, content: bytes) -> None:
    half = _HalfAClient(node, content)
    half.begin()
    half.chunk(0)
    half.send(Kind.UPLOAD_COMMIT, messages.put_commit(blake3.blake3(content).digest(), 1, spec(_SIZE, dtype="uint8")))
    half.send(Kind.DESCRIBE, messages.HANDLE.pack(1))
    assert isinstance(messages.get_error(half.answer(), "node"), ProtocolError)


# --- the store -----------------------------------------------------------------------------------


def _fill(store: ContentStore, session: str, data: bytes) -> bytes:
    digest = blake3.blake3(data).digest()
    held = store.begin(session, digest, len(data))
    assert held is not None
    if held < len(data):
        store.room(session, digest, held, len(data) - held)[:] = data[held:]
        store.received(session, digest, len(data) - held)
    assert bytes(store.take(session, digest)) == data
    return digest


def test_the_least_recently_used_goes_first() -> None:
    store = ContentStore(budget=300)
    one, two, three, four = (bytes([number]) * 100 for number in range(4))
    for data in (one, two, three):
        store.done("s", _fill(store, "s", data))
    store.done("s", _fill(store, "s", one))
    store.done("s", _fill(store, "s", four))
    assert store.begin("t", blake3.blake3(one).digest(), 100) == 100
    assert store.begin("t", blake3.blake3(four).digest(), 100) == 100
    assert store.begin("t", blake3.blake3(two).digest(), 100) == 0
    assert store.stats()["content_bytes"] <= 300


def test_what_is_being_used_stays() -> None:
    store = ContentStore(budget=150)
    digest = _fill(store, "s", b"a" * 100)
    assert store.begin("t", bytes(32), 100) is None
    store.done("s", digest)
    assert store.begin("t", bytes(32), 100) == 0


def test_partial_content_is_kept_for_a_while() -> None:
    now = 0.0
    store = ContentStore(budget=1000, partial_seconds=60, clock=lambda: now)
    data = b"x" * 100
    digest = blake3.blake3(data).digest()
    assert store.begin("s", digest, 100) == 0
    store.room("s", digest, 0, 40)[:] = data[:40]
    store.received("s", digest, 40)
    now = 1000.0
    store.expire()  # it is being sent: slowly
    store.release("s")
    now += 59
    store.expire()
    assert store.begin("t", digest, 100) == 40
    store.release("t")
    now += 61
    store.expire()
    assert store.stats() == {"content_bytes": 0, "content_entries": 0, "content_partial": 0, "content_hits": 0}


def test_content_that_is_not_what_it_says() -> None:
    store = ContentStore(budget=1000)
    digest = blake3.blake3(b"right").digest()
    assert store.begin("s", digest, 5) == 0
    store.room("s", digest, 0, 5)[:] = b"wrong"
    store.received("s", digest, 5)
    with pytest.raises(ProtocolError, match="digest"):
        store.take("s", digest)
    assert store.stats()["content_bytes"] == 0


@pytest.mark.parametrize(("offset", "size"), [(1, 4), (0, 6), (0, 1 << 60)])
def test_parts_that_do_not_fit(offset: int, size: int) -> None:
    store = ContentStore(budget=1000)
    store.begin("s", bytes(32), 5)
    with pytest.raises(ProtocolError):
        store.room("s", bytes(32), offset, size)


def test_taken_content_is_read_only() -> None:
    store = ContentStore(budget=1000)
    digest = _fill(store, "s", b"weights")
    with pytest.raises(TypeError):
        store.take("s", digest)[0] = 0
