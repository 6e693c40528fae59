"""Links that break while a session is at work: nothing is lost, nothing is done twice, and nothing stays."""

from __future__ import annotations

import math
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path
from types import FrameType

import msgspec
import pytest
from remote.peers import Node, hear
from remote.proxy import Proxy
from remote.test_loop import begin, numbers
from security.pki import Pki
from structlog.testing import capture_logs

from genie import backoff
from genie.bindings import Prediction, parameters
from genie.errors import BackendUnavailable, ConnectionLost, DeadlineExceeded, RemoteOpError, SessionClosed
from genie.interfaces import Connection, Transport
from genie.remote import RemoteBackend, RemoteSession
from genie.remote.channels import inlets
from genie.remote.client import rejoining
from genie.remote.client.session import Inlet
from genie.remote.node.session import lasting as node_end
from genie.testing import Caller, MemoryTransport, single
from genie.testing.plans import spec
from genie.wire import PROTOCOL, Kind, frames, messages
from genie.wire.messages import Welcome
from genie_backend_tcp import TcpTransport

_SEEDS = int(os.environ.get("RANDOM_CUTS", "6"))  # more for a long run
_ADD = single("aten::add_.Tensor", [spec(2), spec(2)], spec(2), 1)
_NEG = single("aten::neg", [spec(2)], spec(2))


@pytest.fixture
def lasting(make_node: Callable[..., Node]) -> Node:
    return make_node(transport=TcpTransport(stall_timeout=10), address="127.0.0.1:0", local=False, lease_seconds=20.0)


@pytest.fixture
def through(lasting: Node) -> Iterator[Callable[..., tuple[Proxy, Caller]]]:
    """A client of the node, behind a proxy."""
    proxies: list[Proxy] = []
    backends: list[RemoteBackend] = []

    def make(
        target: Node | None = None,
        *,
        timeout: float = 10.0,
        heartbeat: float = 10.0,
        silence: float = math.inf,
        **options: object,
    ) -> tuple[Proxy, Caller]:
        proxies.append(Proxy((target or lasting).server.address, **options))  # type: ignore[arg-type]
        address = proxies[-1].address
        transport = TcpTransport(stall_timeout=10)
        backends.append(
            RemoteBackend(
                "tcp",
                transport,
                (address,),
                timeout=timeout,
                connect_timeout=5,
                shortcut=False,
                heartbeat=heartbeat,
                silence=silence,
            )
        )
        return proxies[-1], Caller(backends[-1].connect(backends[-1].devices()[0]))

    yield make
    for backend in backends:
        backend.close()
    for proxy in proxies:
        proxy.close()


Through = Callable[..., tuple[Proxy, Caller]]


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def _executions(node: Node) -> int:
    return sum(session.stats()["executions"] for session in node.local.sessions)


def test_a_cut_between_two_questions(lasting: Node, through: Through) -> None:
    proxy, caller = through()
    value = caller.put([1, 2])
    assert caller.get(value) == [1, 2]
    proxy.cut()
    assert caller.get(value) == [1, 2]
    made = caller.run(_NEG, [value])
    proxy.cut()
    assert caller.get(made) == [-1, -2]
    assert _executions(lasting) == 1
    assert len(lasting.server.sessions()) == 1


def _program(caller: Caller, seed: int, steps: int) -> Iterator[object]:
    """What a client looks at, doing this and that."""
    choose = random.Random(seed)
    total, one = caller.put([0, 0]), caller.put([1, 2])
    large: int | None = None
    for step in range(steps):
        what = choose.random()
        if what < 0.45:
            for _ in range(choose.randrange(1, 4)):
                caller.session.free([caller.run(_ADD, [total, one])])
        elif what < 0.6:
            yield caller.get(total)
        elif what < 0.7:
            made = caller.run(_NEG, [total])
            assert isinstance(caller.session, RemoteSession)
            caller.session.expect(made, 8)
            caller.run(_ADD, [total, one])
            yield caller.get(made)
        elif what < 0.8:
            size = choose.choice([100, 5_000, 20_000])
            large = caller.put([float(step)] * size, shared=choose.random() < 0.5)
        elif what < 0.9 and large is not None:
            yield caller.get(large)
        elif what >= 0.9:
            looping, iterations = begin(caller, choose.randrange(1, 60))
            yield numbers(iterations)
            yield caller.get(looping)
    yield caller.get(total)


