"""`plain_data`: what does not speak TLS carries what a ticket from a TLS control plane protects, and nothing else."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from remote.peers import DEVICE, Node, welcome
from remote.ticketed import OpenTransport
from security.pki import Pki

from genie import config
from genie.errors import AccessDenied, BackendError, BackendUnavailable, ConfigError, GenieError
from genie.interfaces import Transport
from genie.remote import RemoteBackend
from genie.remote.channels.veil import veil
from genie.remote.client.access import Access
from genie.remote.client.negotiating import Negotiator
from genie.remote.control import ControlPlane
from genie.remote.greeting import farewell, greeting, meet
from genie.remote.joined import JoinedTransport
from genie.remote.node.exposure import check_open
from genie.remote.secrecy import AUTHENTICATED, HERE, NONE, TLS, protection
from genie.security import Guard, Scope, Ticket, Tls, TlsFiles, TokenFile, tokens
from genie.security.tickets import prove_hello
from genie.testing import Caller, MemoryTransport
from genie.wire import PROTOCOL, Kind, frames, messages
from genie.wire.channels import Target
from genie_backend_tcp import TcpTransport

SECONDS = 10.0


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.make(tmp_path_factory.mktemp("pki"))


# --- what a node starts with ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "tls", "given", "plain_data", "outcome"),
    [
        ("open", "node", True, True, "WARNING: PLAIN DATA"),
        ("open,tcp", "node", True, True, "WARNING: PLAIN DATA"),
        ("open,tcp", "mutual", False, True, "WARNING: PLAIN DATA"),
        ("open", "node", True, False, "does not speak TLS: open"),
        ("open,tcp", "node", True, False, "does not speak TLS: open"),
        ("open", "node", False, True, "no way to tell clients"),
        ("memory", "node", True, True, "nor takes tickets in its place: memory"),
        ("memory,open,tcp", "node", True, True, "nor takes tickets in its place: memory"),
        ("memory", "node", True, False, "nor takes tickets in its place: memory"),
        ("tcp", "node", True, True, ""),
        ("tcp", "none", True, True, ""),
        ("open,tcp", "none", True, True, ""),  # on loopback, as ever
    ],
)
def test_what_a_node_starts_with(
    pki: Pki,
    capsys: pytest.CaptureFixture[str],
    names: str,
    tls: str,
    given: bool,
    plain_data: bool,
    outcome: str,
) -> None:
    mine = {"none": Tls(TlsFiles()), "node": pki.node(), "mutual": pki.node(client_ca=True)}[tls]
    known: dict[str, Transport] = {
        "open": OpenTransport(),
        "memory": MemoryTransport(),
        "tcp": TcpTransport(tls=mine if mine.serves else None),
    }
    chosen = [known[name] for name in names.split(",")]
    transport = chosen[0] if len(chosen) == 1 else JoinedTransport(chosen)

    def check() -> None:
        check_open("127.0.0.1", mine, given, transport, insecure=False, plain_data=plain_data)

    if outcome and not outcome.startswith("WARNING"):
        with pytest.raises(ConfigError, match=outcome) as caught:
            check()
        helps = "open" in names and "memory" not in names and not plain_data
        assert ("--plain-data" in caught.value.hint) == helps
        assert capsys.readouterr().err == ""
        return
    check()
    told = capsys.readouterr().err
    assert told.startswith(outcome) and told.count("\n") == bool(outcome)
    assert ("does not encrypt what open carries" in told) == bool(outcome)


def test_others_reach_a_node_with_plain_data_only_if_it_asks_who_they_are(pki: Pki) -> None:
    transport = JoinedTransport([OpenTransport(), TcpTransport()])
    with pytest.raises(ConfigError, match="lacks TLS"):
        check_open("0.0.0.0", Tls(TlsFiles()), True, transport, insecure=False, plain_data=True)


# --- the world ------------------------------------------------------------------------------------


@attrs.define
class World:
    """A node that listens with ``open`` and, unless it has nothing else, with TCP and TLS."""

    node: Node
    open: OpenTransport
    tcp: TcpTransport
    directory: Path
    pki: Pki
    made: list[RemoteBackend] = attrs.field(factory=list)

    def token(self, name: str) -> str:
        path = self.directory / name
        if not path.exists():
            path.write_text(tokens.add(self.directory / "tokens.json", name))
        return str(path)

    def access(self, name: str = "", *, plain_data: bool = True, certificate: str = "") -> Access:
        return Access(self.pki.client(certificate), self.token(name) if name else "", plain_data=plain_data)

    def auto(self, access: Access, quick: Transport | None = None, names: str = "open,tcp") -> RemoteBackend:
        guide = Negotiator(names.split(","), self.tcp, lambda name: quick or self.open, access, shortcut=False)
        return self._keep(RemoteBackend("auto", self.tcp, self.nodes, timeout=SECONDS, access=access, guide=guide))

    def direct(self, access: Access) -> RemoteBackend:
        return self._keep(
            RemoteBackend(
                "open", self.open, self.nodes, timeout=SECONDS, connect_timeout=SECONDS, access=access, shortcut=False
            )
        )

    @property
    def nodes(self) -> tuple[str, ...]:
        return (self.node.server.address,)

    def _keep(self, backend: RemoteBackend) -> RemoteBackend:
        self.made.append(backend)
        return backend

    def ticket(self, name: str, *, bound: bool = True) -> Ticket:
        guard = self.node.server.guard
        token = Path(self.token(name)).read_text()
        return self.node.server.ticket(guard.identify(token, Scope.USE, "Open"), 0, bound=bound)


@pytest.fixture
def make_world(make_node: Callable[..., Node], pki: Pki, tmp_path: Path) -> Iterator[Callable[..., World]]:
    planes: list[ControlPlane] = []
    worlds: list[World] = []

    def make(
        *, plain_data: bool = True, asks: bool = True, mutual: bool = False, alone: bool = False, **options: Any
    ) -> World:
        tokens.add(tmp_path / "tokens.json", f"somebody-{len(worlds)}")
        quick, mine = OpenTransport() if not worlds else worlds[0].open, pki.node(client_ca=mutual)
        node = make_node(
            transport=quick if alone else JoinedTransport([quick, TcpTransport(stall_timeout=SECONDS, tls=mine)]),
            address=f"127.0.0.1:{4000 + len(worlds)}" if alone else "127.0.0.1:0",
            plain_data=plain_data,
            guard=Guard(TokenFile(tmp_path / "tokens.json")) if asks else Guard(),
            **options,
        )
        planes.append(ControlPlane(node.server, lambda seconds: None, mine))
        node.server.control_port = planes[-1].start("127.0.0.1", 0)
        tcp = TcpTransport(stall_timeout=SECONDS, tls=pki.client("client-alice" if mutual else ""))
        worlds.append(World(node, quick, tcp, tmp_path, pki))
        return worlds[-1]

    yield make
    for world in worlds:
        for backend in world.made:
            backend.close()
    for plane in planes:
        plane.close()


def works(backend: RemoteBackend) -> Caller:
    caller = Caller(backend.connect(backend.devices()[0]))
    assert caller.get(caller.put([1, 2])) == [1, 2]
    return caller


# --- what a client uses ---------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["auto", "direct"])
def test_with_a_ticket_it_is_used_and_said(make_world: Callable[..., World], by: str) -> None:
    world = make_world()
    access = world.access("alice")
    backend = world.auto(access) if by == "auto" else world.direct(access)
    works(backend)
    (carried,) = backend.carried()
    assert (carried.transport, carried.protection, dict(carried.passed_over)) == ("open", AUTHENTICATED, {})
    (seen,) = world.node.server.sessions()
    assert (seen.user, seen.transport, seen.protection) == ("alice", "open", AUTHENTICATED)
    asked = world.open.tickets.count(0)
    assert asked == (0 if by == "auto" else 1)  # over TCP the control plane is known already
    assert len(world.open.tickets) > asked


def test_a_node_with_nothing_else(make_world: Callable[..., World]) -> None:
    world = make_world(alone=True)
    works(world.direct(world.access("alice")))


def test_without_the_setting_all_is_as_ever(make_world: Callable[..., World]) -> None:
    world = make_world()
    access = world.access("alice", plain_data=False)
    backend = world.auto(access)
    works(backend)
    (carried,) = backend.carried()
    assert (carried.transport, carried.protection) == ("tcp", TLS)
    assert carried.passed_over == {
        "open": "the settings 'ca' and 'cert' ask for TLS, which it does not speak; 'plain_data' is off"
    }
    with pytest.raises(BackendUnavailable, match="'plain_data' is off"):
        world.direct(access).devices()
    assert world.open.connected == []


@pytest.mark.parametrize(
    ("transport", "plain_data", "hinted"),
    [(OpenTransport(), False, True), (MemoryTransport(), False, False), (MemoryTransport(), True, False)],
)
def test_a_backend_that_may_not_be_used(pki: Pki, transport: Transport, plain_data: bool, hinted: bool) -> None:
    settings = config.resolve({"ca": pki.ca, "plain_data": plain_data}, environ={}).settings
    with pytest.raises(ConfigError, match="ask for TLS") as caught:
        Access.from_settings(settings, transport)
    assert ("plain_data" in caught.value.hint) == hinted


def test_a_backend_that_may() -> None:
    allowed = config.resolve({"plain_data": True}, environ={}).settings
    assert Access.from_settings(allowed, OpenTransport()).unfit(OpenTransport()) == ""


def test_the_setting_comes_from_everywhere() -> None:
    assert not config.resolve(environ={}).settings.plain_data
    assert config.resolve(environ={"GENIE_PLAIN_DATA": "1"}).settings.plain_data
    assert not config.resolve({"plain_data": False}, environ={"GENIE_PLAIN_DATA": "1"}).settings.plain_data


def test_what_takes_no_tickets_is_passed_over(make_world: Callable[..., World]) -> None:
    world = make_world()
    backend = world.auto(world.access("alice"), MemoryTransport())
    works(backend)
    (carried,) = backend.carried()
    assert carried.transport == "tcp"
    assert carried.passed_over["open"] == "the settings 'ca' and 'cert' ask for TLS, which it does not speak"


def test_a_node_that_gives_no_ticket(make_world: Callable[..., World]) -> None:
    world = make_world(asks=False, plain_data=False)
    backend = world.auto(world.access())
    works(backend)
    (carried,) = backend.carried()
    assert (carried.transport, carried.protection) == ("tcp", TLS)
    assert carried.passed_over["open"] == "the node gives no ticket, and what open carries is not encrypted"
    with pytest.raises(BackendUnavailable, match="gives no ticket") as caught:
        world.direct(world.access("alice")).devices()
    assert "--plain-data" in caught.value.hint
    assert set(world.open.tickets) == {0}


@pytest.mark.parametrize("by", ["auto", "direct"])
def test_a_certificate_is_as_good_as_a_token(make_world: Callable[..., World], by: str) -> None:
    world = make_world(asks=False, mutual=True)
    access = world.access(certificate="client-alice")
    backend = world.auto(access) if by == "auto" else world.direct(access)
    works(backend)
    (seen,) = world.node.server.sessions()
    assert (seen.transport, seen.protection) == ("open", AUTHENTICATED)
    with pytest.raises(BackendError):  # whoever has none gets no ticket
        world.direct(world.access()).devices()


def test_what_protects_a_session() -> None:
    transports: list[Transport] = [OpenTransport(), MemoryTransport()]
    assert protection("open", transports, tickets=True) == AUTHENTICATED
    assert protection("open", transports, tickets=False) == NONE
    assert protection("memory", transports, tickets=True) == NONE
    assert protection("unix", transports, tickets=True) == HERE
    assert protection("", transports, tickets=True) == ""


# --- whoever is on the data network ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"devices": (DEVICE,)}, "gives no ticket"),
        ({"tickets": True}, "gives no ticket"),
        ({"tickets": True, "control_port": 1}, "no ticket for open|does not answer"),
        ({"major": PROTOCOL[0] + 1}, "who answers by open says"),
    ],
)
def test_who_answers_in_clear_learns_and_changes_nothing(
    pki: Pki, tmp_path: Path, said: dict[str, object], reason: str
) -> None:
    quick = OpenTransport()
    listener = quick.listen("127.0.0.1:4711")
    (tmp_path / "alice").write_text("genie_secret")
    done = threading.Event()

    def answer() -> None:
        while not done.is_set():
            try:
                welcome(listener.accept(1.0), **said)
            except GenieError:
                continue

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        access = Access(pki.client(), str(tmp_path / "alice"), plain_data=True)
        backend = RemoteBackend("open", quick, (listener.address,), connect_timeout=3.0, access=access, shortcut=False)
        with pytest.raises(BackendError, match=reason):
            backend.devices()
    finally:
        done.set()
        listener.close()
        thread.join(SECONDS)
    assert set(quick.tickets) == {0}
    for heard in quick.heard:
        kind = frames.single(heard)[1]
        assert kind in (Kind.HELLO, Kind.WELCOME, Kind.BYE)
        if kind == Kind.HELLO:
            hello = messages.get_hello(frames.single(heard)[2])
            assert (hello.device, hello.channel, hello.back, hello.passed_over) == (-1, "", None, {})
    assert b"genie_secret" not in b"".join(quick.heard)


def test_another_nodes_control_plane_is_not_believed(
    make_world: Callable[..., World], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whoever answers in clear names a port where somebody has a certificate of another authority."""
    world = make_world()
    others = Pki.make(tmp_path_factory.mktemp("others"))
    plane = ControlPlane(world.node.server, lambda seconds: None, others.node())
    world.node.server.control_port = plane.start("127.0.0.1", 0)
    try:
        with pytest.raises(BackendUnavailable, match="no ticket for open"):
            world.direct(world.access("alice")).devices()
    finally:
        plane.close()
    assert set(world.open.tickets) == {0}


