"""Clients that come back to nodes which ask who is there: by TLS, by a new ticket each time, as who they were."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path

import attrs
import pytest
from remote.peers import Node
from remote.proxy import Proxy
from remote.test_lasting import _program, _until
from security.pki import Pki

from genie import backoff
from genie.errors import AccessDenied, ConnectionLost
from genie.remote import RemoteBackend, RemoteSession
from genie.remote.client.access import Access
from genie.remote.client.rejoining import Rejoining
from genie.remote.control import ControlPlane
from genie.remote.greeting import meet
from genie.remote.seen.metrics import Metrics
from genie.security import AuditLog, Guard, Identity, Tls, TokenFile, tokens
from genie.testing import Caller
from genie.testing.plans import spec
from genie.wire.messages import Back
from genie_backend_tcp import TcpTransport


@attrs.define
class Guarded:
    """A node with tokens, over TLS or not, and clients of it behind proxies."""

    node: Node
    directory: Path
    tls: Tls | None
    proxies: list[Proxy] = attrs.field(factory=list)

    def token(self, name: str) -> str:
        path = self.directory / name
        path.write_text(tokens.add(self.directory / "tokens.json", name))
        return str(path)

    def client(self, name: str, *, heartbeat: float = 10.0, **options: object) -> tuple[Proxy, Caller]:
        proxy = Proxy(self.node.server.address, **options)  # type: ignore[arg-type]
        self.proxies.append(proxy)
        backend = RemoteBackend(
            "tcp",
            TcpTransport(stall_timeout=10, tls=self.tls),
            (proxy.address,),
            timeout=10,
            connect_timeout=5,
            shortcut=False,
            heartbeat=heartbeat,
            access=Access(self.tls, self.token(name)),
        )
        self.node.backends.append(backend)
        return proxy, Caller(backend.connect(backend.devices()[0]))

    def audited(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.directory / "audit").read_text().splitlines()]


@pytest.fixture(params=["plain", "tls", "mutual"])
def guarded(request: pytest.FixtureRequest, make_node: Callable[..., Node], tmp_path: Path) -> Iterator[Guarded]:
    ours = theirs = None
    if request.param != "plain":
        pki = Pki.make(tmp_path)
        ours = pki.node(client_ca=request.param == "mutual")
        theirs = pki.client("client-alice" if request.param == "mutual" else "")
    tokens.add(tmp_path / "tokens.json", "somebody")
    audit = AuditLog(tmp_path / "audit")
    guard = Guard(TokenFile(tmp_path / "tokens.json", audit.told), audit)
    node = make_node(
        transport=TcpTransport(stall_timeout=10, tls=ours),
        address="127.0.0.1:0",
        local=False,
        guard=guard,
        lease_seconds=20.0,
    )
    control = ControlPlane(node.server, lambda seconds: None, ours)
    node.server.control_port = control.start("127.0.0.1", 0)
    made = Guarded(node, tmp_path, theirs)
    yield made
    for proxy in made.proxies:
        proxy.close()
    control.close()


def _line(caller: Caller) -> Rejoining:
    assert isinstance(caller.session, RemoteSession)
    line = caller.session._conversation._lasting
    assert line is not None
    return line


def test_by_a_new_ticket(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    ticket = Guard.ticket

    def counted(guard: Guard, identity: Identity, device: int, *, bound: bool) -> object:
        given.append(identity.name)
        return ticket(guard, identity, device, bound=bound)

    monkeypatch.setattr(Guard, "ticket", counted)
    proxy, caller = guarded.client("alice")
    value = caller.put([1, 2])
    assert caller.get(value) == [1, 2]
    before = len(given)
    proxy.cut()
    _until(lambda: guarded.node.server.sessions()[0].away)
    assert b'genie_sessions_away{device="null:0"} 1.0' in Metrics(guarded.node.server).text()
    assert caller.get(value) == [1, 2]
    assert given[before:] == ["alice"]
    (info,) = guarded.node.server.sessions()
    assert (info.user, info.away) == ("alice", False)
    text = Metrics(guarded.node.server).text()
    assert b'genie_sessions_away{device="null:0"} 0.0' in text
    assert b"genie_sessions_resumed_total 1.0" in text
    caller.session.close()
    guarded.node.wait_for_sessions(0)
    events = [line for line in guarded.audited() if line.get("session") == info.id]
    assert [line["event"] for line in events] == ["opened", "away", "back", "closed"]
    assert {line["user"] for line in events} == {"alice"}
    assert events[1]["lease"] == 20 and events[1]["reason"]
    assert events[2]["peer"] != events[0]["peer"]
    assert _line(caller).reunion.key not in (guarded.directory / "audit").read_text()


@pytest.mark.parametrize("seed", range(2))
def test_random_cuts(guarded: Guarded, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the midst of handshakes, too."""
    monkeypatch.setattr(backoff, "LONGEST", 0.1)
    plain, steady = guarded.client("bob")
    expected = list(_program(steady, seed, 40))
    executions = steady.session.stats()["executions"]
    steady.session.close()
    assert plain.cuts == 0
    guarded.node.wait_for_sessions(0)
    choose = random.Random(seed)
    # Two connections ask for the devices: without a ticket, and with one. The third opens the session.
    budget = chain([None, None], (int(10 ** choose.uniform(4.0, 5.5)) for _ in repeat(None)))
    proxy, caller = guarded.client("alice", seed=seed, budget=budget)
    assert list(_program(caller, seed, 40)) == expected
    proxy.cut()
    assert caller.session.stats()["executions"] == executions
    assert _line(caller).rejoined > 0
    assert len(guarded.node.server.sessions()) == 1


