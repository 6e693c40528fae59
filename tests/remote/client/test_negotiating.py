"""The best transport that both sides have, from what a node's control plane says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest
from remote.peers import Node
from security.pki import Pki

from genie.errors import AccessDenied, BackendUnavailable, ConfigError, PluginNotFound
from genie.interfaces import Connection, Listener, Transport
from genie.remote import RemoteBackend
from genie.remote.client.access import Access
from genie.remote.client.negotiating import Negotiator
from genie.remote.client.routes import is_here
from genie.remote.control import Capabilities, ControlPlane
from genie.remote.greeting import quicker
from genie.remote.identity import host_identity
from genie.remote.joined import JoinedTransport
from genie.remote.node.session.lasting import Lasting
from genie.security import Guard, Tls, TokenFile, tokens
from genie.testing import Caller
from genie.ways import Carried, Way, is_socket
from genie.wire.messages import Welcome
from genie_backend_tcp import TcpTransport

SECONDS = 10.0


class Quick:
    """TCP by another name, at a port of its own: what a better transport is to this side. ``broken`` is why it is not
    to be used."""

    name = "quick"

    def __init__(self) -> None:
        self.tcp = TcpTransport(stall_timeout=SECONDS)
        self.broken = ""
        self.asked: list[tuple[Way, str, bool]] = []
        self.connected: list[str] = []

    def address(self, way: Way, host: str, *, here: bool) -> str:
        self.asked.append((way, host, here))
        if self.broken:
            raise BackendUnavailable(self.broken)
        return f"{host}:{way.port}"

    def connect(self, address: str, timeout: float) -> Connection:
        self.connected.append(address)
        return Labelled(self.tcp.connect(address, timeout), self.name)

    def listen(self, address: str) -> Listener:
        if address.startswith("unix:"):
            raise ConfigError("it has no Unix sockets", where=address)
        return Labelling(self.tcp.listen(f"{address.rpartition(':')[0]}:0"), self.name)


@attrs.define
class Labelling:
    listener: Any
    name: str

    @property
    def address(self) -> str:
        return str(self.listener.address)

    def accept(self, timeout: float | None = None) -> Connection:
        return Labelled(self.listener.accept(timeout), self.name)

    def close(self) -> None:
        self.listener.close()


class Labelled:
    """The connection, by another transport's name."""

    def __init__(self, connection: Any, transport: str) -> None:
        self._connection = connection
        self.transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@attrs.define
class World:
    """A node that listens with ``quick`` and TCP, and its clients."""

    node: Node
    plain: TcpTransport
    tls: Tls | None = None
    token_file: str = ""
    made: list[RemoteBackend] = attrs.field(factory=list)

    def backend(
        self, quick: Transport | None, names: tuple[str, ...] = ("quick", "unix", "tcp"), *, shortcut: bool = True
    ) -> RemoteBackend:
        def make(name: str) -> Transport:
            if quick is None or name != "quick":
                raise PluginNotFound(f"no transport is named {name!r}")
            return quick

        access = Access(self.tls, self.token_file)
        guide = Negotiator(names, self.plain, make, access, shortcut=shortcut)
        address = self.node.server.address
        self.made.append(RemoteBackend("auto", self.plain, (address,), timeout=SECONDS, access=access, guide=guide))
        return self.made[-1]

    def carried(self, backend: RemoteBackend) -> Carried:
        caller = Caller(backend.connect(backend.devices()[0]))
        caller.session.synchronize()
        (carried,) = backend.carried()
        (session,) = self.node.server.sessions()
        assert (session.transport, session.passed_over) == (carried.transport, carried.passed_over)
        return carried


@pytest.fixture
def make_world(make_node: Callable[..., Node]) -> Iterator[Callable[..., World]]:
    planes: list[ControlPlane] = []
    worlds: list[World] = []

    def make(serving: Tls | None = None, asking: Tls | None = None, **options: Any) -> World:
        listening = JoinedTransport([Quick(), TcpTransport(stall_timeout=SECONDS, tls=serving)])
        node = make_node(transport=listening, address="127.0.0.1:0", **options)
        planes.append(ControlPlane(node.server, lambda seconds: None, serving))
        node.server.control_port = planes[-1].start("127.0.0.1", 0)
        worlds.append(World(node, TcpTransport(stall_timeout=SECONDS, tls=asking), asking))
        return worlds[-1]

    yield make
    for world in worlds:
        for backend in world.made:
            backend.close()
    for plane in planes:
        plane.close()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()