def answered(transport: Transport, address: str, said: bytes) -> tuple[int, memoryview]:
    connection = transport.connect(address, SECONDS)
    return _said(connection, said)


def _said(connection: Any, said: bytes) -> tuple[int, memoryview]:
    connection.send(said)
    _, records = frames.split(connection.receive(lambda header, sizes: [], SECONDS).header)
    connection.close()
    return records[0]


@pytest.mark.parametrize("case", ["session", "back", "channel", "proven"])
def test_without_a_ticket_from_the_first_packet_on_nothing_is_to_be_had(
    make_world: Callable[..., World], case: str
) -> None:
    world = make_world()
    fields: dict[str, Any] = {"device": 0}
    if case == "back":
        fields = {"device": -1, "back": messages.Back(session="x", key="y", heard=0, sent=0)}
    elif case == "channel":
        fields = {"device": -1, "channel": "0" * 32}
    said = messages.put_struct(messages.Hello(major=PROTOCOL[0], minor=PROTOCOL[1], **fields))
    proof = None
    if case == "proven":  # the ticket is good, and comes too late
        ticket = world.ticket("alice", bound=False)
        proof = ticket.id + prove_hello(ticket, said)
    kind, body = answered(world.open, world.node.server.address, greeting(0, Kind.HELLO, said, proof))
    error = messages.get_error(body, "")
    assert kind == Kind.ERROR and isinstance(error, AccessDenied)
    assert "first packet" in error.message
    assert world.node.server.sessions() == ()


