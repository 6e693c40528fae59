"""A node that asks for tokens: tickets from its control plane, proofs on its data plane, nothing for anybody else."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
from remote.peers import Node, welcome

from genie.errors import AccessDenied, BackendError, ConfigError, NodeError, TlsFailed
from genie.remote import RemoteBackend
from genie.remote.client.access import Access
from genie.remote.control import ControlClient, ControlPlane
from genie.remote.greeting import farewell, greeting, meet
from genie.security import AuditLog, Guard, Scope, Ticket, TokenFile, tokens
from genie.security.tickets import prove_hello
from genie.testing import Caller, MemoryTransport
from genie.testing.memory import MemoryConnection
from genie.wire import PROTOCOL, Kind, frames, messages
from genie_backend_tcp import TcpTransport


@attrs.define
class Guarded:
    """A node with two devices that are one, its tokens, its audit log."""

    node: Node
    control: str
    directory: Path
    drains: list[float]

    @property
    def tokens(self) -> Path:
        return self.directory / "tokens.json"

    def token_file(self, name: str, *scopes: Scope, days: float | None = 1.0) -> str:
        path = self.directory / name
        path.write_text(tokens.add(self.tokens, name, scopes or (Scope.USE,), days))
        return str(path)

    def backend(self, token_file: str) -> RemoteBackend:
        backend = RemoteBackend(
            "tcp", self.node.transport, (self.node.server.address,), timeout=10.0, access=Access(None, token_file)
        )
        self.node.backends.append(backend)
        return backend

    def ticket(self, device: int, name: str = "ticketed") -> Ticket:
        guard = self.node.server.guard
        token = tokens.add(self.tokens, name)
        return guard.ticket(guard.identify(token, Scope.USE, "Open"), device)

    def audited(self, event: str) -> list[dict[str, object]]:
        text = (self.directory / "audit").read_text()
        return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]


@pytest.fixture
def guarded(make_node: Callable[..., Node], tmp_path: Path) -> Iterator[Guarded]:
    tokens.add(tmp_path / "tokens.json", "somebody")
    audit = AuditLog(tmp_path / "audit")
    guard = Guard(TokenFile(tmp_path / "tokens.json", audit.told), audit)
    node = make_node(
        transport=TcpTransport(stall_timeout=5.0), address="127.0.0.1:0", devices=["null:0", "null:0"], guard=guard
    )
    drains: list[float] = []
    control = ControlPlane(node.server, drains.append)
    node.server.control_port = control.start("127.0.0.1", 0)
    yield Guarded(node, f"127.0.0.1:{node.server.control_port}", tmp_path, drains)
    control.close()


@pytest.fixture
def untouched(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of the backend is asked for."""

    def fail(device: object) -> None:
        raise AssertionError("the backend was asked for a session")

    monkeypatch.setattr(guarded.node.local, "connect", fail)
    yield
    assert guarded.node.server.sessions() == ()


def test_with_a_token_all_is_as_ever(guarded: Guarded) -> None:
    backend = guarded.backend(guarded.token_file("alice"))
    assert len(backend.devices()) == 2
    callers = [Caller(backend.connect(device)) for device in backend.devices()]
    for caller in callers:
        assert caller.get(caller.put([1, 2])) == [1, 2]
    assert {info.user for info in guarded.node.server.sessions()} == {"alice"}
    backend.close()
    guarded.node.wait_for_sessions(0)
    assert [line["user"] for line in guarded.audited("opened") + guarded.audited("closed")] == ["alice"] * 4


@pytest.mark.usefixtures("untouched")
def test_without_a_token_nothing_is_told(guarded: Guarded) -> None:
    with pytest.raises(AccessDenied, match="who has a token"):
        guarded.backend("").devices()
    met = meet(guarded.node.transport, guarded.node.server.address, -1, 5.0)
    farewell(met)
    assert met.welcome.tickets and met.welcome.control_port
    assert (met.welcome.devices, met.welcome.host, met.welcome.local_address, met.welcome.genie) == ((), "", "", "")
    for address in (guarded.node.server.address, guarded.node.server.local_address):
        with pytest.raises(AccessDenied, match="who has a token"):
            meet(guarded.node.transport, address, 0, 5.0)
    assert guarded.audited("refused")