def test_a_node_says_by_which_ways_it_is_reached(world: World) -> None:
    ways = {way.transport: way for way in world.node.server.ways}
    assert set(ways) == {"quick", "unix", "tcp"}
    assert f"127.0.0.1:{ways['tcp'].port}" == world.node.server.address
    assert f"unix:{ways['unix'].path}" == world.node.server.local_address


def test_the_best_that_both_have_is_used(world: World) -> None:
    quick = Quick()
    carried = world.carried(world.backend(quick))
    assert (carried.transport, carried.passed_over) == ("quick", {})
    ((way, host, here),) = quick.asked
    assert (host, here) == ("127.0.0.1", True)
    assert set(quick.connected) == {f"127.0.0.1:{way.port}"}


def test_what_is_not_installed_is_passed_over_for_the_socket_of_this_host(world: World) -> None:
    carried = world.carried(world.backend(None))
    assert (carried.transport, carried.passed_over) == ("unix", {"quick": "it is not installed here"})


def test_what_does_not_work_from_here_is_passed_over_with_its_reason(world: World) -> None:
    quick = Quick()
    quick.broken = "no huge pages"
    carried = world.carried(world.backend(quick, shortcut=False))
    assert carried.transport == "tcp"
    assert carried.passed_over == {"quick": "no huge pages", "unix": "the setting 'unix_sockets' is off"}
    assert quick.connected == []


def test_what_the_node_lacks_is_passed_over(make_node: Callable[..., Node], make_world: Callable[..., World]) -> None:
    world = make_world()
    carried = world.carried(world.backend(Quick(), ("other", "tcp")))
    assert carried.passed_over == {"other": "it is not installed here"}
    world.made[-1].close()
    world.node.wait_for_sessions(0)

    class Other(Quick):
        name = "other"

    backend = world.backend(None, ("other", "tcp"))
    backend._guide._made["other"] = Other()  # type: ignore[attr-defined]
    assert world.carried(backend).passed_over == {
        "other": "the node does not listen with it, but with quick, tcp, unix"
    }


class Lost(Quick):
    """Reaches the node, and loses it ``after`` so many connections."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def connect(self, address: str, timeout: float) -> Connection:
        if len(self.connected) >= self.after:
            raise BackendUnavailable("out of rings")
        return super().connect(address, timeout)


@pytest.mark.parametrize("after", [0, 1])
def test_what_fails_is_followed_by_the_next(world: World, after: int) -> None:
    """When the node is first asked, or when a session is opened."""
    carried = world.carried(world.backend(Lost(after)))
    assert (carried.transport, carried.passed_over) == ("unix", {"quick": "out of rings"})


def test_a_session_comes_back_by_the_next_and_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the thread that greeted takes to end."""
    seen_to, hand_over = threading.Event(), Lasting.hand_over

    def held(*args: Any) -> None:
        hand_over(*args)
        seen_to.wait(10)

    monkeypatch.setattr(Lasting, "hand_over", held)
    quick = Lost(2)
    backend = world.backend(quick)
    session = backend.connect(backend.devices()[0])
    session.synchronize()
    assert session.transport == "quick"
    session._conversation._connection._connection.close()  # type: ignore[attr-defined]
    session.synchronize()
    (carried,) = backend.carried()
    assert (carried.transport, carried.passed_over) == ("unix", {"quick": "out of rings"})
    (seen,) = world.node.server.sessions()
    assert (seen.transport, seen.passed_over) == ("unix", {"quick": "out of rings"})
    seen_to.set()


def test_nothing_is_used_that_was_not_allowed(world: World) -> None:
    quick = Quick()
    quick.broken = "no driver"
    with pytest.raises(BackendUnavailable) as caught:
        world.backend(quick, ("quick",)).devices()
    assert "quick: " in caught.value.message
    assert world.node.server.sessions() == ()


