"""Values asked for ahead: kept when they come early, forgotten with their handles, and never taken from a stranger."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from remote.peers import Node, hear

from genie.errors import GenieError, NodeError, ProtocolError
from genie.graph import TensorSpec
from genie.interfaces import Connection
from genie.remote import RemoteSession
from genie.remote.client.expected import MOST_BYTES
from genie.testing import Caller
from genie.wire import Kind, frames, messages

FEW, MANY = 8, 5_000  # numbers of 4 bytes: within a record, and beside it


def session_of(caller: Caller) -> RemoteSession:
    assert isinstance(caller.session, RemoteSession)
    return caller.session


def expect(caller: Caller, numbers: int) -> tuple[int, list[float]]:
    content = [float(number) for number in range(numbers)]
    handle = caller.put(content)
    session_of(caller).expect(handle, 4 * numbers)
    return handle, content


def questions(caller: Caller) -> int:
    return session_of(caller).traffic["messages_sent"]


@pytest.mark.parametrize("numbers", [FEW, MANY])
def test_what_came_while_something_else_was_awaited_is_there(node: Node, numbers: int) -> None:
    caller = node.client()
    handle, content = expect(caller, numbers)
    caller.session.synchronize()
    before = questions(caller)
    assert caller.get(handle) == content
    assert questions(caller) == before
    assert caller.get(handle) == content  # and as ever after
    assert questions(caller) == before + 1


@pytest.mark.parametrize("numbers", [FEW, MANY])
@pytest.mark.parametrize("early", [True, False])
def test_it_comes_into_memory_given(node: Node, numbers: int, early: bool) -> None:
    caller = node.client()
    handle, content = expect(caller, numbers)
    if early:
        caller.session.synchronize()
    out = bytearray(4 * numbers)
    caller.session.fetch(handle, memoryview(out))
    assert memoryview(out).cast("f").tolist() == content


def test_several_in_any_order(node: Node) -> None:
    caller = node.client()
    expected = [expect(caller, numbers) for numbers in (FEW, MANY, FEW, 100)]
    for handle, content in reversed(expected):
        assert caller.get(handle) == content


def test_what_is_too_much_comes_when_it_is_fetched(node: Node) -> None:
    caller = node.client()
    first, content = expect(caller, MANY)
    second, more = expect(caller, MOST_BYTES // 4)
    caller.session.synchronize()
    before = questions(caller)
    assert caller.get(second) == more
    assert questions(caller) == before + 1
    assert caller.get(first) == content
    assert questions(caller) == before + 1


def test_what_nobody_will_fetch_makes_room(node: Node) -> None:
    caller = node.client()
    for _ in range(10):
        handle, _ = expect(caller, MOST_BYTES // 8)
        caller.session.free([handle])
    handle, content = expect(caller, MOST_BYTES // 8)
    caller.session.synchronize()
    before = questions(caller)
    assert caller.get(handle) == content
    assert questions(caller) == before


def test_memory_of_another_size_is_refused_as_ever(node: Node) -> None:
    caller = node.client()
    handle, content = expect(caller, FEW)
    with pytest.raises(GenieError, match="bytes"):
        caller.session.fetch(handle, memoryview(bytearray(4)))
    assert caller.get(handle) == content


def test_an_error_waits_for_the_fetch(node: Node) -> None:
    caller = node.client()
    session_of(caller).expect(999, 8)  # nothing has this name
    handle, content = expect(caller, FEW)
    assert caller.get(handle) == content
    with pytest.raises(NodeError, match="999"):
        caller.session.fetch(999)
    assert caller.get(handle) == content


@pytest.mark.parametrize("size", [MANY, 4 * MANY + 4, 1 << 34])
def test_more_than_was_asked_for_ends_the_session(
    scripted: Callable[[Callable[[Connection], None]], RemoteSession], size: int
) -> None:
    def script(connection: Connection) -> None:
        seq, _ = hear(connection)
        hear(connection)
        answer = frames.one(seq, Kind.VALUE, messages.put_result(TensorSpec((MANY,), "float32")), size)
        connection.send(answer, [memoryview(bytes(min(size, 1 << 16)))])

    session = scripted(script)
    session.expect(1, 4 * MANY)
    with pytest.raises(ProtocolError):
        session.synchronize()
    assert session.closed
