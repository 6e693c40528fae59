"""A node says of each session what carries it."""

from __future__ import annotations

import pytest

from genie.remote import NodeServer, RemoteBackend
from genie.testing import NullBackend
from genie_backend_tcp import TcpTransport


@pytest.mark.parametrize(("shortcut", "told"), [(True, "unix"), (False, "tcp")])
def test_what_a_session_began_over(shortcut: bool, told: str) -> None:
    transport = TcpTransport()
    with NodeServer(NullBackend(), transport, "127.0.0.1:0", local=True) as node:
        backend = RemoteBackend("tcp", transport, [node.address], shortcut=shortcut)
        session = backend.connect(backend.devices()[0])
        try:
            assert [each.transport for each in node.sessions()] == [told]
        finally:
            session.close()
            backend.close()