@pytest.mark.parametrize("seed", range(_SEEDS))
def test_random_cuts(lasting: Node, through: Through, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as over a good link, to the bit; each execution once."""
    monkeypatch.setattr(backoff, "LONGEST", 0.1)
    plain = lasting.client()
    expected = list(_program(plain, seed, 60))
    executions = plain.session.stats()["executions"]
    plain.session.close()
    lasting.wait_for_sessions(0)
    choose = random.Random(1000 + seed)
    # The first connection asks for the devices; the second opens the session, which only then can be resumed.
    budget = chain([None, choose.randrange(1_000, 3_000)], (int(10 ** choose.uniform(2, 6)) for _ in repeat(None)))
    proxy, caller = through(seed=seed, budget=budget)
    assert list(_program(caller, seed, 60)) == expected
    assert proxy.cuts > 0
    assert caller.session.stats()["executions"] == executions
    assert len(lasting.server.sessions()) == 1


def test_values_asked_for_ahead(lasting: Node, through: Through, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the link breaks, each is asked for once and comes once."""
    proxy, caller = through()
    session = caller.session
    assert isinstance(session, RemoteSession)
    values = [caller.put([float(n)] * (2 + 500 * n)) for n in range(6)]  # some come in the record, some as bulk
    caller.session.synchronize()
    for swallowed in (None, "answers", "both"):
        if swallowed is not None:
            proxy.swallow(answers_only=swallowed == "answers")
        for n, value in enumerate(values):
            session.expect(value, 4 * (2 + 500 * n))
        if swallowed == "answers":
            _until(lambda: _counted(lasting, Kind.FETCH) == 2 * len(values))
        proxy.cut()
        for n in (3, 0, 5, 1, 4, 2):
            assert caller.get(values[n]) == [float(n)] * (2 + 500 * n)
    assert _counted(lasting, Kind.FETCH) == 3 * len(values)
    assert session._conversation.streams == {}


def _counted(node: Node, kind: Kind) -> int:
    """How many of these the node's sessions have dealt with."""
    return sum(meter.counts[kind] for meter in node.server.meters.look().open.values())


# --- what is said again ---------------------------------------------------------------------------


def test_a_large_value_cut_on_its_way_home(lasting: Node, through: Through) -> None:
    proxy, caller = through(budget=iter([None, 500_000, 300_000]))
    numbers_ = [float(n) for n in range(100_000)]
    value = caller.put(numbers_)
    assert caller.get(value) == numbers_
    assert proxy.cuts == 2


def test_what_was_uploaded_may_be_overwritten_at_once(lasting: Node, through: Through) -> None:
    """Even when the node does not have it yet."""
    proxy, caller = through()
    caller.session.synchronize()
    proxy.swallow()
    data = bytearray(b"a" * 100_000)
    for handle, shared in ((11, False), (12, False)):
        caller.session.upload(handle, spec(100_000, dtype="uint8"), data, shared=shared)
        data[:] = b"z" * 100_000
    proxy.cut()
    assert bytes(caller.session.fetch(11).data) == b"a" * 100_000
    assert bytes(caller.session.fetch(12).data) == b"z" * 100_000


@pytest.mark.parametrize("seed", range(3))
def test_weights_sent_over_a_bad_link(lasting: Node, through: Through, seed: int) -> None:
    choose = random.Random(seed)
    contents = [choose.randbytes(choose.randrange(1 << 14, 1 << 20)) for _ in range(8)]
    budget = chain([None], (choose.randrange(1_000, 3 << 20) for _ in repeat(None)))
    proxy, caller = through(seed=seed, budget=budget)
    for handle, content in enumerate(contents, 1):
        if handle == 4:  # from here on several are offered at once
            caller.session._conversation.round_trip = 0.05  # type: ignore[attr-defined]
        caller.session.upload(handle, spec(len(content), dtype="uint8"), content, shared=True)
    for handle, content in enumerate(contents, 1):
        assert bytes(caller.session.fetch(handle).data) == content
    assert proxy.cuts > 0


def test_what_is_kept_is_bounded(lasting: Node, through: Through, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejoining, "_WINDOW_BYTES", 10_000)
    monkeypatch.setattr(rejoining, "_TIDY_BYTES", 500)
    proxy, caller = through()
    total, one = caller.put([0, 0]), caller.put([1, 2])
    kept = caller.session._conversation._lasting.kept  # type: ignore[attr-defined]
    for step in range(1, 1_000):
        caller.session.free([caller.run(_ADD, [total, one])])
        assert kept.bytes < 12_000
        if step % 300 == 0:
            proxy.cut()
    assert caller.get(total) == [999, 1998]
    caller.session.synchronize()
    assert caller.session._conversation._lasting.tidy() == 0  # type: ignore[attr-defined]
    assert len(kept) == 0


def test_a_node_keeps_only_so_much(lasting: Node, through: Through, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_end, "_MOST_BYTES", 500)
    proxy, caller = through()
    caller.session.synchronize()
    proxy.swallow(answers_only=True)
    _, iterations = begin(caller, 10)
    _until(lambda: _executions(lasting) == 10)
    proxy.cut()
    with pytest.raises(ConnectionLost, match="more was said than the node keeps"):
        numbers(iterations)
    lasting.wait_for_sessions(0)


# --- how it ends ----------------------------------------------------------------------------------


def test_a_client_that_does_not_come_back_leaves_nothing(make_node: Callable[..., Node], through: Through) -> None:
    threads = threading.active_count()
    node = make_node(transport=TcpTransport(stall_timeout=10), address="127.0.0.1:0", local=False, lease_seconds=0.2)
    proxy, caller = through(node)
    caller.put([1.0] * 10_000, shared=True)
    caller.session.synchronize()
    (local,) = node.local.sessions
    assert local.stats()["memory_bytes"] == 40_000
    proxy.shut.set()
    proxy.cut()
    node.wait_for_sessions(0)
    assert local.stats()["memory_bytes"] == 0
    assert node.server.content().stats()["content_partial"] == 0
    proxy.shut.clear()
    with pytest.raises(ConnectionLost, match=r"had ended: its lease of 0\.2 s was over"):
        caller.session.synchronize()
    assert caller.session.closed  # type: ignore[attr-defined]
    proxy.close()
    node.server.close()
    _until(lambda: threading.active_count() <= threads)


def test_a_client_that_says_bye_is_not_waited_for(lasting: Node, through: Through) -> None:
    _, caller = through()
    caller.session.close()
    lasting.wait_for_sessions(0)


def test_nobody_there_for_as_long_as_the_lease(
    make_node: Callable[..., Node], through: Through, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejoining, "_QUIET_SECONDS", 0.0)
    node = make_node(transport=TcpTransport(stall_timeout=10), address="127.0.0.1:0", local=False, lease_seconds=0.3)
    proxy, caller = through(node)
    proxy.shut.set()
    proxy.cut()
    message = r"not reached again within the session's lease of 0\.3 s"
    with capture_logs() as logs, pytest.raises(ConnectionLost, match=message):
        caller.put([1])
        caller.session.synchronize()
    (told,) = (line for line in logs if "trying to come back" in line["event"])  # once: who waits learns why
    assert told["node"] == proxy.address
    assert told["reason"]


def test_links_that_break_long_after_one_another(make_node: Callable[..., Node], through: Through) -> None:
    """Each time is the first, though nothing was said in between."""
    node = make_node(transport=TcpTransport(stall_timeout=10), address="127.0.0.1:0", local=False, lease_seconds=0.6)
    proxy, caller = through(node)
    value = caller.put([1])
    assert caller.get(value) == [1]
    line = caller.session._conversation._lasting  # type: ignore[attr-defined]
    for _ in range(3):
        line._rejoin(ConnectionLost("cut"))
        threading.Event().wait(0.7)
    assert line.rejoined == 3
    assert caller.get(value) == [1]
    proxy.close()


def test_a_link_that_lets_nothing_through(make_node: Callable[..., Node], through: Through) -> None:
    """Connections come about, and break before a message is whole: that is no reason to try for ever."""
    node = make_node(transport=TcpTransport(stall_timeout=10), address="127.0.0.1:0", local=False, lease_seconds=0.5)
    proxy, caller = through(node, budget=chain([None, None], repeat(5_000)))
    caller.session.synchronize()
    proxy.cut()
    with pytest.raises(ConnectionLost, match="lease of 0.5 s"):
        caller.put([1.0] * 100_000)
        caller.session.synchronize()


def test_a_node_that_was_started_anew(lasting: Node, through: Through, make_node: Callable[..., Node]) -> None:
    _, caller = through()
    address = lasting.server.address
    lasting.server.close()
    make_node(transport=TcpTransport(stall_timeout=10), address=address, local=False)
    with pytest.raises(ConnectionLost, match="the node was started anew since"):
        caller.session.synchronize()


def test_a_node_that_keeps_no_sessions(make_node: Callable[..., Node], through: Through) -> None:
    node = make_node(transport=TcpTransport(stall_timeout=10), address="127.0.0.1:0", local=False, lease_seconds=0.0)
    proxy, caller = through(node)
    caller.session.synchronize()
    proxy.cut()
    node.wait_for_sessions(0)
    with pytest.raises(ConnectionLost):
        caller.session.synchronize()


def test_a_channel_between_nodes_is_not_made_anew(
    lasting: Node, through: Through, make_node: Callable[..., Node]
) -> None:
    """What it should have brought is an error; both sessions go on."""
    sender = make_node(transport=TcpTransport(stall_timeout=10), address="127.0.0.1:0", local=False).client()
    proxy, receiver = through()
    assert isinstance(sender.session, RemoteSession)
    assert isinstance(receiver.session, RemoteSession)
    inlet = receiver.session.inlet("the sender")  # which connects by the address that the client uses
    outlet = sender.session.outlet(inlet)
    value, kept = sender.put([1, 2]), receiver.put([5])
    sender.session.send(outlet, value)
    receiver.session.receive(inlet, 0, first := receiver.handles())
    assert receiver.get(first) == [1, 2]
    proxy.cut()
    receiver.session.receive(inlet, 1, second := receiver.handles())
    with pytest.raises(RemoteOpError, match="the sender stopped sending"):
        receiver.get(second)
    assert receiver.get(kept) == [5]
    assert sender.get(value) == [1, 2]


def _channel(receiver: Caller, sender: Caller) -> tuple[Inlet, int]:
    """One between the two, that has brought a value."""
    assert isinstance(sender.session, RemoteSession)
    assert isinstance(receiver.session, RemoteSession)
    inlet = receiver.session.inlet("the sender")
    outlet = sender.session.outlet(inlet)
    sender.session.send(outlet, sender.put([1]))
    receiver.session.receive(inlet, 0, first := receiver.handles())
    assert receiver.get(first) == [1]
    return inlet, outlet


def _waiting(receiver: Caller, sender: Caller) -> tuple[int, int]:
    """The receiver's session waits for what the sender may send: the handle, and where to send it."""
    inlet, outlet = _channel(receiver, sender)
    assert isinstance(receiver.session, RemoteSession)
    receiver.session.receive(inlet, 1, awaited := receiver.handles())
    receiver.session._conversation.push()
    return awaited, outlet


def _hang_up(caller: Caller) -> None:
    """The client's connection breaks; those of its channels do not."""
    caller.session._conversation._connection._connection.close()  # type: ignore[attr-defined]


def test_a_session_that_waits_for_another_node_waits_for_its_client_too(
    lasting: Node, through: Through, make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inlets, "_LOOK_SECONDS", 0.02)
    sender = make_node(transport=TcpTransport(stall_timeout=10), address="127.0.0.1:0", local=False).client()
    _, receiver = through()
    awaited, outlet = _waiting(receiver, sender)
    ((its, _),) = lasting.server._sessions.values()
    _until(its.meter.at_work)
    _hang_up(receiver)
    _until(lambda: its.away)
    assert isinstance(sender.session, RemoteSession)
    value = sender.put([2, 3])
    threading.Timer(0.2, sender.session.send, (outlet, value)).start()
    assert receiver.get(awaited) == [2, 3]
    assert not its.away


@pytest.mark.parametrize("apart", [True, False])
def test_a_session_that_waits_for_another_node_notices_bye(
    lasting: Node, through: Through, make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    """What its client said before is done: in messages of its own, with bulk data, or in one with BYE."""
    monkeypatch.setattr(inlets, "_LOOK_SECONDS", 0.02)
    sender = make_node(transport=TcpTransport(stall_timeout=10), address="127.0.0.1:0", local=False).client()
    _, receiver = through()
    inlet, _ = _channel(receiver, sender)
    assert isinstance(receiver.session, RemoteSession)
    receiver.session.receive(inlet, 1, receiver.handles())
    if apart:
        value = receiver.put([1.0] * 100_000)
        receiver.run(_NEG, [receiver.put([1, 2])])
        receiver.session.free([value])
    (local,) = lasting.local.sessions
    receiver.session.close()
    lasting.wait_for_sessions(0)
    assert local.stats()["executions"] == apart


def test_a_session_that_waits_for_another_node_is_freed_after_the_lease(
    through: Through, make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inlets, "_LOOK_SECONDS", 0.02)
    sender = make_node(transport=TcpTransport(stall_timeout=10), address="127.0.0.1:0", local=False).client()
    node = make_node(transport=TcpTransport(stall_timeout=10), address="127.0.0.1:0", local=False, lease_seconds=0.2)
    proxy, receiver = through(node)
    _waiting(receiver, sender)
    ((its, _),) = node.server._sessions.values()
    _until(its.meter.at_work)
    proxy.shut.set()
    _hang_up(receiver)
    node.wait_for_sessions(0)  # though the sender is there, and silent
    with pytest.raises(ConnectionLost):
        receiver.session.synchronize()


# --- who may come back ----------------------------------------------------------------------------


def _welcome(node: Node, **fields: object) -> Welcome:
    hello = {"major": PROTOCOL[0], "minor": PROTOCOL[1], "device": 0, **fields}
    connection = node.transport.connect(node.server.address, 5.0)
    connection.send(frames.one(0, Kind.HELLO, msgspec.msgpack.encode(hello)))
    _, kind, body = frames.single(connection.receive(_no_data, 5.0).header)
    connection.close()
    if kind == Kind.ERROR:
        raise messages.get_error(body, node.server.address)
    return messages.get_welcome(body)


def _no_data(header: bytes, sizes: object) -> list[memoryview]:
    raise AssertionError("no data is due")


def test_a_session_is_for_who_has_its_key(lasting: Node, through: Through) -> None:
    _, caller = through()
    value = caller.put([1])
    caller.session.synchronize()
    (info,) = lasting.server.sessions()
    for key in ("", "0" * 32, "\ud800"):
        back = {"session": info.id, "key": key, "heard": 0, "sent": 0}
        for probe in (False, True):
            try:
                with pytest.raises(SessionClosed, match="no such session"):
                    _welcome(lasting, device=-1, back={**back, "probe": probe})
            except UnicodeEncodeError:
                continue  # not to be said in msgpack
    assert caller.get(value) == [1]
    assert info.id not in repr(caller.session._conversation._lasting.reunion.key)  # type: ignore[attr-defined]
    assert caller.session._conversation._lasting.reunion.key not in repr(  # type: ignore[attr-defined]
        caller.session._conversation._lasting.reunion  # type: ignore[attr-defined]
    )


def test_a_draining_node_takes_its_own_back(lasting: Node, through: Through) -> None:
    proxy, caller = through()
    value = caller.put([1])
    assert caller.get(value) == [1]
    assert not lasting.server.drain(0.0)
    with pytest.raises(BackendUnavailable):
        lasting.client()
    proxy.cut()
    assert caller.get(value) == [1]
    caller.session.close()
    assert lasting.server.drain(5.0)


@pytest.mark.parametrize("minor", [PROTOCOL[1] - 1, PROTOCOL[1] + 1])
def test_clients_one_minor_away(lasting: Node, minor: int) -> None:
    """An older one knows of no lease, and its session ends with its connection; a newer one may say more."""
    news = {"resumes": True, "wishes": ["none of this version"]} if minor > PROTOCOL[1] else {}
    welcome = _welcome(lasting, minor=minor, **news)
    assert (welcome.major, welcome.minor) == PROTOCOL
    if minor < PROTOCOL[1]:
        assert welcome.lease == 0
        lasting.wait_for_sessions(0)
    else:
        assert welcome.lease == 20
        assert len(welcome.key) == 32
        assert len(lasting.server.sessions()) == 1


@pytest.mark.parametrize("minor", [PROTOCOL[1] - 1, PROTOCOL[1] + 1])
def test_nodes_one_minor_away(scripted: Callable[..., RemoteSession], minor: int) -> None:
    heard: list[int] = []

    def script(connection: Connection) -> None:
        for _ in range(100):
            seq, records = hear(connection)
            heard.extend(kind for kind, _ in records)
            connection.send(frames.one(seq, Kind.DONE))

    fields = {"minor": minor, "lease": 5.0, "key": "k", "session": "s-1"} if minor > PROTOCOL[1] else {"minor": minor}
    session = scripted(script, fields=fields)
    for _ in range(100):
        session.synchronize()
    assert heard.count(Kind.SYNC) == 100
    assert (Kind.HEARD in heard) == (minor > PROTOCOL[1])  # what an older node does not know is not said to it


# --- silence --------------------------------------------------------------------------------------


class _Slow:
    """Has the node's session wait in its next execution."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        (session,) = node.local.sessions
        execute = session.execute

        def slowly(*args: object, **options: object) -> None:
            self.begun.set()
            assert self.go_on.wait(10)
            execute(*args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(session, "execute", slowly)


def test_a_node_that_is_busy_is_not_taken_for_dead(
    lasting: Node, through: Through, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, caller = through(heartbeat=0.02, silence=0.1)
    value = caller.put([1, 2])
    caller.session.synchronize()
    slow = _Slow(lasting, monkeypatch)
    threading.Timer(0.3, slow.go_on.set).start()
    assert caller.get(caller.run(_NEG, [value])) == [-1, -2]
    assert caller.session._conversation._lasting.rejoined == 0  # type: ignore[attr-defined]


def test_a_link_that_breaks_while_the_node_is_busy(
    make_node: Callable[..., Node], through: Through, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is told to wait, for longer than the lease; the work is done once."""
    monkeypatch.setattr(node_end, "_WAIT_SECONDS", 0.02)
    node = make_node(transport=TcpTransport(stall_timeout=10), address="127.0.0.1:0", local=False, lease_seconds=0.2)
    proxy, caller = through(node)
    total, one = caller.put([0, 0]), caller.put([1, 2])
    caller.session.synchronize()
    slow = _Slow(node, monkeypatch)
    caller.run(_ADD, [total, one])
    assert slow.begun.wait(10)
    proxy.cut()
    threading.Timer(0.6, slow.go_on.set).start()
    assert caller.get(total) == [1, 2]
    assert node.local.sessions[0].stats()["executions"] == 1


def test_a_link_that_swallows_a_question(lasting: Node, through: Through) -> None:
    proxy, caller = through(heartbeat=0.1)
    value = caller.put([3])
    caller.session.synchronize()
    proxy.swallow()
    assert caller.get(value) == [3]


def test_a_link_that_swallows_an_answer(lasting: Node, through: Through, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, caller = through(heartbeat=0.1)
    value = caller.put([3, 4])
    caller.session.synchronize()
    slow = _Slow(lasting, monkeypatch)
    made = caller.run(_NEG, [value])
    assert isinstance(caller.session, RemoteSession)
    caller.session.expect(made, 8)
    assert slow.begun.wait(10)
    proxy.swallow()
    slow.go_on.set()
    assert caller.get(made) == [-3, -4]


def test_who_waits_for_a_node_that_does_not_answer_is_told(lasting: Node, through: Through) -> None:
    proxy, caller = through(heartbeat=0.05)
    value = caller.put([1, 2])
    caller.session.synchronize()
    proxy.swallow()
    proxy.shut.set()
    caller.session._conversation.timeout = 1.5  # type: ignore[attr-defined]
    with capture_logs() as logs, pytest.raises(DeadlineExceeded):
        caller.get(value)
    assert any("silent, and does not answer" in line["event"] for line in logs)


def test_waiting_still_ends_at_its_deadline(lasting: Node, through: Through, monkeypatch: pytest.MonkeyPatch) -> None:
    _, caller = through(heartbeat=0.05)
    value = caller.put([1, 2])
    caller.session.synchronize()
    slow = _Slow(lasting, monkeypatch)
    made = caller.run(_NEG, [value])
    caller.session._conversation.timeout = 0.2  # type: ignore[attr-defined]
    with pytest.raises(DeadlineExceeded):
        caller.get(made)
    caller.session._conversation.timeout = 10.0  # type: ignore[attr-defined]
    slow.go_on.set()
    assert caller.get(made) == [-1, -2]


# --- interrupts -----------------------------------------------------------------------------------


def _interrupted(at: int, work: Callable[[], object]) -> bool:
    """Do ``work`` with a KeyboardInterrupt at the ``at``-th moment within our code. Whether it came to that."""
    left = at

    def watch(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        if event in ("call", "c_return") and f"{os.sep}genie" in frame.f_code.co_filename:
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(before)
    return False


@pytest.fixture(params=["tcp", "tls", "memory"])
def any_link(
    request: pytest.FixtureRequest, make_node: Callable[..., Node], tmp_path: Path
) -> Callable[[], tuple[Node, Caller]]:
    """A node and a client of it, over a connection that can go on with an interrupted message, or can not."""
    transport: Transport = MemoryTransport(stall_timeout=10)
    if request.param != "memory":
        tls = Pki.make(tmp_path).node() if request.param == "tls" else None
        transport = TcpTransport(stall_timeout=10, tls=tls)
    address = "node:0" if request.param == "memory" else "127.0.0.1:0"
    node = make_node(transport=transport, address=address, local=False, lease_seconds=20.0)
    return lambda: (node, node.client())


def test_interrupted_while_sending(any_link: Callable[[], tuple[Node, Caller]]) -> None:
    """The session lives, whatever it runs over, and what was sent was sent once."""
    node, caller = any_link()
    total, one = caller.put([0, 0]), caller.put([1, 2])
    add = caller.load(_ADD)
    prediction = Prediction(2, parameters(_ADD))
    large = bytes(range(256)) * 400
    at = 0

    def step() -> None:
        caller.session.upload(handle, spec(len(large), dtype="uint8"), large)
        binding = prediction.encode([caller.handles(), total, one, *parameters(_ADD)], anew=True)
        caller.session.execute(add, binding)

    caller.get(total)
    handle = caller.handles()
    while _interrupted(at, step):
        at += 1 + at // 40
        (now, _) = caller.get(total)
        assert caller.get(total) == [now, 2 * now]
        assert node.local.sessions[-1].stats()["executions"] == now, f"after an interrupt at moment {at}"
        caller.session.free([handle])
        handle = caller.handles()
        caller.session.upload(handle, spec(len(large), dtype="uint8"), large)
        assert bytes(caller.session.fetch(handle).data) == large
        caller.session.free([handle])
        handle = caller.handles()
    assert at > 40
    assert bytes(caller.session.fetch(handle).data) == large


def test_interrupted_while_the_link_is_made_anew(lasting: Node, through: Through) -> None:
    """Afterwards what was done was done once, or the session is over and says why."""
    proxy, caller = through()
    total, one = caller.put([0, 0]), caller.put([1, 2])
    add = caller.load(_ADD)
    prediction = Prediction(2, parameters(_ADD))
    at, done = 0, 0

    def step() -> None:
        binding = prediction.encode([caller.handles(), total, one, *parameters(_ADD)], anew=True)
        caller.session.execute(add, binding, more=True)
        caller.get(total)

    caller.get(total)
    proxy.cut()
    while _interrupted(at, step):
        at += 1 + at // 12
        try:
            proxy.cut()
            (now, _) = caller.get(total)
            assert now in (done, done + 1), f"after an interrupt at moment {at}"
            done = int(now)
            assert caller.get(total) == [done, 2 * done]
            assert lasting.local.sessions[-1].stats()["executions"] == done
        except ConnectionLost as error:
            assert "interrupted" in str(error), f"after an interrupt at moment {at}"
            proxy, caller = through()
            total, one, done = caller.put([0, 0]), caller.put([1, 2]), 0
            add = caller.load(_ADD)
            caller.get(total)
        proxy.cut()
    assert at > 60


def test_a_client_that_leaves_while_it_is_answered_is_not_waited_for(lasting: Node) -> None:
    """Its end of the connection is closed with answers unread, which may break the link before its BYE is read."""
    transport = TcpTransport(stall_timeout=10)
    for _ in range(20):
        backend = RemoteBackend("tcp", transport, (lasting.server.address,), timeout=10, shortcut=False)
        _, iterations = begin(Caller(backend.connect(backend.devices()[0])), 5_000)
        next(iterations)
        backend.close()
    lasting.wait_for_sessions(0)  # within 10 s; the lease is 20 s