def test_a_link_that_swallows_a_question(guarded: Guarded) -> None:
    proxy, caller = guarded.client("alice", heartbeat=0.2)
    value = caller.put([3])
    caller.session.synchronize()
    proxy.swallow()
    assert caller.get(value) == [3]


def test_flipped_bits(guarded: Guarded) -> None:
    """TLS notices; the client comes back."""
    if guarded.tls is None:
        pytest.skip("without TLS, that of TCP alone")
    proxy, caller = guarded.client("alice")
    data = random.Random(1).randbytes(100_000)
    for whose in ("client", "node", "client", "node"):
        handle = caller.put([0.0] * 25_000)
        proxy.spoil(whose)
        assert caller.get(handle) == [0.0] * 25_000
        assert proxy.spoilt
        handle = caller.handles()
        caller.session.upload(handle, spec(len(data), dtype="uint8"), data)
        assert bytes(caller.session.fetch(handle).data) == data
    assert _line(caller).rejoined >= 4


def test_only_as_who_one_was(guarded: Guarded) -> None:
    _, caller = guarded.client("alice")
    value = caller.put([1])
    assert caller.get(value) == [1]
    reunion = _line(caller).reunion
    transport = TcpTransport(stall_timeout=10, tls=guarded.tls)
    for probe in (True, False):
        back = Back(session=reunion.session, key=reunion.key, heard=1, sent=2, probe=probe)
        stranger = Access(guarded.tls, guarded.token(f"mallory-{probe}"))
        with pytest.raises(AccessDenied, match="another token"):
            stranger.meet(transport, guarded.node.server.address, -1, 5.0, back=back)
        with pytest.raises(AccessDenied, match="who has a token"):  # the key alone opens nothing
            meet(transport, guarded.node.server.address, -1, 5.0, back=back)
    assert caller.get(value) == [1]
    assert _line(caller).rejoined == 0


def test_not_once_the_token_was_revoked(guarded: Guarded) -> None:
    proxy, caller = guarded.client("alice")
    caller.session.synchronize()
    tokens.revoke(guarded.directory / "tokens.json", "alice")
    proxy.cut()
    with pytest.raises(ConnectionLost, match="did not take this client back: .*unknown") as caught:
        caller.session.synchronize()
    assert "with a token and certificate that the node takes" in caught.value.hint
    guarded.node.server.housekeep()
    guarded.node.wait_for_sessions(0)


def test_a_session_goes_on_by_a_better_known_name() -> None:
    owner = Identity(name="alice", digest="d", peer="unix:uid=1000")
    assert Identity(name="alice", digest="d", certificate="alice").continues(owner)
    assert not Identity(name="alice", digest="e").continues(owner)
    assert not Identity(name="bob", digest="d").continues(owner)
    shown = attrs.evolve(owner, certificate="alice")
    assert not Identity(name="alice", digest="d").continues(shown)
    assert not Identity(name="alice", digest="d", certificate="bob").continues(shown)
