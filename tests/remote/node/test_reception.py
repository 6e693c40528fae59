"""A node that is full: who waits, who is refused, and what clients are told. And what its quotas hold back."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from remote.peers import Node

from genie.errors import BackendUnavailable, ConfigError, DeadlineExceeded, GenieError, LimitExceeded
from genie.graph import TensorSpec
from genie.remote import NodeServer, RemoteBackend
from genie.remote.greeting import Wish
from genie.remote.seen.holdings import holdings
from genie.remote.seen.observed import observe
from genie.tenancy.accounts import Tenancy
from genie.tenancy.quotas import TenantsFile
from genie.testing import Caller, MemoryTransport, NullSession
from genie.testing.memory import MemoryConnection, MemoryListener
from genie.testing.plans import single, spec
from genie.wire import PROTOCOL, Kind, frames, messages
from genie.wire.messages import Waiting
from genie_backend_tcp import TcpTransport

DEADLINE = 20.0
ADD = single("aten::add.Tensor", [spec(2), spec(2)], spec(2))


class Client:
    """Who waits for a place on a thread of its own."""

    def __init__(self, node: Node, seconds: float = DEADLINE, priority: str = "") -> None:
        self.places: list[int] = []
        self.caller: Caller | None = None
        self.error: GenieError | None = None
        self._told = threading.Condition()
        wish = Wish(seconds, priority, self._on_wait)
        self.backend = RemoteBackend("memory", node.transport, (node.server.address,), timeout=10.0, wish=wish)
        node.backends.append(self.backend)
        self._thread = threading.Thread(target=self._connect)
        self._thread.start()

    def _on_wait(self, waiting: Waiting) -> None:
        with self._told:
            self.places.append(waiting.position)
            self._told.notify_all()

    def _connect(self) -> None:
        try:
            self.caller = Caller(self.backend.connect(self.backend.devices()[0]))
        except GenieError as error:
            self.error = error

    def waits(self) -> Client:
        with self._told:
            assert self._told.wait_for(lambda: self.places, DEADLINE)
        return self

    def waits_at(self, place: int) -> None:
        with self._told:
            assert self._told.wait_for(lambda: self.places[-1] == place, DEADLINE)

    def ends(self) -> Client:
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        return self


@pytest.fixture
def limited(make_node: Callable[..., Node], tmp_path: Path) -> Callable[..., Node]:
    """A node whose anonymous tenant has this quota."""

    def make(quota: str = "{}", **options: object) -> Node:
        path = tmp_path / "tenants.yaml"
        path.write_text(f"default: {quota}")
        return make_node(tenancy=Tenancy(TenantsFile(path)), **options)

    return make


def test_a_client_waits_for_a_place_and_gets_it(make_node: Callable[..., Node]) -> None:
    node = make_node(max_sessions=1)
    first = node.client()
    second = Client(node).waits()
    third = Client(node).waits()
    (queue, waits) = (observe(node.server).reception.queue, observe(node.server).reception.waits)
    assert ([place.position for place in queue], waits) == ([1, 2], 2)
    first.session.close()
    assert second.ends().caller is not None
    third.waits_at(1)
    second.caller.session.close()
    caller = third.ends().caller
    assert caller is not None
    assert caller.get(caller.put([1.0])) == [1.0]
    assert (second.places[0], third.places[0]) == (1, 2)
    assert observe(node.server).reception.queue == ()


def test_who_does_not_say_that_they_wait_is_refused_as_ever(make_node: Callable[..., Node]) -> None:
    node = make_node(max_sessions=1)
    node.client()
    with pytest.raises(LimitExceeded, match="the node has 1 of 1 sessions"):
        node.client()


def test_a_node_waits_no_longer_than_its_operator_lets_it(make_node: Callable[..., Node]) -> None:
    node = make_node(max_sessions=1, admission_seconds=0.05)
    node.client()
    error = Client(node).ends().error
    assert isinstance(error, LimitExceeded)
    assert "place 1 of 1" in error.message
    assert error.where == node.server.address  # where the client asked, not where the node listens
    assert "admission_seconds" in error.hint


def test_who_is_gone_waits_no_more(make_node: Callable[..., Node]) -> None:
    node = make_node(max_sessions=1)
    first = node.client()
    connection = node.transport.connect(node.server.address, 5.0)
    hello = messages.put_struct(messages.Hello(major=1, minor=1, device=0, waits=DEADLINE))
    connection.send(frames.one(0, Kind.HELLO, hello))
    message = connection.receive(lambda header, sizes: [], 5.0)
    _, kind, body = frames.single(message.header)
    assert (kind, messages.get_waiting(body)) == (
        Kind.WAIT,
        Waiting(position=1, waiting=1, reason="the node has 1 of 1 sessions"),
    )
    connection.close()
    behind = Client(node).waits()
    first.session.close()
    assert behind.ends().caller is not None


def test_a_drain_ends_waiting(make_node: Callable[..., Node]) -> None:
    node = make_node(max_sessions=1)
    node.client()
    waiting = Client(node).waits()
    node.server.drain(0.01)
    error = waiting.ends().error
    assert isinstance(error, BackendUnavailable)
    assert "shutting down" in error.message


def test_nonsense_in_a_greeting(make_node: Callable[..., Node]) -> None:
    node = make_node(max_sessions=1)
    error = Client(node, priority="urgent").ends().error
    assert isinstance(error, ConfigError)
    assert "'urgent' is no priority" in error.message
    node.client()
    for seconds in (float("nan"), -1.0):
        assert isinstance(Client(node, seconds).ends().error, LimitExceeded)


def test_a_tenant_sees_devices_as_large_as_its_quota(limited: Callable[..., Node]) -> None:
    node = limited("{memory: 16MiB}", memory=1 << 30)
    caller = node.client()
    assert caller.session.device.memory_bytes == 16 << 20
    assert node.server.devices[0].memory_bytes == 1 << 30


def test_a_plan_too_many_is_the_plans_failure(limited: Callable[..., Node]) -> None:
    node = limited("{plans: 1}")
    first, second = node.client(), node.client()
    x = first.put([1.0, 2.0])
    assert first.get(first.run(ADD, [x, x])) == [2.0, 4.0]
    y = second.put([1.0, 2.0])
    lost = second.run(ADD, [y, y])
    with pytest.raises(LimitExceeded, match="has 1 of 1 plans"):
        second.get(lost)
    assert second.get(y) == [1.0, 2.0]
    first.session.close()
    node.wait_for_sessions(1)
    third = node.client()
    z = third.put([3.0, 4.0])
    assert third.get(third.run(ADD, [z, z])) == [6.0, 8.0]
    seen = observe(node.server).reception.accounts[0]
    assert (seen.tenant, seen.plans, seen.plans_quota) == ("anonymous", 1, 1)


def test_bandwidth_is_slowed_down_and_nothing_fails(limited: Callable[..., Node]) -> None:
    node = limited("{receive: 256KiB, send: 256KiB}")
    caller = node.client()
    data = bytes(300 << 10)
    handle = caller.handles()
    caller.session.upload(handle, TensorSpec((len(data),), "uint8"), data)
    assert bytes(caller.session.fetch(handle).data) == data
    caller.get(caller.put([1.0]))  # pays for what went before
    assert observe(node.server).reception.accounts[0].delayed_seconds > 0


def test_one_message_at_a_time(limited: Callable[..., Node]) -> None:
    node = limited("{in_flight: 1}")
    callers = [node.client() for _ in range(4)]

    def work(caller: Caller) -> None:
        for number in range(25):
            x = caller.put([float(number)] * 2)
            assert caller.get(caller.run(ADD, [x, x])) == [2.0 * number] * 2

    threads = [threading.Thread(target=work, args=(caller,)) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    deadline = time.monotonic() + DEADLINE
    while observe(node.server).reception.accounts[0].at_work and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert observe(node.server).reception.accounts[0].at_work == 0


def test_who_went_away_within_a_message_holds_nobody_up(limited: Callable[..., Node]) -> None:
    transport = TcpTransport(stall_timeout=10.0)
    node = limited("{in_flight: 1}", transport=transport, address="127.0.0.1:0", local=False, lease_seconds=60.0)
    sock = socket.create_connection(("127.0.0.1", int(node.server.address.rpartition(":")[2])))
    connection = transport.wrap(sock, "node")
    hello = messages.put_struct(messages.Hello(major=1, minor=PROTOCOL[1], device=0, resumes=True))
    connection.send(frames.one(0, Kind.HELLO, hello))
    connection.receive(lambda header, sizes: [], 5.0)
    connection.send(frames.one(1, Kind.UPLOAD, messages.put_value(1, TensorSpec((100,), "uint8")), 100))
    deadline = time.monotonic() + DEADLINE
    while not observe(node.server).reception.accounts[0].at_work:
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    connection.close()
    caller = node.client(timeout=3.0)
    assert caller.get(caller.put([1.0])) == [1.0]
    assert [info.away for info in node.server.sessions()] == [True, False]


@pytest.mark.parametrize("bulk", [False, True], ids=["question", "bulk"])
@pytest.mark.parametrize("lease", [0.0, 0.5, 60.0])
def test_who_is_gone_is_not_held_back_for_long(limited: Callable[..., Node], lease: float, bulk: bool) -> None:
    transport = TcpTransport(stall_timeout=10.0)
    node = limited("{receive: 64KiB}", transport=transport, address="127.0.0.1:0", local=False, lease_seconds=lease)
    caller = node.client(timeout=0.2)
    data = bytes(4 << 20)  # a minute's
    caller.session.upload(caller.handles(), TensorSpec((len(data),), "uint8"), data)
    if bulk:
        caller.session.upload(caller.handles(), TensorSpec((len(data),), "uint8"), data[:])
    with pytest.raises(DeadlineExceeded):
        caller.session.synchronize()
    caller.session.close()
    assert node.server.wait_for_sessions(0, DEADLINE)


def test_a_node_that_is_closed_ends_who_is_held_back(limited: Callable[..., Node]) -> None:
    node = limited("{receive: 64KiB}")
    caller = node.client(timeout=0.2)
    data = bytes(1 << 20)
    handle = caller.handles()
    caller.session.upload(handle, TensorSpec((len(data),), "uint8"), data)
    with pytest.raises(DeadlineExceeded):
        caller.get(handle)
    began = time.monotonic()
    server: NodeServer = node.server
    server.close()
    assert server.sessions() == ()
    assert time.monotonic() - began < 10


class _Certified(MemoryTransport):
    """Each connection shows the next certificate."""

    def __init__(self, *subjects: str) -> None:
        super().__init__(stall_timeout=10.0)
        self._subjects = iter(subjects)

    def listen(self, address: str) -> MemoryListener:
        listener, subjects = super().listen(address), self._subjects
        accept = listener.accept

        def certified(timeout: float | None = None) -> MemoryConnection:
            connection = accept(timeout)
            connection.subject = next(subjects)  # type: ignore[attr-defined]
            return connection

        listener.accept = certified  # type: ignore[method-assign]
        return listener


def test_who_is_known_by_a_certificate_is_that_tenant_everywhere(
    make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, str] = {}

    def name(self: NullSession, label: str, tenant: str) -> None:
        told[label] = tenant

    for each, value in (("name", name), ("prefetch", lambda self: None), ("off_device_bytes", 0)):
        monkeypatch.setattr(NullSession, each, value, raising=False)
    node = make_node(transport=_Certified("alice", "alice", "bob", "bob"))  # to look at the node, and for the session
    first, second = node.client(), node.client()
    assert first.get(first.put([1.0])) == second.get(second.put([1.0])) == [1.0]
    sessions = node.server.sessions()
    assert [info.tenant for info in sessions] == ["alice", "bob"]
    assert [told[info.id] for info in sessions] == ["alice", "bob"]
    assert [each.tenant for each in observe(node.server).tenants] == ["alice", "bob"]
    assert [each.tenant for each in holdings(node.server).sessions] == ["alice", "bob"]