@pytest.mark.usefixtures("untouched")
def test_tokens_that_do_not_do(guarded: Guarded, tmp_path: Path) -> None:
    unknown = tmp_path / "unknown"
    unknown.write_text("genie_" + "x" * 43)
    for path, reason in [
        (str(unknown), "unknown"),
        (guarded.token_file("old", days=1e-9), "expired"),
        (guarded.token_file("boss", Scope.ADMIN), "no scope 'use'"),
    ]:
        with pytest.raises(AccessDenied, match=reason) as caught:
            guarded.backend(path).devices()
        assert caught.value.where == guarded.control
    with pytest.raises(ConfigError, match="cannot read the token"):
        guarded.backend(str(tmp_path / "missing")).devices()


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("case", ["another device", "wrong key", "changed", "no proof", "short proof", "no ticket"])
def test_tickets_that_do_not_fit(guarded: Guarded, case: str) -> None:
    server = guarded.node.server
    ticket = guarded.ticket(0)
    hello = messages.Hello(major=PROTOCOL[0], minor=PROTOCOL[1], device=1 if case == "another device" else 0)
    said = messages.put_struct(hello)
    proof: bytes | None = ticket.id + prove_hello(ticket, said)
    if case == "wrong key":
        proof = ticket.id + prove_hello(attrs.evolve(ticket, key=bytes(32)), said)
    elif case == "changed":
        said = messages.put_struct(messages.Hello(major=PROTOCOL[0], minor=PROTOCOL[1], device=0, client="another"))
    elif case == "no proof":
        proof = None
    elif case == "short proof":
        proof = ticket.id
    elif case == "no ticket":
        proof = bytes(48)
    connection = guarded.node.transport.connect(server.address, 5.0)
    connection.send(greeting(0, Kind.HELLO, said, proof))
    _, kind, body = frames.single(connection.receive(lambda header, sizes: [], 5.0).header)
    assert kind == Kind.ERROR and isinstance(messages.get_error(body, ""), AccessDenied)
    connection.close()


def test_a_greeting_that_is_said_again(guarded: Guarded) -> None:
    """Byte by byte, as somebody heard it on the way."""
    ticket = guarded.ticket(0)
    said = messages.put_struct(messages.Hello(major=PROTOCOL[0], minor=PROTOCOL[1], device=0))
    heard = greeting(0, Kind.HELLO, said, ticket.id + prove_hello(ticket, said))
    kinds = []
    for _ in range(2):
        connection = guarded.node.transport.connect(guarded.node.server.address, 5.0)
        connection.send(heard)
        _, records = frames.split(connection.receive(lambda header, sizes: [], 5.0).header)
        kinds.append(records[0][0])
        connection.close()
    assert kinds == [Kind.WELCOME, Kind.ERROR]


def test_who_answers_without_the_key_is_no_node() -> None:
    transport = MemoryTransport(stall_timeout=5.0)
    listener = transport.listen("node:0")
    thread = threading.Thread(target=lambda: welcome(listener.accept(5.0)))
    thread.start()
    with pytest.raises(TlsFailed, match="not the node that gave the ticket"):
        meet(transport, listener.address, 0, 5.0, ticket=Ticket(bytes(16), bytes(32)))
    thread.join(5.0)
    listener.close()