def test_a_greeting_that_was_heard_is_no_use_elsewhere(make_world: Callable[..., World]) -> None:
    """Not over TLS, not under another's ticket; and its owner's ticket is not used up by that."""
    world = make_world()
    address = world.node.server.address
    alice, mallory = world.ticket("alice"), world.ticket("mallory")
    said = messages.put_struct(messages.Hello(major=PROTOCOL[0], minor=PROTOCOL[1], device=0))
    heard = greeting(0, Kind.HELLO, said, alice.id + prove_hello(alice, said))
    under = world.open.connect_with(address, SECONDS, mallory.session, mallory.key)
    for kind, body in (answered(world.tcp, address, heard), _said(under, heard)):
        assert kind == Kind.ERROR
        assert "not the one that protects this connection" in messages.get_error(body, "").message
    assert world.node.server.sessions() == ()
    met = meet(world.open, address, 0, SECONDS, ticket=alice)
    assert met.welcome.session
    farewell(met)


def test_a_ticket_for_tls_is_no_use_in_clear_under_anothers(make_world: Callable[..., World]) -> None:
    world = make_world()
    address = world.node.server.address
    alice, mallory = world.ticket("alice", bound=False), world.ticket("mallory")
    said = messages.put_struct(messages.Hello(major=PROTOCOL[0], minor=PROTOCOL[1], device=0))
    under = world.open.connect_with(address, SECONDS, mallory.session, mallory.key)
    kind, _ = _said(under, greeting(0, Kind.HELLO, said, alice.id + prove_hello(alice, said)))
    assert kind == Kind.ERROR


