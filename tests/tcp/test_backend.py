"""The whole remote path over sockets, against the shipped suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from security.pki import Pki

from genie.graph import Graph, Input, Ref
from genie.remote import NodeServer, RemoteBackend
from genie.testing import BackendSuite, Caller, NullBackend
from genie.testing.plans import node, pack, spec
from genie_backend_local import LocalBackend
from genie_backend_tcp import TcpTransport


class TestOverTcp(BackendSuite):
    shortcut = False

    @pytest.fixture
    def backend(self) -> Iterator[RemoteBackend]:
        transport = TcpTransport(stall_timeout=10.0)
        with NodeServer(NullBackend(), transport, "127.0.0.1:0") as server:
            backend = RemoteBackend("tcp", transport, (server.address,), timeout=10.0, shortcut=self.shortcut)
            yield backend
            backend.close()


class TestOverUnixSocket(TestOverTcp):
    shortcut = True


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.make(tmp_path_factory.mktemp("pki"))


class TestOverTls(BackendSuite):
    @pytest.fixture
    def backend(self, pki: Pki) -> Iterator[RemoteBackend]:
        transport = TcpTransport(stall_timeout=10.0, tls=pki.node())
        with NodeServer(NullBackend(), transport, "127.0.0.1:0") as server:
            backend = RemoteBackend("tcp", transport, (server.address,), timeout=10.0, shortcut=False)
            yield backend
            backend.close()


class TestLocalBackendOverTcp(BackendSuite):
    """The backend that ships: it receives in place and shares contents between sessions."""

    @pytest.fixture
    def backend(self) -> Iterator[RemoteBackend]:
        transport = TcpTransport(stall_timeout=10.0)
        with NodeServer(LocalBackend(), transport, "127.0.0.1:0") as server:
            backend = RemoteBackend("tcp", transport, (server.address,), timeout=10.0)
            yield backend
            backend.close()

    def test_content_survives_what_sessions_do_to_it(self, backend: RemoteBackend) -> None:
        """Each writes into its own; the first one to have uploaded it ends; what is kept stays as it came."""
        size = 1 << 14
        content = pack([1.0] * size)
        add = Graph(
            values=(spec(size), spec(size)),
            inputs=(Input(0), Input(1)),
            steps=(node(0, "aten::add_.Tensor", [Ref(0), Ref(1), 1], [-1], mutates=[0]),),
            outputs=(),
        )
        for rounds in (1, 2, 3):
            callers = [Caller(backend.connect(backend.devices()[0])) for _ in range(2)]
            for caller in callers:
                caller.session.upload(caller.handles(), spec(size), content, shared=True)
            for _ in range(rounds):
                callers[0].run(add, [1, 1])
            assert callers[0].get(1)[:2] == [2.0**rounds] * 2
            assert callers[1].get(1) == [1.0] * size
            callers[0].session.close()
            assert callers[1].get(1) == [1.0] * size
            assert callers[1].session.stats()["content_bytes"] == 4 * size
            callers[1].session.close()