def test_what_does_not_encrypt_is_never_used_where_tls_is_asked_for(
    make_world: Callable[..., World], tmp_path: Path
) -> None:
    pki = Pki.make(tmp_path / "lab")
    world = make_world(pki.node(), pki.client())
    quick = Quick()
    carried = world.carried(world.backend(quick, shortcut=False))
    assert carried.transport == "tcp"
    assert carried.passed_over["quick"] == "the settings 'ca' and 'cert' ask for TLS, which it does not speak"
    assert quick.asked == []
    assert quick.connected == []


def test_a_node_with_tokens_is_asked_with_one(make_world: Callable[..., World], tmp_path: Path) -> None:
    (tmp_path / "alice").write_text(tokens.add(tmp_path / "tokens.json", "alice"))
    world = make_world(guard=Guard(TokenFile(tmp_path / "tokens.json")))
    with pytest.raises(AccessDenied):
        world.backend(Quick()).devices()
    world.token_file = str(tmp_path / "alice")
    assert world.carried(world.backend(Quick())).transport == "quick"


def test_a_silent_control_plane_is_the_reason_and_not_the_end(world: World) -> None:
    world.node.server.control_port = 0
    carried = world.carried(world.backend(Quick()))
    assert carried.transport == "unix"
    assert carried.passed_over == {"quick": "the node has no control plane to say what it listens with"}


def test_a_node_that_nobody_reaches_is_an_error_with_every_reason(world: World) -> None:
    backend = world.backend(Quick())
    world.node.server.close()
    with pytest.raises(BackendUnavailable) as caught:
        backend.devices()
    for name in ("quick", "unix", "tcp"):
        assert f"{name}: " in caught.value.message


# --- what a node says is not believed ------------------------------------------------------------


@pytest.mark.parametrize(
    "way",
    [
        {"transport": "quick", "port": 65536},
        {"transport": "quick", "port": -1},
        {"transport": "Quick!", "port": 1},
        {"transport": "q" * 33, "port": 1},
        {"transport": "quick\n", "port": 1},
        {"transport": "unix", "path": "/" + "x" * 107},
        {"transport": "quick", "device": "vdev:memif,socket=/etc/shadow"},
        {"transport": "quick", "versions": [0, 256]},
    ],
)
def test_a_way_that_cannot_be_is_refused(way: Mapping[str, object]) -> None:
    said = msgspec.msgpack.encode({"address": "a:1", "ways": [way]})
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(said, type=Capabilities)


def test_more_ways_than_there_are_transports_are_refused() -> None:
    said = msgspec.msgpack.encode({"address": "a:1", "ways": [{"transport": "tcp"}] * 17})
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(said, type=Capabilities)


@pytest.mark.parametrize(
    "address", ["10.0.0.1:22", "unix:relative", "unix:", "", "unix:/a\0b", "unix:/" + "x" * 107, "memif:/x"]
)
def test_a_shortcut_leads_to_a_socket_and_nowhere_else(address: str) -> None:
    assert not is_socket(address)
    said = Welcome(major=1, minor=0, host=host_identity(), local_address=address)
    assert quicker(said) == ""


def test_a_node_elsewhere_that_says_it_is_here_is_not_believed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genie.remote.client.negotiating.is_here", lambda node: False)
    quick = Quick()
    carried = world.carried(world.backend(quick, ("unix", "quick", "tcp")))
    assert (carried.transport, carried.passed_over) == ("quick", {"unix": "the node is on another host"})
    assert [here for _, _, here in quick.asked] == [False]


def test_addresses_of_this_host() -> None:
    assert is_here("127.0.0.1:1")
    assert is_here("[::1]:1")
    assert is_here("unix:/somewhere")
    assert not is_here("192.0.2.1:1")  # TEST-NET-1: nobody's
    assert not is_here("no such host:1")


def test_reasons_are_bounded_and_printable(world: World) -> None:
    quick = Quick()
    quick.broken = "\x1b[31m" + "x" * 1000
    backend = world.backend(quick)
    backend.connect(backend.devices()[0]).synchronize()
    (session,) = world.node.server.sessions()
    assert len(session.passed_over["quick"]) == 240
    assert session.passed_over["quick"].isprintable()


def test_transports_are_checked_as_a_setting() -> None:
    from genie import config

    assert config.resolve({"transports": " dpdk , tcp"}).settings.transport_names == ("dpdk", "tcp")
    for wrong in ("", "dpdk,,tcp", "tcp,tcp"):
        with pytest.raises(ConfigError):
            config.resolve({"transports": wrong})
