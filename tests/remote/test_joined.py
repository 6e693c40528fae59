"""Several transports as one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from genie import config
from genie.config import Settings
from genie.errors import BackendUnavailable, ConfigError, ConnectionLost, PluginNotFound
from genie.interfaces import Connection, Listener, Transport
from genie.remote.joined import JoinedTransport, joined
from genie.testing import MemoryTransport, TransportSuite
from genie.wire import Kind, frames

SECONDS = 5.0


class Named(MemoryTransport):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class Deaf(Named):
    """One that finds no peers and can't listen."""

    def connect(self, address: str, timeout: float) -> Any:
        raise BackendUnavailable("not here", where=address)

    def listen(self, address: str) -> Any:
        raise ConfigError("not here", where=address)


class Local(Named):
    """One that can listen at Unix sockets, too."""

    def listen(self, address: str) -> Any:
        return super().listen(address.replace("unix:", "local "))


class TestBoth(TransportSuite):
    @pytest.fixture
    def transport(self) -> Transport:
        return JoinedTransport([Named("quick"), Named("plain")])

    @pytest.fixture
    def address(self) -> str:
        return "both"


class TestOneThatCan(TransportSuite):
    @pytest.fixture
    def transport(self) -> Transport:
        return JoinedTransport([Deaf("quick"), Named("plain")])

    @pytest.fixture
    def address(self) -> str:
        return "one"


def meet(listener: Listener, transport: Transport) -> tuple[Connection, Connection]:
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(listener.accept, SECONDS)
        return transport.connect(listener.address, SECONDS), accepted.result(SECONDS)


def test_clients_of_either_are_accepted() -> None:
    quick, plain = Named("quick"), Named("plain")
    listener = JoinedTransport([quick, plain]).listen("node")
    for number, transport in enumerate((plain, quick, plain)):
        client, node = meet(listener, transport)
        client.send(frames.one(number, Kind.DONE))
        assert frames.sequence(node.receive(lambda header, sizes: [], SECONDS).header) == number
    listener.close()


def test_who_came_before_the_end_is_told_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genie.remote.joined._MOST_WAITING", 2)
    quick, plain = Named("quick"), Named("plain")
    listener = JoinedTransport([quick, plain]).listen("node")
    clients = [transport.connect("node", SECONDS) for transport in (quick, plain) * 4]
    listener.close()
    for client in clients:
        with pytest.raises(ConnectionLost):
            client.receive(lambda header, sizes: [], SECONDS)
    with pytest.raises(ConnectionLost):
        listener.accept(SECONDS)


def test_a_caller_takes_the_first_that_leads_there() -> None:
    quick, plain = Named("quick"), Named("plain")
    both = JoinedTransport([quick, plain])
    only_plain = plain.listen("old node")
    client, node = meet(only_plain, both)
    client.send(frames.one(1, Kind.DONE))
    assert node.receive(lambda header, sizes: [], SECONDS).header
    with pytest.raises(BackendUnavailable):
        both.connect("nobody", SECONDS)


def test_its_name_says_what_it_listens_with() -> None:
    transport = JoinedTransport([Deaf("quick"), Local("plain")])
    assert transport.name == "quick,plain"
    transport.listen("unix:/shortcut").close()
    assert transport.name == "quick,plain"
    transport.listen("node").close()
    assert transport.name == "plain"


def test_what_is_not_installed_is_left_out_unless_it_is_the_last() -> None:
    def make(kind: str, name: str, settings: Settings) -> Transport:
        if name == "quick":
            raise PluginNotFound(f"no {kind} is called {name!r}")
        return Named(name)

    settings = config.resolve({}).settings
    assert joined("quick, plain", make, settings).name == "plain"
    with pytest.raises(PluginNotFound):
        joined("plain,quick", make, settings)