def test_both_ends_of_a_connection_that_protects_itself_are_told_the_key(
    make_node: Callable[..., Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[bytes] = []
    monkeypatch.setattr(MemoryConnection, "keyed", lambda self, key: keys.append(key), raising=False)
    token = tokens.add(tmp_path / "tokens", "alice")
    guard = Guard(TokenFile(tmp_path / "tokens"))
    node = make_node(guard=guard)
    ticket = guard.ticket(guard.identify(token, Scope.USE, "Open"), 0)
    met = meet(node.transport, node.server.address, 0, 5.0, ticket=ticket)
    met.connection.send(frames.one(1, Kind.SYNC))
    met.connection.receive(lambda header, sizes: [], 5.0)
    assert keys == [ticket.key] * 2
    farewell(met)


def test_what_scopes_allow_on_the_control_plane(guarded: Guarded) -> None:
    alice, bob = guarded.token_file("alice"), guarded.token_file("bob")
    boss = guarded.token_file("boss", Scope.USE, Scope.ADMIN)
    backends = [guarded.backend(path) for path in (alice, bob)]
    for backend in backends:
        backend.connect(backend.devices()[0]).synchronize()

    def control(path: str) -> ControlClient:
        return ControlClient(guarded.control, token=Path(path).read_text() if path else "")

    with control(alice) as client:
        assert client.capabilities().devices
        assert [info.user for info in client.sessions()] == ["alice"]  # others' are not hers to see
        with pytest.raises(AccessDenied, match="no scope 'admin'"):
            client.drain(0.0)
    assert guarded.drains == []
    with control("") as client:
        assert client.healthy()  # for probes
        for call in (client.capabilities, client.sessions, lambda: client.drain(0.0), lambda: client.ticket(0)):
            with pytest.raises(AccessDenied, match="who has a token"):
                call()
    with control(boss) as client:
        assert {info.user for info in client.sessions()} == {"alice", "bob"}
        assert client.drain(1.5) == 2
    assert guarded.drains == [1.5]
    (drained,) = guarded.audited("drain")
    assert (drained["user"], drained["seconds"]) == ("boss", 1.5)


def test_the_file_changes_while_the_node_serves(guarded: Guarded) -> None:
    path = guarded.token_file("alice")
    backend = guarded.backend(path)
    caller = Caller(backend.connect(backend.devices()[0]))
    assert caller.get(caller.put([1])) == [1]
    whole = guarded.tokens.read_text()
    guarded.tokens.write_text(whole[: len(whole) // 2])
    guarded.node.server.housekeep()
    assert caller.get(caller.put([2])) == [2]  # a half-written file changes nothing
    backend.connect(backend.devices()[1]).synchronize()
    guarded.tokens.write_text(whole)
    guarded.token_file("bob")
    guarded.node.server.housekeep()
    assert caller.get(caller.put([3])) == [3]
    tokens.revoke(guarded.tokens, "alice")
    with pytest.raises(AccessDenied, match="unknown"):
        backend.connect(backend.devices()[0])
    guarded.node.server.housekeep()
    guarded.node.wait_for_sessions(0)
    with pytest.raises(BackendError):
        caller.get(caller.put([4]))
    assert guarded.audited("not reloaded") and guarded.audited("reloaded")


def test_a_token_that_expires_ends_its_sessions(guarded: Guarded) -> None:
    path = guarded.token_file("alice")
    backend = guarded.backend(path)
    caller = Caller(backend.connect(backend.devices()[0]))
    guarded.node.server.housekeep()
    assert caller.get(caller.put([1])) == [1]
    contents = json.loads(guarded.tokens.read_text())
    for entry in contents["tokens"]:
        entry["expires"] = "2020-01-01T00:00:00Z"
    guarded.tokens.write_text(json.dumps(contents))
    guarded.node.server.housekeep()
    guarded.node.wait_for_sessions(0)
    with pytest.raises(BackendError):
        caller.get(caller.put([2]))


def test_an_operator_cancels_and_is_written_down(guarded: Guarded) -> None:
    boss = guarded.token_file("boss", Scope.USE, Scope.ADMIN)
    backend = guarded.backend(guarded.token_file("alice"))
    backend.connect(backend.devices()[0]).synchronize()
    (info,) = guarded.node.server.sessions()
    with (
        ControlClient(guarded.control, token=Path(guarded.token_file("bob")).read_text()) as client,
        pytest.raises(AccessDenied, match="no scope 'admin'"),
    ):
        client.cancel(info.id)
    with ControlClient(guarded.control, token=Path(boss).read_text()) as client:
        assert client.cancel(info.id)
    guarded.node.wait_for_sessions(0)
    (cancelled,) = guarded.audited("cancelled")
    assert (cancelled["user"], cancelled["session"], cancelled["what"]) == ("boss", info.id, "session")


def test_no_secret_is_written_down(guarded: Guarded) -> None:
    path = guarded.token_file("alice")
    backend = guarded.backend(path)
    Caller(backend.connect(backend.devices()[0])).session.synchronize()
    backend.close()
    guarded.node.wait_for_sessions(0)
    log = (guarded.directory / "audit").read_text()
    token = Path(path).read_text()
    assert token not in log and tokens.digest(token) not in log


def test_a_token_does_not_travel_in_the_clear(tmp_path: Path) -> None:
    access = Access(None, str(tmp_path / "token"))
    (tmp_path / "token").write_text("genie_secret")
    assert access.token("127.0.0.1:1") == "genie_secret"
    assert access.token("[::1]:1") == "genie_secret"
    for address in ("10.0.0.1:1", "localhost.example.com:1", "example.com:1", "0.0.0.0:1"):
        with pytest.raises(ConfigError, match="in the clear"):
            access.token(address)


def test_a_channels_token_is_no_way_round(guarded: Guarded) -> None:
    for device in (-1, 0):
        connection = guarded.node.transport.connect(guarded.node.server.address, 5.0)
        hello = messages.Hello(major=PROTOCOL[0], minor=PROTOCOL[1], device=device, channel="0" * 32)
        connection.send(greeting(0, Kind.HELLO, messages.put_struct(hello), None))
        _, kind, body = frames.single(connection.receive(lambda header, sizes: [], 5.0).header)
        assert kind == Kind.ERROR and isinstance(messages.get_error(body, ""), NodeError)
        connection.close()
    assert guarded.node.server.sessions() == ()
    assert len(guarded.audited("refused")) == 2
