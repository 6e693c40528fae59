"""The whole remote path over sockets, against the shipped suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from genie.remote import NodeServer, RemoteBackend
from genie.testing import BackendSuite, NullBackend
from genie_backend_tcp import TcpTransport


class TestOverTcp(BackendSuite):
    shortcut = False

    @pytest.fixture
    def backend(self) -> Iterator[RemoteBackend]:
        transport = TcpTransport(stall_timeout=10.0)
        with NodeServer(NullBackend(), transport, "127.0.0.1:0") as node:
            backend = RemoteBackend("tcp", transport, (node.address,), timeout=10.0, shortcut=self.shortcut)
            yield backend
            backend.close()


class TestOverUnixSocket(TestOverTcp):
    shortcut = True