# --- coming back ----------------------------------------------------------------------------------


def _cut(caller: Caller) -> None:
    caller.session._conversation._connection._connection.close()


def test_a_session_comes_back_with_a_new_ticket(make_world: Callable[..., World]) -> None:
    world = make_world()
    backend = world.auto(world.access("alice"))
    caller = works(backend)
    handle = caller.put([3, 4])
    caller.session.synchronize()
    before = len(world.open.tickets)
    _cut(caller)
    assert caller.get(handle) == [3, 4]
    (came,) = world.open.tickets[before:]
    assert came and came not in world.open.tickets[:before]
    (carried,) = backend.carried()
    assert (carried.transport, carried.protection) == ("open", AUTHENTICATED)


@pytest.mark.parametrize("mutual", [False, True], ids=["token", "certificate"])
def test_a_session_comes_back_over_tls_and_says_so(make_world: Callable[..., World], mutual: bool) -> None:
    world = make_world(asks=not mutual, mutual=mutual)
    backend = world.auto(world.access(certificate="client-alice") if mutual else world.access("alice"))
    caller = works(backend)
    handle = caller.put([3, 4])
    caller.session.synchronize()
    world.open.closed.add(world.node.server.address)
    _cut(caller)
    assert caller.get(handle) == [3, 4]
    (carried,) = backend.carried()
    assert (carried.transport, carried.protection) == ("tcp", TLS)
    (seen,) = world.node.server.sessions()
    assert (seen.transport, seen.protection) == ("tcp", TLS)


