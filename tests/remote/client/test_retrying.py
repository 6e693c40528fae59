"""What is tried again, and what never is."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import msgspec
import pytest

from genie import backoff
from genie.backoff import pauses
from genie.errors import (
    AccessDenied,
    BackendError,
    BackendUnavailable,
    ConnectionLost,
    DeadlineExceeded,
    LimitExceeded,
    NodeError,
    ProtocolError,
    SessionClosed,
    TlsFailed,
    VersionMismatch,
)
from genie.remote.client import retrying
from genie.remote.client.retrying import connected
from genie.remote.control import SERVICE, ControlClient, messages


def hung_up() -> BackendUnavailable:
    error = BackendUnavailable("it hung up")
    error.transient = True
    return error


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time passes when somebody sleeps, and only then."""
    now, pauses = [0.0], []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(retrying.time, "sleep", sleep)
    monkeypatch.setattr(retrying.time, "monotonic", lambda: now[0])
    return pauses


def test_pauses_grow_and_are_nobody_elses() -> None:
    some = [list(itertools.islice(pauses(), 12)) for _ in range(2)]
    assert some[0] != some[1]
    for each in some:
        for number, pause in enumerate(each):
            whole = min(backoff.FIRST * 2**number, backoff.LONGEST)
            assert whole / 2 <= pause <= whole


def test_a_node_that_hangs_up_is_asked_again(slept: list[float]) -> None:
    answers: list[BackendError | str] = [hung_up(), hung_up(), "there"]

    def connect(left: float) -> str:
        answer = answers.pop(0)
        if isinstance(answer, BackendError):
            raise answer
        return answer

    assert connected(connect, 10.0) == "there"
    assert len(slept) == 2


@pytest.mark.parametrize(
    "later", [hung_up(), DeadlineExceeded("late"), ConnectionLost("lost")], ids=lambda e: e.message
)
def test_in_the_end_the_first_reason_is_told(slept: list[float], later: BackendError) -> None:
    reasons = itertools.chain([hung_up()], itertools.repeat(later))

    def connect(left: float) -> None:
        raise next(reasons)

    with pytest.raises(BackendUnavailable, match="it hung up"):
        connected(connect, 10.0)
    assert len(slept) <= 3


def test_there_is_no_time_for_more_than_there_is(slept: list[float]) -> None:
    def connect(left: float) -> None:
        assert left > 0
        raise hung_up()

    with pytest.raises(BackendUnavailable):
        connected(connect, 0.06)
    assert sum(slept) < 0.06


@pytest.mark.parametrize(
    "error",
    [
        BackendUnavailable("nobody listens"),
        ConnectionLost("lost"),
        DeadlineExceeded("late"),
        AccessDenied("no"),
        LimitExceeded("full"),
        NodeError("no device"),
        ProtocolError("nonsense"),
        SessionClosed("over"),
        TlsFailed("no TLS"),
        VersionMismatch("old"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_tried_again(slept: list[float], error: BaseException) -> None:
    tries = []

    def connect(left: float) -> None:
        tries.append(left)
        raise error

    with pytest.raises(type(error)):
        connected(connect, 10.0)
    assert len(tries) == 1
    assert slept == []


@pytest.fixture
def flaky() -> Iterator[tuple[str, Counter[str]]]:
    """A control plane that is not there for the first two of each call; and how often each was asked."""
    asked: Counter[str] = Counter()
    answers = {
        "Open": messages.Opened(b"i" * 16, b"k" * 32, 1.0),
        "Sessions": messages.Sessions(),
        "Drain": messages.Drained(),
        "Cancel": messages.Cancelled(found=True),
    }

    def handler(name: str) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        def handle(data: bytes, context: grpc.ServicerContext) -> bytes:
            asked[name] += 1
            if asked[name] <= 2:
                context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
            return msgspec.msgpack.encode(answers[name])

        return handle

    server = grpc.server(ThreadPoolExecutor(2))
    methods = {name: grpc.unary_unary_rpc_method_handler(handler(name)) for name in answers}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", asked
    server.stop(None).wait(10.0)


def test_the_control_plane_is_asked_again_for_what_may_be_asked_twice(flaky: tuple[str, Counter[str]]) -> None:
    address, asked = flaky
    with ControlClient(address, 20.0) as client:
        assert client.sessions() == ()
        assert client.ticket(0).id == b"i" * 16
    assert (asked["Sessions"], asked["Open"]) == (3, 3)


def test_and_never_for_what_is_done(flaky: tuple[str, Counter[str]]) -> None:
    address, asked = flaky
    with ControlClient(address, 20.0) as client:
        for call in (lambda: client.drain(1.0), lambda: client.cancel("session")):
            with pytest.raises(DeadlineExceeded, match="not now"):
                call()
    assert (asked["Drain"], asked["Cancel"]) == (1, 1)