def test_what_began_over_tls_goes_on_over_tls(make_world: Callable[..., World]) -> None:
    world = make_world()
    backend = world.auto(world.access("alice"), names="tcp,open")
    caller = works(backend)
    _cut(caller)
    assert caller.get(caller.put([5])) == [5]
    assert backend.carried()[0].transport == "tcp"
    assert world.open.connected == []


# --- values from node to node ---------------------------------------------------------------------


def test_values_go_from_node_to_node_over_tls_and_nobody_reads_the_channels_token(
    make_world: Callable[..., World],
) -> None:
    one, other = make_world(), make_world()
    access = one.access("alice")
    guide = Negotiator(("open", "tcp"), one.tcp, lambda name: one.open, access, shortcut=False)
    backend = one._keep(
        RemoteBackend("auto", one.tcp, (*one.nodes, *other.nodes), timeout=SECONDS, access=access, guide=guide)
    )
    first, second = (Caller(backend.connect(device)) for device in backend.devices())
    assert {carried.transport for carried in backend.carried()} == {"open"}
    before = len(one.open.connected)
    inlet = second.session.inlet("one")
    outlet = first.session.outlet(inlet)
    handle = first.put([1, 2, 3])
    first.session.send(outlet, handle)
    second.session.receive(inlet, 0, 1000)
    assert second.get(1000) == [1, 2, 3]
    assert len(one.open.connected) == before
    assert len(bytes.fromhex(inlet.target.token)) == 16
    assert inlet.target.token.encode() not in b"".join(one.open.heard)
    abandoned = second.session.inlet("one")
    second.session.receive(abandoned, 0, 1001)
    second.session.abandon(abandoned, BackendError("its sender is gone"))
    with pytest.raises(GenieError, match="its sender is gone"):
        second.get(1001)
    assert len(one.open.connected) == before


def test_nodes_without_tls_between_them_say_so(make_world: Callable[..., World]) -> None:
    one, other = make_world(alone=True), make_world(alone=True)
    access = one.access("alice")
    backend = one._keep(
        RemoteBackend("open", one.open, (*one.nodes, *other.nodes), timeout=SECONDS, access=access, shortcut=False)
    )
    first, second = (Caller(backend.connect(device)) for device in backend.devices())
    inlet = second.session.inlet("one")
    first.session.send(first.session.outlet(inlet), first.put([1]))
    with pytest.raises(GenieError, match="over TLS, which open does not speak"):
        first.session.synchronize()
        first.get(first.put([2]))


def test_a_veil_hides_the_token_and_gives_it_back() -> None:
    ticket = Ticket(bytes(16), secrets.token_bytes(32), bound=True)
    target = Target(token=secrets.token_hex(16), host="host")
    seen = {veil(ticket, end, number, target).token for end in ("inlet", "outlet") for number in range(3)}
    assert len(seen | {target.token}) == 7
    assert veil(ticket, "inlet", 1, veil(ticket, "inlet", 1, target)) == target
    assert veil(attrs.evolve(ticket, bound=False), "inlet", 1, target) == target
    assert veil(None, "inlet", 1, target) == target
    for wrong in ("no token", "0" * 66):
        with pytest.raises(BackendError):
            veil(ticket, "outlet", 0, Target(token=wrong))
